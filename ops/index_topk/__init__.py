# SPDX-License-Identifier: Apache-2.0
"""Lightning indexer: score every visible compressed entry of each query and keep the best `topk`; for selection in two
levels also the best blocks of entries, which later calls of the same step choose from.

q            [num_tokens, num_heads, head_dim], rotated; weights [num_tokens, num_heads], already scaled
idx_kv       [num_blocks, block_rows, head_dim], index keys
positions, req_idx  [num_tokens] int32; -1 marks padding
block_table  [num_reqs, max_blocks] int32; entry s of a request lies in block s // block_rows of its row
candidates   [num_tokens, num_given] int32 or None: the only blocks that entries may be chosen from, ascending, then -1;
             entry s is in block s // candidate_block
Entry s is visible to position t iff s < (t + 1) // ratio. score = Σ_h weights[h] · relu(q[h] · key); NaN counts as lowest.
`rounding` is what was applied to the keys ("none", "hadamard_fp4" or "fp4_b32", see `store_kv`) and is applied to q too.
Returns
entries  [num_tokens, topk] int32: the chosen entry numbers ascending, then -1. Equal scores: the lower entry wins
blocks   [num_tokens, num_candidates] int32: the block of the newest visible entry and the others with the highest scores, a
         block's score being the highest of its visible entries; ascending, then -1. Equal scores: the lower block wins.
         `candidates` does not restrict them
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
            "candidates": Arg(("num_tokens", "num_given"), INT, optional=True),
        },
        outs={"entries": Out(("num_tokens", "topk"), "int32"), "blocks": Out(("num_tokens", "num_candidates"), "int32")},
        attrs={"ratio": "int", "topk": "int", "rounding": "str", "candidate_block": "int", "num_candidates": "int"},
        choices={"entries": 1e-5, "blocks": 1e-5},
        source="DeepSeek-V4 model definition, lightning indexer and selection; V4.1, two-level selection",
    )
)
