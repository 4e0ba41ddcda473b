# SPDX-License-Identifier: Apache-2.0
"""Which layer may read what of another: every source runs before its readers and folds the same number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

MAX_RATIO: Final = 128
_V4_RATIOS: Final = (0, 4, 128)
_V41_RATIOS: Final = (0, 1, 2)

Rule = tuple[str, Callable[..., bool], str, str]
"""Names of values (the first is the one reported), the test, what is expected and why."""


def source_of(layer: int, sources: Sequence[int]) -> int | None:
    """The last of `sources` at or before `layer`."""
    return max((source for source in sources if source <= layer), default=None)


def _readers_fit(ratios: Sequence[int], sources: Sequence[int]) -> bool:
    """Every layer with entries has a source at or before it with its own ratio."""
    found = [(ratio, source_of(layer, sources)) for layer, ratio in enumerate(ratios) if ratio]
    return all(source is not None and source < len(ratios) and ratios[source] == ratio for ratio, source in found)


def _is_ascending(layers: Sequence[int]) -> bool:
    return list(layers) == sorted({*layers})


SOURCE_RULES: Final[tuple[Rule, ...]] = (
    ("compress_ratios hc_delayed mla", lambda ratios, delayed, mla: mla is not None
     or {*ratios} <= {*(_V41_RATIOS if delayed else _V4_RATIOS)},
     f"{_V4_RATIOS} in V4, {_V41_RATIOS} in V4.1", "no release folds another number of tokens"),
    *((f"{name} hc_delayed", lambda layers, delayed: delayed or not layers,
       "no layers but in V4.1", "in other families each layer has its own entries and selection")
      for name in ("kv_source_layer_ids", "index_source_layer_ids")),
    *((name, _is_ascending, "distinct layers in ascending order", "a layer reads the last source before it")
      for name in ("kv_source_layer_ids", "index_source_layer_ids")),
    ("kv_source_layer_ids compress_ratios hc_delayed",
     lambda sources, ratios, delayed: not delayed or _readers_fit(ratios, sources),
     "a source with the same ratio at or before every layer with a ratio", "layers read the entries of an earlier one"),
    ("kv_source_layer_ids compress_ratios",
     lambda sources, ratios: all(source < len(ratios) and ratios[source] for source in sources),
     "layers with a ratio", "a source writes entries"),
    ("kv_source_layer_ids index_source_layer_ids", lambda sources, index: {*sources} <= {*index},
     "also index sources", "a layer that writes index keys selects by them"),
    ("index_source_layer_ids kv_source_layer_ids compress_ratios",
     lambda index, sources, ratios: all(
         layer < len(ratios) and ratios[layer] and source_of(layer, sources) is not None for layer in index),
     "layers with a ratio and a kv source at or before them", "a selection is made over that source's entries"),
    ("candidates index_source_layer_ids",
     lambda candidates, index: candidates is None or candidates.source_layer_id in index,
     "a source layer that is an index source", "candidates come out of its scores"),
    ("candidates index_topk", lambda candidates, topk: candidates is None
     or candidates.topk_blocks * candidates.block_size >= topk,
     "blocks that hold at least index_topk entries", "a selection inside them must find its number"),
)  # fmt: skip
