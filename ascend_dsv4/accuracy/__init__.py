# SPDX-License-Identifier: Apache-2.0
"""Looking inside a run: module tensors by name."""
