# SPDX-License-Identifier: Apache-2.0
"""Rotation angles of a step's tokens, shared by all layers of one rotary table.

positions [num_tokens] int32, absolute and 0-based (-1 for padding); inv_freq [half] float32. `offset` is added to the
position first: 0 for queries and window keys, 1 − ratio for the compressed entry that a token closes.
Returns cos, sin [num_tokens, half] float32 of (position + offset) · inv_freq; the product is formed in float32.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import INT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "step_metadata",
        args={"positions": Arg(("num_tokens",), INT), "inv_freq": Arg(("half",), ("float32",))},
        outs={"cos": Out(("num_tokens", "half"), "float32"), "sin": Out(("num_tokens", "half"), "float32")},
        attrs={"offset": "int"},
        tol={("cos", "float32"): Tolerance(1e-6, 1e-5, 1e-10), ("sin", "float32"): Tolerance(1e-6, 1e-5, 1e-10)},
        source="DeepSeek-V4 model definition, rotary embedding: t·f in float32 from an integer t",
    )
)
