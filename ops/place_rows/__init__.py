# SPDX-License-Identifier: Apache-2.0
"""Put given rows in the place of token embeddings: what an image became stands where its tokens are.

streams  [num_tokens, hc_mult, hidden_size]
rows     [num_rows, hidden_size] float32
at       [num_rows] int32, the token each row replaces, no token twice; -1: none
Returns y [num_tokens, hc_mult, hidden_size] in the dtype of streams: the row in every stream of its token, all else unchanged.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import EXACT, FLOAT, INT, Arg, OpSpec, Out

SPEC = define(
    OpSpec(
        "place_rows",
        args={
            "streams": Arg(("num_tokens", "hc_mult", "hidden_size"), FLOAT),
            "rows": Arg(("num_rows", "hidden_size"), ("float32",)),
            "at": Arg(("num_rows",), INT),
        },
        outs={"y": Out(("num_tokens", "hc_mult", "hidden_size"), "=streams")},
        tol={("y", dtype): EXACT for dtype in FLOAT},
        source="DeepSeek-V4.1 model definition, token stream of images: spans of the embedding are overwritten",
    )
)
