# SPDX-License-Identifier: Apache-2.0
"""Pool every `ratio` consecutive tokens into one entry. Reads the state, writes nothing: `store_state` comes after it.

state          [num_state_slots, state_rows, 2, width] float32: projections of earlier tokens, position p in row
               p mod state_rows; index 0 holds kv, index 1 gate
kv, gate       [num_tokens, width] float32 projections of this step's tokens
positions, req_idx  [num_tokens] int32; rows of a request are consecutive; -1 marks padding
cu_query_lens  [num_reqs + 1] int32, where each request's rows begin
state_slots    [num_reqs] int32
Returns entries [num_tokens, width] in `entry_dtype`: at tokens that close a group, (position + 1) mod ratio = 0, per channel
a softmax of gate over the group's tokens weighs their kv, taken from this step or from the state by absolute position; zeros
at all others. state_rows ≥ ratio; more rows keep what a rollback of that many more tokens needs.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import INT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "pool_kv",
        args={
            "state": Arg(("num_state_slots", "state_rows", 2, "width"), ("float32",)),
            "kv": Arg(("num_tokens", "width"), ("float32",)),
            "gate": Arg(("num_tokens", "width"), ("float32",)),
            "positions": Arg(("num_tokens",), INT),
            "req_idx": Arg(("num_tokens",), INT),
            "cu_query_lens": Arg(("num_query_starts",), INT),
            "state_slots": Arg(("num_reqs",), INT),
        },
        outs={"entries": Out(("num_tokens", "width"), "@entry_dtype")},
        attrs={"ratio": "int", "entry_dtype": "str"},
        tol={
            ("entries", "float32"): Tolerance(1e-6, 1e-5, 1e-10),
            ("entries", "bfloat16"): Tolerance(1e-3, 2 / 128, 5e-6),
            ("entries", "float16"): Tolerance(1e-3, 2 / 1024, 5e-6),
        },
        source="DeepSeek-V4.1 model definition, compressor of ratio 2; cache state",
    )
)
