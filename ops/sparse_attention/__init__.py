# SPDX-License-Identifier: Apache-2.0
"""Attention of each query over its window rows and its compressed entries, in one softmax with a sink. Keys are the values.

q             [num_tokens, num_heads, head_dim]
win_kv        [num_window_blocks, window_block_rows, head_dim]
cmp_kv        [num_blocks, block_rows, head_dim], or None for a layer without compressed entries
entries       [num_tokens, topk] int32 from `index_topk`, -1 past the end; None means every visible entry
sink          [num_heads] float32, one extra logit per head without a value
positions, req_idx  [num_tokens] int32; -1 marks padding, whose output is zero
window_table  [num_reqs, window_columns] int32; position p lies in block p // window_block_rows, whose id stands in column
              (p // window_block_rows) mod window_columns
block_table   [num_reqs, max_blocks] int32, the same for entries; None with cmp_kv
Visible to position t: window rows max(0, t − window + 1) … t, and entries s < (t + 1) // ratio (of those, the chosen ones).
Returns o [num_tokens, num_heads, head_dim] in the dtype of q; float32 scores q · key · scale, softmax and sum.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import CACHE, FLOAT, INT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "sparse_attention",
        args={
            "q": Arg(("num_tokens", "num_heads", "head_dim"), FLOAT),
            "win_kv": Arg(("num_window_blocks", "window_block_rows", "head_dim"), CACHE),
            "cmp_kv": Arg(("num_blocks", "block_rows", "head_dim"), CACHE, optional=True),
            "entries": Arg(("num_tokens", "topk"), INT, optional=True),
            "sink": Arg(("num_heads",), ("float32",)),
            "positions": Arg(("num_tokens",), INT),
            "req_idx": Arg(("num_tokens",), INT),
            "window_table": Arg(("num_reqs", "window_columns"), INT),
            "block_table": Arg(("num_reqs", "max_blocks"), INT, optional=True),
        },
        outs={"o": Out(("num_tokens", "num_heads", "head_dim"), "=q")},
        attrs={"window": "int", "ratio": "int", "scale": "float"},
        tol={
            ("o", "float32"): Tolerance(1e-5, 1e-5, 1e-10),
            ("o", "bfloat16"): Tolerance(1e-3, 2 / 128, 5e-6),
            ("o", "float16"): Tolerance(1e-3, 2 / 1024, 5e-6),
        },
        source="DeepSeek-V4 model definition, attention common part, CSA and HCA",
    )
)
