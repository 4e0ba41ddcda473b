# SPDX-License-Identifier: Apache-2.0
"""Gaussian error linear unit, exact form: x · (1 + erf(x / √2)) / 2, element by element.

x [..., dim]. Computed in float32, one rounding to the dtype of x.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "gelu",
        args={"x": Arg(("...", "dim"), FLOAT)},
        outs={"y": Out(("...", "dim"), "=x")},
        tol={
            ("y", "float32"): Tolerance(1e-6, 1e-5, 1e-10),
            ("y", "bfloat16"): Tolerance(1e-3, 2 / 256, 5e-6),
            ("y", "float16"): Tolerance(1e-3, 2 / 2048, 5e-6),
        },
        source="DeepSeek-V4.1 model definition, vision aligner",
    )
)
