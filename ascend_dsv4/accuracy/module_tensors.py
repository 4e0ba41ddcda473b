# SPDX-License-Identifier: Apache-2.0
"""Collect the tensors between a model's modules while plans run, under the names other implementations dump them by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ascend_dsv4.backend.base import Observer, RunNode
from ascend_dsv4.graph.ir import BUILTINS, Node
from ascend_dsv4.ops.index_topk.reference import gather_keys, index_scores
from ascend_dsv4.ops.registry import get_spec
from ascend_dsv4.ops.store_kv.reference import round_rows


@dataclass(frozen=True, slots=True)
class _Tap:
    """The n-th call of an operator inside one model function: an output, or an argument, and its name."""

    name: str
    op: str
    function: str
    call: int
    value: str


_LAYER_TAPS = (
    _Tap("attn_in", "rms_norm", "decoder_layer", 0, "y"),
    _Tap("attn_in_all", "rms_norm", "decoder_layer", 0, "y"),
    _Tap("attn_out", "hc_post", "decoder_layer", 0, "x"),
    _Tap("ffn_in", "rms_norm", "decoder_layer", 1, "y"),
    _Tap("ffn_in_all", "rms_norm", "decoder_layer", 1, "y"),
    _Tap("ffn_out", "hc_post", "decoder_layer", 1, "x"),
    _Tap("out_streams", "hc_post", "decoder_layer", 1, "y"),
    _Tap("gate.logits", "linear", "moe", 0, "y"),
    _Tap("gate.ids", "route", "moe", 0, "ids"),
    _Tap("gate.weights", "route", "moe", 0, "weights"),
    _Tap("indexer.topk", "index_topk", "choose_entries", 0, "entries"),
    # Around one plain residual, and with multi-head latent attention:
    _Tap("attn_in", "rms_norm", "plain_layer", 0, "y"),
    _Tap("attn_in_all", "rms_norm", "plain_layer", 0, "y"),
    _Tap("attn_out", "add", "plain_layer", 0, "right"),
    _Tap("ffn_in", "rms_norm", "plain_layer", 1, "y"),
    _Tap("ffn_in_all", "rms_norm", "plain_layer", 1, "y"),
    _Tap("ffn_out", "add", "plain_layer", 1, "right"),
    _Tap("out", "add", "plain_layer", 1, "y"),
    _Tap("indexer.k_normed", "layer_norm", "choose_tokens", 0, "y"),
    _Tap("indexer.topk", "index_topk", "choose_tokens", 0, "entries"),
    # With entries that layers share, and with n-gram tables:
    _Tap("compressor.latent", "rms_norm", "store_shared", 0, "y"),
    _Tap("engram.in_streams", "engram_gate", "read_memory", 0, "streams"),
    _Tap("engram.out_streams", "engram_gate", "read_memory", 0, "y"),
)  # fmt: skip
_HC_TAPS = tuple(
    _Tap(f"{part}_hc.{name}", "hc_pre", "hyper_connection", call, value)
    for call, part in enumerate(("attn", "ffn"))
    for name, value in (("collapsed", "x"), ("post", "post"), ("comb", "comb"))
)
_DELAYED_HC_TAPS = (
    *(_Tap(f"{part}_hc_{name}", "hc_pre", "hyper_connection", call, name)
      for call, part in enumerate(("attn", "ffn"))
      for name in ("pre", "post", "comb")),
    _Tap("out_pre_mix", "hc_pre", "hyper_connection", 1, "pre"),
)  # fmt: skip
_HEAD_TAPS = (
    _Tap("hc_head.out", "hc_head", "collapse", 0, "y"),
    _Tap("final_norm.out", "rms_norm", "head", 0, "y"),
)


class ModuleTensors:
    """Observers for every graph, and what they saw. One request at a time, without padding.

    `hc_delayed` says whether the model's hyper-connections are, whose coefficients go by other names.
    """

    def __init__(self, to_host: Callable[[Any], np.ndarray], *, hc_delayed: bool = False) -> None:
        self._to_host = to_host
        self._layer_taps = (*_LAYER_TAPS, *(_DELAYED_HC_TAPS if hc_delayed else _HC_TAPS))
        self._ratios: dict[str, int] = {}
        self._rows: dict[str, list[np.ndarray]] = {}
        self._entries: dict[str, np.ndarray] = {}

    def observer(self, where: int | str) -> Observer:
        """The observer of layer `where`, or of "embed", "head", …"""
        taps, prefix = (self._layer_taps, f"layer{where}.") if isinstance(where, int) else (_HEAD_TAPS, "")
        calls: dict[str, dict[tuple[str, str], int]] = {}
        numbers: dict[str, int] = {}

        def observe(node: Node, inputs: tuple[Tensor, ...], run: RunNode) -> tuple[Tensor, ...]:
            outputs = run(*inputs)
            function = node.scope.rpartition("/")[2]
            if node.name not in numbers:
                seen = calls.setdefault(prefix, {})
                numbers[node.name] = seen[node.op, function] = seen.get((node.op, function), -1) + 1
            for tap in taps:
                if (tap.op, tap.function, tap.call) == (node.op, function, numbers[node.name]):
                    tensor = _named(node, inputs, outputs)[tap.value]
                    self._rows.setdefault(prefix + tap.name, []).append(self._to_host(tensor).copy())
            if node.op == "index_topk":
                self._observe_indexer(prefix, node, inputs)
                self._observe_candidates(prefix, node, outputs)
            if node.op == "sparse_attention":
                self._observe_entries(f"{prefix}compressor.kv", node, inputs)
            return outputs

        return observe

    def result(self) -> dict[str, np.ndarray]:
        """All tensors: rows by position, entries and what they are made of by entry number."""
        joined = {name: _join(parts) for name, parts in self._rows.items()}
        for prefix, ratio in self._ratios.items():
            if (latent := f"{prefix}compressor.latent") in joined:
                joined[latent] = joined[latent][ratio - 1 :: ratio]  # rows of the tokens that close an entry
            if (candidates := f"{prefix}indexer.candidates") in joined:
                joined[candidates] = joined[candidates][:, : joined[f"{prefix}indexer.scores"].shape[1]]
        return joined | self._entries

    def _observe_entries(self, name: str, node: Node, inputs: tuple[Tensor, ...]) -> None:
        args = dict(zip(get_spec(node.op).args, inputs, strict=True))
        if args["cmp_kv"] is not None:
            count = int(args["positions"].max() + 1) // node.attrs["ratio"]
            self._entries[name] = self._to_host(gather_keys(args["cmp_kv"], args["block_table"][0], count)[:count])

    def _observe_indexer(self, prefix: str, node: Node, inputs: tuple[Tensor, ...]) -> None:
        args = dict(zip(get_spec(node.op).args, inputs, strict=True))
        self._ratios[prefix] = node.attrs["ratio"]
        visible = (args["positions"] + 1) // node.attrs["ratio"]
        count = int(visible.max())
        keys = gather_keys(args["idx_kv"], args["block_table"][0], count).float()
        self._entries[f"{prefix}indexer.kv"] = self._to_host(keys[:count])
        q = round_rows(args["q"], node.attrs["rounding"], 0).float()
        scores = torch.full((q.shape[0], count), -torch.inf)
        for t, seen in enumerate(visible.tolist()):
            if seen > 0:
                scores[t, :seen] = index_scores(q[t], args["weights"][t].float(), keys, seen)
        self._rows.setdefault(f"{prefix}indexer.scores", []).append(self._to_host(scores))

    def _observe_candidates(self, prefix: str, node: Node, outputs: tuple[Tensor, ...]) -> None:
        """Which entries lie in the blocks that a layer publishes: bool [num_tokens, entries of whole blocks]."""
        blocks = outputs[1]
        if blocks.shape[1]:
            numbers = torch.arange(int(blocks.max()) + 1)
            published = (blocks[:, :, None] == numbers).any(1).repeat_interleave(node.attrs["candidate_block"], 1)
            self._rows.setdefault(f"{prefix}indexer.candidates", []).append(self._to_host(published))


def _named(node: Node, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    if node.op in BUILTINS:
        return dict(zip(("left", "right"), inputs, strict=False)) | {"y": outputs[0]}
    spec = get_spec(node.op)
    return dict(zip(spec.args, inputs, strict=True)) | dict(zip(spec.outs, outputs, strict=True))


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Chunks below each other; rows of earlier chunks know fewer entries: scores are filled with -inf, masks with False."""
    width = max(part.shape[-1] for part in parts)
    return np.concatenate([_widened(part, width) for part in parts])


def _widened(part: np.ndarray, width: int) -> np.ndarray:
    if part.shape[-1] == width:
        return part
    missing = [(0, 0)] * (part.ndim - 1) + [(0, width - part.shape[-1])]
    return np.pad(part, missing, constant_values=False if part.dtype == bool else -np.inf)
