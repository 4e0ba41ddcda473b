# SPDX-License-Identifier: Apache-2.0
"""Look up token embeddings and repeat them into the residual streams.

input_ids [num_tokens] int32 in [0, vocab_size); weight [vocab_size, hidden_size]; `hc_mult` streams.
Returns y [num_tokens, hc_mult, hidden_size] in `out_dtype`: every stream starts as the same row, unscaled.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import EXACT, FLOAT, INT, Arg, OpSpec, Out

SPEC = define(
    OpSpec(
        "embed",
        args={
            "input_ids": Arg(("num_tokens",), INT),
            "weight": Arg(("vocab_size", "hidden_size"), FLOAT),
        },
        outs={"y": Out(("num_tokens", "hc_mult", "hidden_size"), "@out_dtype")},
        attrs={"hc_mult": "int", "out_dtype": "str"},
        tol={("y", dtype): EXACT for dtype in FLOAT},
        source="DeepSeek-V4 model definition, forward overview: X = repeat(embed[ids], hc_mult)",
    )
)
