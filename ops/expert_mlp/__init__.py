# SPDX-License-Identifier: Apache-2.0
"""The routed experts over rows grouped by expert: (weight · silu(min(gate, limit)) · clamp(up, ±limit)) · downᵀ.

rows         [num_rows, hidden_size], row_weights [num_rows] float32, counts [num_experts] int32 from `moe_dispatch`
w13          [num_experts, 2 · intermediate_size, hidden_size], gate rows first; w2 [num_experts, hidden_size,
             intermediate_size]; plain, or FP4 / FP8 with scales w13_scale, w2_scale and `block` as in `linear`, for each
             expert; blocks of w13 run over gate and up rows together, so one straddles both unless block₀ divides
             intermediate_size
limit        math.inf where nothing is clamped
The routing weight multiplies the hidden activation, before the down projection. Returns y [num_rows, hidden_size] in the
dtype of rows; rows past Σ counts hold nothing.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, INT, SCALE, WEIGHT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "expert_mlp",
        args={
            "rows": Arg(("num_rows", "hidden_size"), FLOAT),
            "row_weights": Arg(("num_rows",), ("float32",)),
            "counts": Arg(("num_experts",), INT),
            "w13": Arg(("num_experts", "gate_up_rows", "w13_columns"), WEIGHT),
            "w13_scale": Arg(("num_experts", "w13_scale_rows", "w13_scale_columns"), SCALE, optional=True),
            "w2": Arg(("num_experts", "hidden_size", "w2_columns"), WEIGHT),
            "w2_scale": Arg(("num_experts", "w2_scale_rows", "w2_scale_columns"), SCALE, optional=True),
        },
        outs={"y": Out(("num_rows", "hidden_size"), "=rows")},
        attrs={"block": "int[2]", "limit": "float"},
        tol={
            ("y", "float32"): Tolerance(1e-5, 1e-5, 1e-10),
            ("y", "bfloat16"): Tolerance(1e-3, 2 / 128, 5e-6),
            ("y", "float16"): Tolerance(1e-3, 2 / 1024, 5e-6),
        },
        rounds_inside=True,
        source="DeepSeek-V4 model definition, mixture of experts, step 4; DeepSeek-V3.2: no clamps, float32 scales",
    )
)
