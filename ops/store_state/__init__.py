# SPDX-License-Identifier: Apache-2.0
"""Keep the projections of every request's last tokens, for groups that later steps close.

state          [num_state_slots, state_rows, 2, width] float32, written in place: position p in row p mod state_rows;
               index 0 holds kv, index 1 gate
kv, gate       [num_tokens, width] float32 projections of this step's tokens
positions, req_idx  [num_tokens] int32; rows of a request are consecutive; -1 marks padding, which is not written
cu_query_lens  [num_reqs + 1] int32, where each request's rows begin
state_slots    [num_reqs] int32
Of a request with more than state_rows tokens in the step the last state_rows are kept; rows of earlier steps stay until
their place is taken.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import EXACT, INT, Arg, OpSpec

SPEC = define(
    OpSpec(
        "store_state",
        args={
            "state": Arg(("num_state_slots", "state_rows", 2, "width"), ("float32",)),
            "kv": Arg(("num_tokens", "width"), ("float32",)),
            "gate": Arg(("num_tokens", "width"), ("float32",)),
            "positions": Arg(("num_tokens",), INT),
            "req_idx": Arg(("num_tokens",), INT),
            "cu_query_lens": Arg(("num_query_starts",), INT),
            "state_slots": Arg(("num_reqs",), INT),
        },
        outs={},
        mutates=("state",),
        tol={("state", "float32"): EXACT},
        source="DeepSeek-V4.1 model definition, compressor of ratio 2; cache state",
    )
)
