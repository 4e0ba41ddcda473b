# SPDX-License-Identifier: Apache-2.0
"""One block of the vision tower over the patches of one image: x + attention(norm(x)), then the same with the gated MLP.

x             [num_patches, dim]; dim = num_heads · head_dim
norm1, norm2  [dim] weights of the root-mean-square norms, with `eps`
wqkv, bqkv    [3 · dim, dim], [3 · dim]: query rows, key rows, value rows, each head by head
wo, bo        [dim, dim], [dim]
w1            [2 · inter, dim]: gate rows, then up rows; silu(gate) · up
w2            [dim, inter]
cos, sin      [num_patches, head_dim / 2] float32: queries and keys are turned by halves, (a, b) → (a·cos − b·sin,
              b·cos + a·sin) with a the first half of a head and b the second
Returns y [num_patches, dim] in the dtype of x.

Every patch attends to every other, scale head_dim^-0.5, without a mask. So a row depends on all rows of the call, unlike in
the other operators; since a call is one image, images never depend on each other. Computed in float32; rounded to the dtype
of x where the model keeps activations: after each norm, projection, rotation, attention, activation and residual sum.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "vision_block",
        args={
            "x": Arg(("num_patches", "dim"), FLOAT),
            "norm1": Arg(("dim",), FLOAT),
            "wqkv": Arg(("qkv_dim", "dim"), FLOAT),
            "bqkv": Arg(("qkv_dim",), FLOAT),
            "wo": Arg(("dim", "dim"), FLOAT),
            "bo": Arg(("dim",), FLOAT),
            "norm2": Arg(("dim",), FLOAT),
            "w1": Arg(("gate_up_dim", "dim"), FLOAT),
            "w2": Arg(("dim", "inter"), FLOAT),
            "cos": Arg(("num_patches", "half"), ("float32",)),
            "sin": Arg(("num_patches", "half"), ("float32",)),
        },
        outs={"y": Out(("num_patches", "dim"), "=x")},
        attrs={"num_heads": "int", "eps": "float"},
        tol={
            ("y", "float32"): Tolerance(2e-5, 2e-5, 1e-9),
            ("y", "bfloat16"): Tolerance(2e-2, 2 / 128, 1e-5),
            ("y", "float16"): Tolerance(4e-3, 2 / 512, 1e-6),
        },
        rounds_inside=True,
        source="DeepSeek-V4.1 model definition, vision tower",
    )
)
