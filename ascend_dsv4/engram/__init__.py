# SPDX-License-Identifier: Apache-2.0
"""Engram conditional memory: which rows of its tables a token reads, where the tables live, and how rows reach a step.

numpy only. `hashing` turns token ids into row ids, `rows` says how a row is packed, `store` fetches rows from memory or
from files ahead of the step that needs them, `table_file` and `convert` write tables that can be read row by row.
"""
