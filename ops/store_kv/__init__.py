# SPDX-License-Identifier: Apache-2.0
"""Write rows into a paged cache.

cache     [num_blocks, block_rows, width], written in place
rows      [num_tokens, width]
slots     [num_tokens] int32, block · block_rows + row; -1 writes nothing
rounding  the grid the model stores this row on, one of ROUNDINGS:
          "none"
          "fp8"           E4M3, a power-of-two scale per 64 channels, on all but the last `rope_dim` channels
          "hadamard_fp4"  Hadamard transform, then as "fp4_b32"
          "fp8_b32"       E4M3, a power-of-two scale per 32 channels, on the whole row
          "fp4_b32"       E2M1, a power-of-two scale per 32 channels
          "fp4_b16_e4m3"  E2M1, an E4M3 scale of at most 448 per 16 channels; what exceeds 6 scales is clamped
Two tokens of a call never share a slot.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import CACHE, EXACT, FLOAT, INT, Arg, OpSpec

ROUNDINGS = ("none", "fp8", "hadamard_fp4", "fp8_b32", "fp4_b32", "fp4_b16_e4m3")

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
        source="DeepSeek-V4 and V4.1 model definitions, activation quantisation: what caches hold; and the cache formats",
    )
)
