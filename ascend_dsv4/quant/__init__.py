# SPDX-License-Identifier: Apache-2.0
"""Stored number formats of the released checkpoints: a module per format, numpy and torch on the same tables."""
