# SPDX-License-Identifier: Apache-2.0
"""Root-mean-square normalisation over the last axis: x · rsqrt(mean(x²) + eps) · weight.

x [..., dim]; weight [dim], or None for the unweighted norm of the query heads. Computed in float32 with one rounding to
the dtype of x at the end (the weight multiplies before that rounding).
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "rms_norm",
        args={"x": Arg(("...", "dim"), FLOAT), "weight": Arg(("dim",), FLOAT, optional=True)},
        outs={"y": Out(("...", "dim"), "=x")},
        attrs={"eps": "float"},
        tol={
            ("y", "float32"): Tolerance(1e-6, 1e-5, 1e-10),
            ("y", "bfloat16"): Tolerance(1e-3, 2 / 256, 5e-6),
            ("y", "float16"): Tolerance(1e-3, 2 / 2048, 5e-6),
        },
        source="DeepSeek-V4 model definition, notation: rms_w(x)",
    )
)
