# SPDX-License-Identifier: Apache-2.0
"""Write rows into a paged cache.

cache     [num_blocks, block_rows, width], written in place
rows      [num_tokens, width]
slots     [num_tokens] int32, block · block_rows + row; -1 writes nothing
rounding  the grid the model stores this row on: "none"; "fp8", E4M3 with one power-of-two scale per 64 channels on all but
          the last `rope_dim` channels; "hadamard_fp4", Hadamard transform, then E2M1 with one scale per 32 channels
Two tokens of a call never share a slot.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import CACHE, EXACT, FLOAT, INT, Arg, OpSpec

SPEC = define(
    OpSpec(
        "store_kv",
        args={
            "cache": Arg(("num_blocks", "block_rows", "width"), CACHE),
            "rows": Arg(("num_tokens", "width"), FLOAT),
            "slots": Arg(("num_tokens",), INT),
        },
        outs={},
        attrs={"rounding": "str", "rope_dim": "int"},
        mutates=("cache",),
        tol={("cache", dtype): EXACT for dtype in CACHE},
        source="DeepSeek-V4 model definition, activation quantisation: window KV; and the cache formats",
    )
)
