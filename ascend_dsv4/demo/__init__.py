# SPDX-License-Identifier: Apache-2.0
"""A small V4 checkpoint with random weights, written on first use: every layer type and number format, no download.

`text.py` is what its tokenizer is trained on, `vocabulary.py` makes the tokenizer, `checkpoint.py` the configuration and
weights, `cache.py` keeps the files. The bytes depend on nothing but this package's sources.
"""

from __future__ import annotations

from ascend_dsv4.demo.cache import demo_model

__all__ = ["demo_model"]
