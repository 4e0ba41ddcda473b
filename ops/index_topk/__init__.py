# SPDX-License-Identifier: Apache-2.0
"""Lightning indexer: score every visible compressed entry of each query and keep the best `topk`.

q            [num_tokens, num_heads, head_dim], rotated; weights [num_tokens, num_heads], already scaled
idx_kv       [num_blocks, block_rows, head_dim], index keys
positions, req_idx  [num_tokens] int32; -1 marks padding
block_table  [num_reqs, max_blocks] int32; entry s of a request lies in block s // block_rows of its row
Entry s is visible to position t iff s < (t + 1) // ratio. score = Σ_h weights[h] · relu(q[h] · key). `rounding` is what was
applied to the keys ("none" or "hadamard_fp4") and is applied to q too.
Returns entries [num_tokens, topk] int32: the chosen entry numbers ascending, then -1. Equal scores: the lower entry wins.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import CACHE, FLOAT, INT, Arg, OpSpec, Out

SPEC = define(
    OpSpec(
        "index_topk",
        args={
            "q": Arg(("num_tokens", "num_heads", "head_dim"), FLOAT),
            "weights": Arg(("num_tokens", "num_heads"), FLOAT),
            "idx_kv": Arg(("num_blocks", "block_rows", "head_dim"), CACHE),
            "positions": Arg(("num_tokens",), INT),
            "req_idx": Arg(("num_tokens",), INT),
            "block_table": Arg(("num_reqs", "max_blocks"), INT),
        },
        outs={"entries": Out(("num_tokens", "topk"), "int32")},
        attrs={"ratio": "int", "topk": "int", "rounding": "str"},
        source="DeepSeek-V4 model definition, lightning indexer and selection",
    )
)
