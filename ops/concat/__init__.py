# SPDX-License-Identifier: Apache-2.0
"""Put two tensors beside each other along the last axis.

x [..., left], y [..., right] of one dtype, equal in all other axes.
Returns z [..., left + right]: the channels of x, then those of y, unchanged.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import EXACT, FLOAT, Arg, OpSpec, Out

SPEC = define(
    OpSpec(
        "concat",
        args={"x": Arg(("...", "left"), FLOAT), "y": Arg(("...", "right"), FLOAT)},
        outs={"z": Out(("...", "left+right"), "=x")},
        tol={("z", dtype): EXACT for dtype in FLOAT},
        source="DeepSeek-V3.2 model definition, latent attention: rows are a latent part and a rotated part",
    )
)
