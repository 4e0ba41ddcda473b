# SPDX-License-Identifier: Apache-2.0
"""The model definition and the layout of its checkpoints."""
