# SPDX-License-Identifier: Apache-2.0
"""Rotate 2·half channels of each head, from channel `start` on, in pairs: (a, b) → (a·cos − b·sin, a·sin + b·cos).

x [num_tokens, ..., head_dim]; cos, sin [num_tokens, half] float32 from `step_metadata`. `layout` says which channels make
pair i: start + 2i and start + 2i + 1 for "adjacent", start + i and start + half + i for "halves". All other channels pass
through. `inverse` rotates by the opposite angle. Computed in float32, one rounding to the dtype of x.
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
        attrs={"inverse": "bool", "start": "int", "layout": "str"},
        tol={
            ("y", "float32"): Tolerance(1e-6, 1e-5, 1e-10),
            ("y", "bfloat16"): Tolerance(1e-3, 2 / 256, 5e-6),
            ("y", "float16"): Tolerance(1e-3, 2 / 2048, 5e-6),
        },
        source="DeepSeek-V4 model definition, rotary embedding; DeepSeek-V3.2 lightning indexer for halves",
    )
)
