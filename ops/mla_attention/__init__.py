# SPDX-License-Identifier: Apache-2.0
"""Attention of each query over the latent rows of its request: one key for all heads, whose first channels are the value.

q            [num_tokens, num_heads, width], absorbed queries: the latent channels, then the rotated ones
mla_kv       [num_blocks, block_rows, width], one row per token
entries      [num_tokens, topk] int32 from `index_topk` with ratio 1, -1 past the end; None means every visible row
positions, req_idx  [num_tokens] int32; -1 marks padding
block_table  [num_reqs, max_blocks] int32; row s of a request lies in block s // block_rows of its table
Row s is visible to position t iff s ≤ t. Scores q · row · scale over all channels, softmax without a sink, and the sum of the
rows' first `value_dim` channels, in float32.
Returns o [num_tokens, num_heads, value_dim] in the dtype of q; zeros in padding, and where no row was chosen.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import CACHE, FLOAT, INT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "mla_attention",
        args={
            "q": Arg(("num_tokens", "num_heads", "width"), FLOAT),
            "mla_kv": Arg(("num_blocks", "block_rows", "width"), CACHE),
            "entries": Arg(("num_tokens", "topk"), INT, optional=True),
            "positions": Arg(("num_tokens",), INT),
            "req_idx": Arg(("num_tokens",), INT),
            "block_table": Arg(("num_reqs", "max_blocks"), INT),
        },
        outs={"o": Out(("num_tokens", "num_heads", "value_dim"), "=q")},
        attrs={"value_dim": "int", "scale": "float"},
        tol={
            ("o", "float32"): Tolerance(1e-5, 1e-5, 1e-10),
            ("o", "bfloat16"): Tolerance(1e-3, 2 / 128, 5e-6),
            ("o", "float16"): Tolerance(1e-3, 2 / 1024, 5e-6),
        },
        source="DeepSeek-V3.2: multi-head latent attention, absorbed form; sparse selection",
    )
)
