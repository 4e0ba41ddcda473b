# SPDX-License-Identifier: Apache-2.0
"""Collect the tensors between a model's modules while plans run, under the names other implementations dump them by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ascend_dsv4.backend.base import Observer
from ascend_dsv4.graph.ir import Node
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
    *(_Tap(f"{part}_hc.{name}", "hc_pre", "hyper_connection", call, value)
      for call, part in enumerate(("attn", "ffn"))
      for name, value in (("collapsed", "x"), ("post", "post"), ("comb", "comb"))),
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
)  # fmt: skip
_HEAD_TAPS = (
    _Tap("hc_head.out", "hc_head", "collapse", 0, "y"),
    _Tap("final_norm.out", "rms_norm", "head", 0, "y"),
)


class ModuleTensors:
    """Observers for every graph, and what they saw. One request at a time, without padding."""

    def __init__(self, to_host: Callable[[Any], np.ndarray]) -> None:
        self._to_host = to_host
        self._rows: dict[str, list[np.ndarray]] = {}
        self._entries: dict[str, np.ndarray] = {}

    def observer(self, where: int | str) -> Observer:
        """The observer of layer `where`, or of "embed", "head", …"""
        taps, prefix = (_LAYER_TAPS, f"layer{where}.") if isinstance(where, int) else (_HEAD_TAPS, "")
        calls: dict[str, dict[tuple[str, str], int]] = {}
        numbers: dict[str, int] = {}

        def observe(node: Node, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
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
            if node.op == "sparse_attention":
                self._observe_entries(f"{prefix}compressor.kv", node, inputs)

        return observe

    def result(self) -> dict[str, np.ndarray]:
        """All tensors: rows by position, compressed entries by entry number."""
        return {name: _join(parts) for name, parts in self._rows.items()} | self._entries

    def _observe_entries(self, name: str, node: Node, inputs: tuple[Tensor, ...]) -> None:
        args = dict(zip(get_spec(node.op).args, inputs, strict=True))
        if args["cmp_kv"] is not None:
            count = int(args["positions"].max() + 1) // node.attrs["ratio"]
            self._entries[name] = self._to_host(gather_keys(args["cmp_kv"], args["block_table"][0], count)[:count])

    def _observe_indexer(self, prefix: str, node: Node, inputs: tuple[Tensor, ...]) -> None:
        args = dict(zip(get_spec(node.op).args, inputs, strict=True))
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


def _named(node: Node, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    spec = get_spec(node.op)
    return dict(zip(spec.args, inputs, strict=True)) | dict(zip(spec.outs, outputs, strict=True))


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Chunks below each other; score rows of earlier chunks know fewer entries and are filled with -inf."""
    width = max(part.shape[-1] for part in parts)
    padded = [
        np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, width - part.shape[-1])], constant_values=-np.inf)
        if part.shape[-1] < width
        else part
        for part in parts
    ]
    return np.concatenate(padded)
