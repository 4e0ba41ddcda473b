# SPDX-License-Identifier: Apache-2.0
"""Matrix product x · weightᵀ with a plain or a quantised weight.

x       [..., in_features]
weight  [out_features, in_features] float; or float8_e4m3fn codes with one scale per `block`; or int8
        [out_features, in_features / 2], two FP4 codes a byte (low nibble first) with one scale per 32 inputs
scale   uint8 power-of-two exponents (value 2^(b - 127)): [⌈out/block₀⌉, ⌈in/block₁⌉] for FP8, [out, in/32] for FP4; for FP8
        also float32 factors; None for a plain weight
block   rows and columns of one FP8 scale; (1, 1) where there is none
A stored weight stands for code · scale, rounded to float32 where the scale is no power of two.
Returns y [..., out_features] in `out_dtype`, accumulated in float32. Activations are never quantised here.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, SCALE, WEIGHT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "linear",
        args={
            "x": Arg(("...", "in_features"), FLOAT),
            "weight": Arg(("out_features", "stored_columns"), WEIGHT),
            "scale": Arg(("scale_rows", "scale_columns"), SCALE, optional=True),
        },
        outs={"y": Out(("...", "out_features"), "@out_dtype")},
        attrs={"block": "int[2]", "out_dtype": "str"},
        tol={
            ("y", "float32"): Tolerance(1e-5, 1e-5, 1e-10),
            ("y", "bfloat16"): Tolerance(1e-3, 2 / 128, 5e-6),
            ("y", "float16"): Tolerance(1e-3, 2 / 1024, 5e-6),
        },
        source="DeepSeek-V4 model definition, sections on dequantisation and attention: Linear(x) = x·Wᵀ; "
        "DeepSeek-V3.2: float32 scales",
    )
)
