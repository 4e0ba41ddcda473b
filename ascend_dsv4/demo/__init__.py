# SPDX-License-Identifier: Apache-2.0
"""A small checkpoint of each family with random weights, written on first use: every layer type and format, no download.

`text.py` is what its tokenizer is trained on, `vocabulary.py` makes the tokenizer, `checkpoint.py` the weights and V4's
configuration, `families.py` the other ones, `cache.py` keeps the files. The bytes depend on nothing but the sources of
this package and of what it hashes and encodes with.
"""

from __future__ import annotations

from ascend_dsv4.demo.cache import demo_model

__all__ = ["demo_model"]
