# SPDX-License-Identifier: Apache-2.0
"""Copy each token's row once per chosen expert, grouped by expert.

x [num_tokens, hidden_size]; ids, weights [num_tokens, topk] from `route`, id -1 sends nothing.
Returns a fixed tuple, M = num_tokens · topk:
rows         [M, hidden_size], rows of expert 0 first, within an expert in order of token, then of choice
row_weights  [M] float32
counts       [num_experts] int32, rows of each expert
row_of       [num_tokens, topk] int32, where each choice's row stands; -1 for id -1
Rows past Σ counts hold nothing: readers must not use them.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import EXACT, FLOAT, INT, Arg, OpSpec, Out

SPEC = define(
    OpSpec(
        "moe_dispatch",
        args={
            "x": Arg(("num_tokens", "hidden_size"), FLOAT),
            "ids": Arg(("num_tokens", "topk"), INT),
            "weights": Arg(("num_tokens", "topk"), ("float32",)),
        },
        outs={
            "rows": Out(("num_tokens*topk", "hidden_size"), "=x"),
            "row_weights": Out(("num_tokens*topk",), "float32"),
            "counts": Out(("num_experts",), "int32"),
            "row_of": Out(("num_tokens", "topk"), "int32"),
        },
        attrs={"num_experts": "int"},
        tol={**{("rows", dtype): EXACT for dtype in FLOAT}, ("row_weights", "float32"): EXACT},
        source="DeepSeek-V4 model definition, mixture of experts, step 5: one contribution per choice",
    )
)
