# SPDX-License-Identifier: Apache-2.0
"""How a model is run: backend, number formats, limits. Defaults, help texts and flags all derive from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from ascend_dsv4.config.checks import Problems
from ascend_dsv4.config.options import Options, choice, integer, path_text, real, string

_MAX_TOKENS: Final = 1 << 40  # of all sequences together

# Every cache block holds whole entries of every compression ratio, and the widest entry covers this many tokens.
BLOCK_MULTIPLE: Final = 128

MAX_DRAFTS: Final = 16
_DEFAULT_DRAFTS: Final[Mapping[str, int]] = {"mtp": 1, "dspark": 5, "ngram": 4}


@dataclass(frozen=True, slots=True)
class EngineConfig(Options):
    """Options of one engine. Each field's metadata has its `help` text. Checked whenever one is made.

    A legal value is not a promise: a backend or implementation refuses what it cannot run with `UnsupportedError`.
    Raises `ConfigError` listing every bad value.
    """

    SOURCE: ClassVar[str] = "engine options"

    backend: Literal["cpu", "npu", "mindspore", "null"] = choice(
        "cpu", "where the model runs; null computes nothing and exercises the engine alone"
    )
    ops: str = string(
        "auto",
        "implementations of the operators: auto takes the fastest, reference the plain-torch ones, ascendc-twin the Ascend C "
        "kernels on the CPU where there is one, reference elsewhere",
        "the name of a set of implementations, without spaces",
    )
    dtype: Literal["float32", "bfloat16"] = choice("float32", "number format of activations")
    weights: Literal["released", "fp32", "bf16", "w8a8", "w4a8"] = choice(
        "released", "format of weights in memory; released keeps the stored fp8 and fp4 bytes and decodes them on use"
    )
    kv_cache: Literal["float32", "bf16", "packed"] = choice(
        "float32", "format of the caches; packed stores the model's own fp8 and fp4 codes"
    )
    cache_rounding: Literal["released", "off"] = choice(
        "released", "round cached keys and values as the model was trained to; off is plain maths"
    )
    max_model_len: int | None = integer(
        None, 1, 1 << 24, "tokens of the longest sequence, prompt and output", unset="the model's own limit"
    )
    max_num_seqs: int = integer(8, 1, 1 << 16, "sequences that run at the same time")
    max_num_waiting: int | None = integer(
        None, 0, 1 << 20, "requests that may wait for their turn; more are refused", unset="no limit"
    )
    max_num_batched_tokens: int = integer(512, 1, 1 << 20, "tokens computed in one step, of all sequences together")
    max_total_tokens: int | None = integer(
        None, 1, _MAX_TOKENS, "tokens held in the caches by all sequences together", unset="max_model_len"
    )
    block_size: int = integer(
        128,
        1,
        1 << 16,
        "tokens per block of the caches of compressed entries",
        multiple=(BLOCK_MULTIPLE, "a block holds whole entries, and the widest entry covers that many tokens"),
    )
    window_block_size: int = integer(32, 1, 1 << 16, "rows per block of the sliding-window cache")
    batch_bucket: int = integer(1, 1, 1 << 16, "the rows of a step are padded up to a multiple of this")
    engram_tier: Literal["checkpoint", "host", "shared", "mmap", "disk"] = choice(
        "checkpoint",
        "where n-gram tables are read: in the checkpoint as it lies, in memory, in memory that the processes of a host share, "
        "or in table files, mapped or through a row cache",
    )
    engram_tables: str | None = string(
        None, "folder of table files that `convert` wrote", "a folder", legal=path_text, unset="the tables of the checkpoint"
    )
    engram_cache_rows: int = integer(1 << 16, 1, 1 << 32, "rows per table that the disk tier keeps in memory")
    seed: int = integer(0, 0, (1 << 63) - 1, "seed of sampling for requests that bring none")
    speculative: Literal["none", "mtp", "dspark", "ngram"] = choice(
        "none",
        "draft tokens ahead and check several in one step, which changes no output: mtp and dspark run the checkpoint's "
        "draft stages, ngram looks up how the text went on before",
    )
    num_speculative_tokens: int | None = integer(
        None,
        1,
        MAX_DRAFTS,
        "tokens drafted ahead at most, if speculative is on",
        unset=", ".join(f"{count} for {method}" for method, count in _DEFAULT_DRAFTS.items()),
        because="more are hardly ever accepted, and every one costs rows of a step and of the caches",
    )
    speculative_threshold: float = real(
        0.0,
        0,
        1,
        "least chance of being accepted that dspark's confidence must give a draft together with those before it; 0 checks "
        "every draft",
        because="it is a probability",
    )

    @property
    def num_drafts(self) -> int:
        """Tokens drafted ahead at most; 0 without speculation."""
        if self.speculative == "none":
            return 0
        return self.num_speculative_tokens or _DEFAULT_DRAFTS[self.speculative]

    @classmethod
    def check_together(cls, values: Mapping[str, Any], sound: set[str], problems: Problems) -> None:
        """Packed caches hold rounded codes, the caches hold at least one sequence of full length, a step its drafts."""
        if values["kv_cache"] == "packed" and values["cache_rounding"] == "off":
            problems.add(
                "cache_rounding",
                "off",
                "'released' with kv_cache 'packed'",
                "packed caches hold the rounded codes and nothing else",
                "Set kv_cache to float32 or cache_rounding to released.",
            )
        longest, held = values["max_model_len"], values["max_total_tokens"]
        if {"max_model_len", "max_total_tokens"} <= sound and longest is not None and held is not None and held < longest:
            expected, because = f"at least max_model_len, {longest}", "one sequence of full length must fit"
            problems.add("max_total_tokens", held, expected, because, "Raise it or lower max_model_len.")
        method, budget = values["speculative"], values["max_num_batched_tokens"]
        if {"speculative", "num_speculative_tokens", "max_num_batched_tokens"} <= sound and method != "none":
            rows = 1 + (values["num_speculative_tokens"] or _DEFAULT_DRAFTS[method])
            if budget < 2 * rows:
                expected = f"at least {2 * rows}, twice the {rows} rows of a token and its drafts"
                because = "a request checks all its drafts in one step, beside the prompts of others"
                problems.add("max_num_batched_tokens", budget, expected, because, "Raise it or lower num_speculative_tokens.")
