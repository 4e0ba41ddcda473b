# SPDX-License-Identifier: Apache-2.0
"""Fold every `ratio` tokens into one compressed entry, normalise, rotate and store it.

cache          [num_blocks, block_rows, head_dim], written in place: the entry closed by a token goes to that token's slot
state          [num_state_slots, state_rows, 2, width] float32, written in place: projections of the tokens still needed
               after this step, position p in row p mod state_rows; index 0 holds kv, index 1 gate + ape
kv, gate       [num_tokens, width] float32 projections of this step's tokens; width is 2·head_dim where windows overlap
               (first half: the role in the next entry, second half: in the current one), head_dim where they do not
ape            [ratio, width] float32, added to gate by position mod ratio
norm           [head_dim], weight of the entry's norm
cos, sin       [num_tokens, half] float32 at the first position of the window that the token closes
positions, req_idx  [num_tokens] int32; rows of a request are consecutive; -1 marks padding
cu_query_lens  [num_reqs + 1] int32, where each request's rows begin
state_slots    [num_reqs] int32
slots          [num_tokens] int32; ≥ 0 exactly for tokens that close an entry; -1 otherwise

Entry s covers positions s·ratio … s·ratio + ratio − 1, with overlap also the `ratio` positions before (absent for s = 0):
per channel a softmax of gate + ape over the covered tokens weighs their kv. It is a pure function of those rows, taken from
this step or from the state by absolute position. Then rounding to `entry_dtype`, rms_norm, rope, and `rounding` as in
`store_kv`. state_rows ≥ width/head_dim · ratio.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import CACHE, FLOAT, INT, Arg, OpSpec, Tolerance

SPEC = define(
    OpSpec(
        "compress_kv",
        args={
            "cache": Arg(("num_blocks", "block_rows", "head_dim"), CACHE),
            "state": Arg(("num_state_slots", "state_rows", 2, "width"), ("float32",)),
            "kv": Arg(("num_tokens", "width"), ("float32",)),
            "gate": Arg(("num_tokens", "width"), ("float32",)),
            "ape": Arg(("ratio", "width"), ("float32",)),
            "norm": Arg(("head_dim",), FLOAT),
            "cos": Arg(("num_tokens", "half"), ("float32",)),
            "sin": Arg(("num_tokens", "half"), ("float32",)),
            "positions": Arg(("num_tokens",), INT),
            "req_idx": Arg(("num_tokens",), INT),
            "cu_query_lens": Arg(("num_query_starts",), INT),
            "state_slots": Arg(("num_reqs",), INT),
            "slots": Arg(("num_tokens",), INT),
        },
        outs={},
        attrs={"ratio": "int", "eps": "float", "rounding": "str", "entry_dtype": "str"},
        mutates=("cache", "state"),
        tol={
            ("cache", "float32"): Tolerance(1e-5, 1e-5, 1e-10),
            ("cache", "bfloat16"): Tolerance(1e-3, 2 / 128, 5e-6),
            ("state", "float32"): Tolerance(1e-6, 1e-6, 1e-10),
        },
        rounds_inside=True,
        source="DeepSeek-V4 model definition, compressor; chunked prefill; cache state",
    )
)
