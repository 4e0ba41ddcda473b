# SPDX-License-Identifier: Apache-2.0
"""Paged caches: what a layer type owns (`layout.py`), how much memory that is (`accounting.py`), who holds which block
(`block_pool.py`, `manager.py`). Python integers and numpy only."""
