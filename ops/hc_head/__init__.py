# SPDX-License-Identifier: Apache-2.0
"""Collapse the residual streams after the last layer: y = Σ_n (σ(u[n] · scale + base[n]) + hc_eps) · streams[n].

streams [num_tokens, hc_mult, hidden_size]; fn [hc_mult, hc_mult · hidden_size]; base [hc_mult]; scale [1], all float32;
u as in `hc_pre`. Returns y [num_tokens, hidden_size]. No Sinkhorn here.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "hc_head",
        args={
            "streams": Arg(("num_tokens", "hc_mult", "hidden_size"), FLOAT),
            "fn": Arg(("hc_mult", "flat_size"), ("float32",)),
            "base": Arg(("hc_mult",), ("float32",)),
            "scale": Arg((1,), ("float32",)),
        },
        outs={"y": Out(("num_tokens", "hidden_size"), "=streams")},
        attrs={"hc_eps": "float", "norm_eps": "float"},
        tol={
            ("y", "float32"): Tolerance(1e-5, 1e-5, 1e-10),
            ("y", "bfloat16"): Tolerance(1e-3, 2 / 128, 5e-6),
            ("y", "float16"): Tolerance(1e-3, 2 / 1024, 5e-6),
        },
        source="DeepSeek-V4 model definition, hyper-connections, head collapse",
    )
)
