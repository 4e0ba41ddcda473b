# SPDX-License-Identifier: Apache-2.0
"""Squares of neighbouring patches side by side in one row, channel by channel.

x          [num_patches, dim] features of one image
patch_ids  [num_blocks, cells] int32: which patches a block holds, in reading order; −1 where the block reaches past the image
Returns y [num_blocks, dim · cells] in the dtype of x: y[b, c · cells + k] = x[patch_ids[b, k], c], and 0 for a patch of −1.
"""

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import FLOAT, INT, Arg, OpSpec, Out, Tolerance

SPEC = define(
    OpSpec(
        "merge_patches",
        args={"x": Arg(("num_patches", "dim"), FLOAT), "patch_ids": Arg(("num_blocks", "cells"), INT)},
        outs={"y": Out(("num_blocks", "dim*cells"), "=x")},
        tol={("y", dtype): Tolerance(0.0, 0.0, 1e-10) for dtype in ("float32", "bfloat16", "float16")},
        source="DeepSeek-V4.1 model definition, vision aligner",
    )
)
