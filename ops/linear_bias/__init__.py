# SPDX-License-Identifier: Apache-2.0
"""Matrix product with a plain weight and a bias: x · weightᵀ + bias.

x [..., in_features]; weight [out_features, in_features]; bias [out_features]. Returns y [..., out_features] in `out_dtype`,
accumulated in float32, the bias added before the one rounding. For the quantised weights of the text model see `linear`.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "linear_bias",
        args={
            "x": Arg(("...", "in_features"), FLOAT),
            "weight": Arg(("out_features", "in_features"), FLOAT),
            "bias": Arg(("out_features",), FLOAT),
        },
        outs={"y": Out(("...", "out_features"), "@out_dtype")},
        attrs={"out_dtype": "str"},
        tol={
            ("y", "float32"): Tolerance(1e-5, 1e-5, 1e-10),
            ("y", "bfloat16"): Tolerance(1e-3, 2 / 128, 5e-6),
            ("y", "float16"): Tolerance(1e-3, 2 / 1024, 5e-6),
        },
        source="DeepSeek-V4.1 model definition, vision tower and aligner",
    )
)
