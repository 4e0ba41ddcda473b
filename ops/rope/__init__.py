# SPDX-License-Identifier: Apache-2.0
"""Rotate the last 2·half channels of each head by interleaved pairs: (a, b) → (a·cos − b·sin, a·sin + b·cos).

x [num_tokens, ..., head_dim]; cos, sin [num_tokens, half] float32 from `step_metadata`. Pair i is channels
(head_dim − 2·half + 2i, … + 2i + 1); the channels before them pass through. `inverse` rotates by the opposite angle.
Computed in float32, one rounding to the dtype of x.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "rope",
        args={
            "x": Arg(("num_tokens", "...", "head_dim"), FLOAT),
            "cos": Arg(("num_tokens", "half"), ("float32",)),
            "sin": Arg(("num_tokens", "half"), ("float32",)),
        },
        outs={"y": Out(("num_tokens", "...", "head_dim"), "=x")},
        attrs={"inverse": "bool"},
        tol={
            ("y", "float32"): Tolerance(1e-6, 1e-5, 1e-10),
            ("y", "bfloat16"): Tolerance(1e-3, 2 / 256, 5e-6),
            ("y", "float16"): Tolerance(1e-3, 2 / 2048, 5e-6),
        },
        source="DeepSeek-V4 model definition, rotary embedding",
    )
)
