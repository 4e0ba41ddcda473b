# SPDX-License-Identifier: Apache-2.0
"""Vocabulary scores of chosen rows: x[rows] · weightᵀ in float32.

x [num_tokens, hidden_size]; weight [vocab_size, hidden_size]; rows [num_rows] int32, indices into x.
Returns y [num_rows, vocab_size] float32. No bias, scale or soft cap.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, INT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "logits",
        args={
            "x": Arg(("num_tokens", "hidden_size"), FLOAT),
            "weight": Arg(("vocab_size", "hidden_size"), FLOAT),
            "rows": Arg(("num_rows",), INT),
        },
        outs={"y": Out(("num_rows", "vocab_size"), "float32")},
        tol={("y", "float32"): Tolerance(1e-5, 1e-5, 1e-10)},
        source="DeepSeek-V4 model definition, forward overview: float32 GEMM on the upcast head",
    )
)
