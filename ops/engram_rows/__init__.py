# SPDX-License-Identifier: Apache-2.0
"""Decode packed Engram rows and lay a token's rows side by side, in column order.

rows  [num_tokens, columns, row_bytes] uint8, each the codes of `head_dim` channels, then one scale byte per 32 of them.
      A scale byte b stands for 2^(b − 127), 255 for NaN.
Returns e [num_tokens, columns · head_dim] in `out_dtype`, which is "float32", "bfloat16", "float16" or "float64".

format   row_bytes                        channel c
"fp8"    head_dim + head_dim / 32         e4m3(byte c) · scale[c // 32]
"int8"   head_dim + head_dim / 32         int8(byte c) · scale[c // 32]
"int4"   head_dim / 2 + head_dim / 32     two's complement nibble · scale[c // 32]; even channels in the low nibble
"bf16"   2 · head_dim                     bfloat16, little-endian; no scales

head_dim is a multiple of 32, in "bf16" any. Decoding is exact in float32 and in bfloat16, barring their exponent range:
no code has more than eight significant bits. Raises ShapeError for another format, or rows of another length.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import BYTE, EXACT, FLOAT, Arg, OpSpec, Out

SPEC = define(
    OpSpec(
        "engram_rows",
        args={"rows": Arg(("num_tokens", "columns", "row_bytes"), BYTE)},
        outs={"e": Out(("num_tokens", "columns*head_dim"), "@out_dtype")},
        attrs={"format": "str", "head_dim": "int", "out_dtype": "str"},
        tol={("e", dtype): EXACT for dtype in FLOAT},
        source="DeepSeek-V4.1 model definition, number formats: Engram row; int8 and int4 are formats of this project",
    )
)
