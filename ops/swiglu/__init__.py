# SPDX-License-Identifier: Apache-2.0
"""Gated activation with clamps: silu(min(gate, limit)) · clamp(up, −limit, limit).

gate, up [..., dim]. The gate is bounded from above only; a `limit` of math.inf bounds nothing, and NaN stays NaN. Computed in
float32, one rounding to the dtype of `gate`.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "swiglu",
        args={"gate": Arg(("...", "dim"), FLOAT), "up": Arg(("...", "dim"), FLOAT)},
        outs={"y": Out(("...", "dim"), "=gate")},
        attrs={"limit": "float"},
        tol={
            ("y", "float32"): Tolerance(1e-6, 1e-5, 1e-10),
            ("y", "bfloat16"): Tolerance(1e-3, 2 / 256, 5e-6),
            ("y", "float16"): Tolerance(1e-3, 2 / 2048, 5e-6),
        },
        source="DeepSeek-V4 model definition, mixture of experts, step 4; DeepSeek-V3.2: no clamps",
    )
)
