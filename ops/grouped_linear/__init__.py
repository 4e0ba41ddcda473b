# SPDX-License-Identifier: Apache-2.0
"""One matrix product per group: y[t, g] = x[t, g] · weight[g]ᵀ. The first half of the attention output projection.

x       [num_tokens, num_groups, in_features]
weight  [num_groups * out_per_group, in_features], rows of group g at g * out_per_group; dtypes and `scale`, `block` as in
        `linear`
Returns y [num_tokens, num_groups, out_per_group] in the dtype of x.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, SCALE, WEIGHT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "grouped_linear",
        args={
            "x": Arg(("num_tokens", "num_groups", "in_features"), FLOAT),
            "weight": Arg(("rows", "stored_columns"), WEIGHT),
            "scale": Arg(("scale_rows", "scale_columns"), SCALE, optional=True),
        },
        outs={"y": Out(("num_tokens", "num_groups", "rows//num_groups"), "=x")},
        attrs={"block": "int[2]"},
        tol={
            ("y", "float32"): Tolerance(1e-5, 1e-5, 1e-10),
            ("y", "bfloat16"): Tolerance(1e-3, 2 / 128, 5e-6),
            ("y", "float16"): Tolerance(1e-3, 2 / 1024, 5e-6),
        },
        source="DeepSeek-V4 model definition, attention common part: group projection wo_a",
    )
)
