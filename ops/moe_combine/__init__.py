# SPDX-License-Identifier: Apache-2.0
"""Add up each token's expert rows: y[t] = Σ_j rows[row_of[t, j]], in order of choice, in float32.

rows [num_rows, hidden_size] from `expert_mlp`; row_of [num_tokens, topk] int32 from `moe_dispatch`, -1 adds nothing.
Returns y [num_tokens, hidden_size] in the dtype of rows. Rows that no token names are never read into the sum.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, INT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "moe_combine",
        args={"rows": Arg(("num_rows", "hidden_size"), FLOAT), "row_of": Arg(("num_tokens", "topk"), INT)},
        outs={"y": Out(("num_tokens", "hidden_size"), "=rows")},
        tol={
            ("y", "float32"): Tolerance(1e-6, 1e-5, 1e-10),
            ("y", "bfloat16"): Tolerance(1e-3, 2 / 256, 5e-6),
            ("y", "float16"): Tolerance(1e-3, 2 / 2048, 5e-6),
        },
        source="DeepSeek-V4 model definition, mixture of experts, step 5",
    )
)
