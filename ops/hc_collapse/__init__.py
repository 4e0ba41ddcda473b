# SPDX-License-Identifier: Apache-2.0
"""Collapse the residual streams with given weights: x = Σ_n mix[n] · streams[n].

streams [num_tokens, hc_mult, hidden_size]; mix [num_tokens, hc_mult] float32, for delayed hyper-connections the `pre` of the
last `hc_pre`. Returns x [num_tokens, hidden_size] in the dtype of streams. float32 arithmetic in stream order, one rounding.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "hc_collapse",
        args={
            "streams": Arg(("num_tokens", "hc_mult", "hidden_size"), FLOAT),
            "mix": Arg(("num_tokens", "hc_mult"), ("float32",)),
        },
        outs={"x": Out(("num_tokens", "hidden_size"), "=streams")},
        tol={
            ("x", "float32"): Tolerance(1e-6, 1e-5, 1e-10),
            ("x", "bfloat16"): Tolerance(1e-3, 2 / 128, 5e-6),
            ("x", "float16"): Tolerance(1e-3, 2 / 1024, 5e-6),
        },
        source="DeepSeek-V4.1 model definition, delayed hyper-connections",
    )
)
