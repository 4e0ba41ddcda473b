# SPDX-License-Identifier: Apache-2.0
"""Hyper-connection coefficients of a sub-layer, and its input: the weighted sum of the residual streams.

streams  [num_tokens, hc_mult, hidden_size]
fn       [(2 + hc_mult) · hc_mult, hc_mult · hidden_size] float32; base [(2 + hc_mult) · hc_mult]; scale [3]
mix      [num_tokens, hc_mult] float32 or None: the weights of x, where they are not this sub-layer's own (delayed
         hyper-connections take those of the sub-layer before)
Returns
x     [num_tokens, hidden_size], Σ_n mix[n] · streams[n], without mix Σ_n pre[n] · streams[n], in the dtype of streams
post  [num_tokens, hc_mult] float32, weight of the sub-layer's output in each stream
comb  [num_tokens, hc_mult, hc_mult] float32; comb[i, j] weighs old stream i into new stream j
pre   [num_tokens, hc_mult] float32, this sub-layer's own weights, whether or not x uses them

With z the flattened streams in float32 and u = (z · fnᵀ) · rsqrt(mean(z²) + norm_eps): pre = σ(u₀·scale₀ + base) + hc_eps,
post = 2σ(u₁·scale₁ + base), comb = row softmax(u₂·scale₂ + base) + hc_eps, then Sinkhorn: columns divided by their sum +
hc_eps, and `sinkhorn_iters` − 1 times rows, then columns. The last step is on columns.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "hc_pre",
        args={
            "streams": Arg(("num_tokens", "hc_mult", "hidden_size"), FLOAT),
            "fn": Arg(("num_coefficients", "flat_size"), ("float32",)),
            "base": Arg(("num_coefficients",), ("float32",)),
            "scale": Arg((3,), ("float32",)),
            "mix": Arg(("num_tokens", "hc_mult"), ("float32",), optional=True),
        },
        outs={
            "x": Out(("num_tokens", "hidden_size"), "=streams"),
            "post": Out(("num_tokens", "hc_mult"), "float32"),
            "comb": Out(("num_tokens", "hc_mult", "hc_mult"), "float32"),
            "pre": Out(("num_tokens", "hc_mult"), "float32"),
        },
        attrs={"sinkhorn_iters": "int", "hc_eps": "float", "norm_eps": "float"},
        tol={
            ("x", "float32"): Tolerance(1e-5, 1e-5, 1e-10),
            ("x", "bfloat16"): Tolerance(1e-3, 2 / 128, 5e-6),
            ("x", "float16"): Tolerance(1e-3, 2 / 1024, 5e-6),
            ("post", "float32"): Tolerance(1e-6, 1e-5, 1e-8),
            ("comb", "float32"): Tolerance(1e-6, 1e-5, 1e-8),
            ("pre", "float32"): Tolerance(1e-6, 1e-5, 1e-8),
        },
        source="DeepSeek-V4 model definition, hyper-connections, steps 1 to 6; V4.1, delayed hyper-connections",
    )
)
