# SPDX-License-Identifier: Apache-2.0
"""Layer normalisation over the last axis: (x − mean) · rsqrt(variance + eps) · weight + bias.

x [..., dim]; weight, bias [dim]. The variance is the mean of (x − mean)². Computed in float32 with one rounding to the dtype
of x at the end.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "layer_norm",
        args={"x": Arg(("...", "dim"), FLOAT), "weight": Arg(("dim",), FLOAT), "bias": Arg(("dim",), FLOAT)},
        outs={"y": Out(("...", "dim"), "=x")},
        attrs={"eps": "float"},
        tol={
            # Terms of magnitude 10 that cancel in y leave an error of 10 · 2^-23 = 1.2e-6, whatever y is.
            ("y", "float32"): Tolerance(2e-6, 1e-5, 1e-10),
            ("y", "bfloat16"): Tolerance(1e-3, 2 / 256, 5e-6),
            ("y", "float16"): Tolerance(1e-3, 2 / 2048, 5e-6),
        },
        source="DeepSeek-V3.2 lightning indexer: norm of the index keys",
    )
)
