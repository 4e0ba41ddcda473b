# SPDX-License-Identifier: Apache-2.0
"""Conversations in, events out."""
