# SPDX-License-Identifier: Apache-2.0
"""Tensor names: the released ones, and the ones transformers gives the same tensors.

Everything else in the package speaks released names. Two spellings come out of transformers: the module tree of
`DeepseekV4ForCausalLM` (what a `state_dict` holds; experts stacked), and what its `save_pretrained` writes, which
turns most of the tree back into released names but keeps the `model.` prefix. Both are read. transformers drops the
draft stages (`mtp.*`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, Literal

from ascend_dsv4.errors import CheckpointError
from ascend_dsv4.model.safetensors_file import TensorEntry

Layout = Literal["released", "transformers"]

DRAFT_PREFIX: Final = "mtp."

# released name -> spellings under transformers. Names ending with a dot are modules: their `weight` and scale move
# along. Prefix of the released side: `layers.<i>.` where the transformers side has `model.layers.<i>.`, none for the
# first rows.
_GLOBAL_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "embed.weight": ("model.embed_tokens.weight",),
    "head.weight": ("lm_head.weight",),
    "norm.weight": ("model.norm.weight",),
    "hc_head_fn": ("model.hc_head.hc_fn",),
    "hc_head_base": ("model.hc_head.hc_base",),
    "hc_head_scale": ("model.hc_head.hc_scale",),
}
_LAYER_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "hc_attn_fn": ("attn_hc.fn",),
    "hc_attn_base": ("attn_hc.base",),
    "hc_attn_scale": ("attn_hc.scale",),
    "hc_ffn_fn": ("ffn_hc.fn",),
    "hc_ffn_base": ("ffn_hc.base",),
    "hc_ffn_scale": ("ffn_hc.scale",),
    "attn_norm.": ("input_layernorm.",),
    "ffn_norm.": ("post_attention_layernorm.",),
    "attn.attn_sink": ("self_attn.sinks",),
    "attn.wq_a.": ("self_attn.q_a_proj.",),
    "attn.q_norm.": ("self_attn.q_a_norm.",),
    "attn.wq_b.": ("self_attn.q_b_proj.",),
    "attn.wkv.": ("self_attn.kv_proj.",),
    # save_pretrained of transformers 5.23 shortens this name, and only this one, to one that is neither side's
    "attn.kv_norm.": ("self_attn.kv_norm.", "attn.norm."),
    "attn.wo_a.": ("self_attn.o_a_proj.",),
    "attn.wo_b.": ("self_attn.o_b_proj.",),
    "attn.compressor.ape": ("self_attn.compressor.position_bias",),
    "attn.compressor.wkv.": ("self_attn.compressor.kv_proj.",),
    "attn.compressor.wgate.": ("self_attn.compressor.gate_proj.",),
    "attn.compressor.norm.": ("self_attn.compressor.kv_norm.",),
    "attn.indexer.wq_b.": ("self_attn.compressor.indexer.q_b_proj.",),
    "attn.indexer.weights_proj.": ("self_attn.compressor.indexer.scorer.weights_proj.",),
    "attn.indexer.compressor.ape": ("self_attn.compressor.indexer.position_bias",),
    "attn.indexer.compressor.wkv.": ("self_attn.compressor.indexer.kv_proj.",),
    "attn.indexer.compressor.wgate.": ("self_attn.compressor.indexer.gate_proj.",),
    "attn.indexer.compressor.norm.": ("self_attn.compressor.indexer.kv_norm.",),
    "ffn.gate.weight": ("mlp.gate.weight",),
    "ffn.gate.bias": ("mlp.gate.e_score_correction_bias",),
    "ffn.gate.tid2eid": ("mlp.gate.tid2eid",),
    "ffn.shared_experts.w1.": ("mlp.shared_experts.gate_proj.",),
    "ffn.shared_experts.w2.": ("mlp.shared_experts.down_proj.",),
    "ffn.shared_experts.w3.": ("mlp.shared_experts.up_proj.",),
}
# Stacked tensor -> released parts, in the order of the rows of one expert's slice.
_STACKED: Final[Mapping[str, tuple[str, ...]]] = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}
_LEAVES: Final[Mapping[str, str]] = {"weight": "weight", "scale": "scale", "weight_scale_inv": "scale"}

_RELEASED_OF_GLOBAL = {other: name for name, others in _GLOBAL_NAMES.items() for other in others}
_RELEASED_OF_LAYER = {other: name for name, others in _LAYER_NAMES.items() for other in (name, *others)}
_LAYER_PREFIX = re.compile(r"model\.(layers\.\d+\.)(.+)")
_EXPERT = re.compile(r"ffn\.experts\.\d+\.w[123]\.(weight|scale)")
_STACKED_EXPERTS = re.compile(r"mlp\.experts\.(gate_up_proj|down_proj)(_scale_inv)?")
_TRANSFORMERS_MARK = re.compile(r"model\.(hc_head\.|layers\.\d+\.(attn_hc\.|hc_attn_))")


def detect_layout(names: Iterable[str]) -> Layout:
    """Which spelling a checkpoint uses, from the hyper-connection tensors that every layer of this family has.

    Names of other families (V3.2 also has `model.layers.*`) count as released and stay as they are.
    """
    return "transformers" if any(_TRANSFORMERS_MARK.match(name) for name in names) else "released"


def released_name(name: str) -> str:
    """The released name of one tensor of a transformers checkpoint; a name outside the table is returned unchanged."""
    if name in _RELEASED_OF_GLOBAL:
        return _RELEASED_OF_GLOBAL[name]
    match = _LAYER_PREFIX.fullmatch(name)
    if match is None:
        return name
    prefix, rest = match.groups()
    if rest in _RELEASED_OF_LAYER or _EXPERT.fullmatch(rest):
        return prefix + _RELEASED_OF_LAYER.get(rest, rest)
    module, dot, leaf = rest.rpartition(".")
    if leaf in _LEAVES and module + dot in _RELEASED_OF_LAYER:
        return prefix + _RELEASED_OF_LAYER[module + dot] + _LEAVES[leaf]
    return name


def released_view(tensors: Mapping[str, TensorEntry], layout: Layout) -> dict[str, TensorEntry]:
    """The tensors of one file under released names. Stacked experts become one entry per expert, still in place.

    Rows of an expert and experts of a stack are contiguous, so a part is the same bytes with another offset and shape.
    raises  CheckpointError if two stored tensors claim one released name, or a stack is not [experts, rows, columns]
    """
    if layout == "released":
        return dict(tensors)
    view: dict[str, TensorEntry] = {}
    for stored, entry in tensors.items():
        for name, part in _released_parts(stored, entry):
            if name in view:
                raise CheckpointError(
                    f"tensor {stored!r}: {name!r} is stored a second time under another name, expected once, because "
                    "the two could differ. Remove one of them."
                )
            view[name] = part
    return view


def scale_name_candidates(weight: str) -> tuple[str, ...]:
    """Names that the scales of a quantised `X.weight` may have (`weight_scale_inv`: V3.2); () for other names."""
    stem, dot, leaf = weight.rpartition(".")
    return (f"{stem}.scale", f"{stem}.weight_scale_inv") if dot and leaf == "weight" else ()


def _released_parts(stored: str, entry: TensorEntry) -> Iterator[tuple[str, TensorEntry]]:
    match = _LAYER_PREFIX.fullmatch(stored)
    stack = _STACKED_EXPERTS.fullmatch(match[2]) if match else None
    if match is None or stack is None:
        yield released_name(stored), entry
        return
    parts = _STACKED[stack[1]]
    leaf = "scale" if stack[2] else "weight"
    if len(entry.shape) != 3 or entry.shape[0] == 0 or entry.shape[1] % len(parts):
        raise CheckpointError(
            f"tensor {stored!r}: got shape {list(entry.shape)}, expected [experts, rows, columns] with rows divisible "
            f"by {len(parts)}, because it stacks {' and '.join(parts)} of every expert. Save the checkpoint again."
        )
    num_experts, rows, columns = entry.shape
    num_bytes = entry.num_bytes // (num_experts * len(parts))
    for position in range(num_experts * len(parts)):
        expert, part = divmod(position, len(parts))
        yield (
            f"{match[1]}ffn.experts.{expert}.{parts[part]}.{leaf}",
            replace(
                entry,
                shape=(rows // len(parts), columns),
                offset=entry.offset + position * num_bytes,
                num_bytes=num_bytes,
            ),
        )
