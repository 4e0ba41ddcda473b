# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding: guess tokens ahead (`drafter.py`, `ngram.py`, `mtp.py`), let one step of the model check several of
them (`verify.py`), pause where that does not pay (`pace.py`). Python and numpy only."""
