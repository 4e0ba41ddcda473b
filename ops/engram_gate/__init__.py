# SPDX-License-Identifier: Apache-2.0
"""Add what a token's Engram rows say to the residual streams, each stream through a gate of its own.

streams   [num_tokens, hc_mult, hidden_size]
kv        [num_tokens, (hc_mult + 1) · hidden_size]: a key per stream, then the value that all streams share
q_weight, k_weight  [hc_mult, hidden_size], norm weights; only their product matters
is_image  [num_tokens] int32 or None; where it is not 0 the streams pass unchanged
Returns y [num_tokens, hc_mult, hidden_size] in the dtype of streams.

Per stream: dot = Σ h · q_weight · k_weight · key / (rms(h) · rms(key) · √hidden_size) with rms(x) = √(mean(x²) + eps),
gate = σ(sign(dot) · √max(|dot|, 1e-6)), y = h + gate · value. `sign_of_zero`: the sign of ±0 is ±1 (V4.1: gate 0.50025 at
+0), else 0 (the original paper: gate 0.5). float32 arithmetic, one rounding. Raises ShapeError for kv of another width.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, INT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "engram_gate",
        args={
            "streams": Arg(("num_tokens", "hc_mult", "hidden_size"), FLOAT),
            "kv": Arg(("num_tokens", "kv_size"), FLOAT),
            "q_weight": Arg(("hc_mult", "hidden_size"), FLOAT),
            "k_weight": Arg(("hc_mult", "hidden_size"), FLOAT),
            "is_image": Arg(("num_tokens",), INT, optional=True),
        },
        outs={"y": Out(("num_tokens", "hc_mult", "hidden_size"), "=streams")},
        attrs={"eps": "float", "sign_of_zero": "bool"},
        tol={
            ("y", "float32"): Tolerance(1e-5, 1e-5, 1e-10),
            ("y", "bfloat16"): Tolerance(1e-3, 2 / 128, 5e-6),
            ("y", "float16"): Tolerance(1e-3, 2 / 1024, 5e-6),
        },
        source="DeepSeek-V4.1 model definition, Engram module; arXiv 2601.07372 for the sign of zero",
    )
)
