# SPDX-License-Identifier: Apache-2.0
"""Mix a sub-layer's output back into the residual streams: y[j] = post[j] · x + Σ_i comb[i, j] · streams[i].

x [num_tokens, hidden_size]; streams [num_tokens, hc_mult, hidden_size]; post [num_tokens, hc_mult] float32;
comb [num_tokens, hc_mult, hc_mult] float32, its first stream axis is summed over. float32 arithmetic, one rounding.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "hc_post",
        args={
            "x": Arg(("num_tokens", "hidden_size"), FLOAT),
            "streams": Arg(("num_tokens", "hc_mult", "hidden_size"), FLOAT),
            "post": Arg(("num_tokens", "hc_mult"), ("float32",)),
            "comb": Arg(("num_tokens", "hc_mult", "hc_mult"), ("float32",)),
        },
        outs={"y": Out(("num_tokens", "hc_mult", "hidden_size"), "=streams")},
        tol={
            ("y", "float32"): Tolerance(1e-6, 1e-5, 1e-10),
            ("y", "bfloat16"): Tolerance(1e-3, 2 / 128, 5e-6),
            ("y", "float16"): Tolerance(1e-3, 2 / 1024, 5e-6),
        },
        source="DeepSeek-V4 model definition, hyper-connections, step 7",
    )
)
