# SPDX-License-Identifier: Apache-2.0
"""The operators: one folder each with contract (`__init__.py`), plain-torch reference (`reference.py`) and cases (`cases.py`).

This module lists them and imports nothing else, so that reading a contract never loads a framework.
"""

if __name__ == "ops":
    raise ImportError(
        "the operator library is imported as `ascend_dsv4.ops`, never as `ops` (two names would mean two registries). "
        "Install the project with `pip install --use-pep517 -e .`; the legacy editable install does not map this folder."
    )

OP_NAMES = (
    "adjust_logits",
    "compress_kv",
    "concat",
    "embed",
    "engram_gate",
    "engram_rows",
    "expert_mlp",
    "gelu",
    "grouped_linear",
    "hc_collapse",
    "hc_head",
    "hc_post",
    "hc_pre",
    "index_topk",
    "layer_norm",
    "linear",
    "linear_bias",
    "logits",
    "merge_patches",
    "mla_attention",
    "moe_combine",
    "moe_dispatch",
    "place_rows",
    "pool_kv",
    "rms_norm",
    "rope",
    "route",
    "sample",
    "sparse_attention",
    "step_metadata",
    "store_kv",
    "store_state",
    "swiglu",
    "vision_block",
)
