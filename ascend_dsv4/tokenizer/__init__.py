# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back: whole texts, and token by token while they are generated."""

from __future__ import annotations

from ascend_dsv4.tokenizer.completion import CompletionText
from ascend_dsv4.tokenizer.detokenize import IncrementalDetokenizer
from ascend_dsv4.tokenizer.tokenizer import Tokenizer

__all__ = ["CompletionText", "IncrementalDetokenizer", "Tokenizer"]
