# SPDX-License-Identifier: Apache-2.0
"""Penalties, biases and bans on logits, before `sample` draws from them.

logits      [num_rows, vocab_size] float32
rows, ids   [num_adjustments] int32: adjustment i is for logits[rows[i], ids[i]]. No pair occurs twice; row -1 is padding, and
            nothing else of its entry is looked at
repetition  [num_adjustments] float32, finite and > 0: a positive logit is divided by it, any other multiplied
bias        [num_adjustments] float32, added to that; -inf bars the token
allowed     [num_rows, ceil(vocab_size / 32)] int32: a token is barred unless its bit is set, bit i % 32 of word i // 32 for
            token i. Bits from vocab_size on are not looked at
In that order: repetition, bias, mask; each step rounds to float32. Barring adds -inf, by bias and by mask alike: a finite logit
becomes -inf, while NaN stays NaN and +inf becomes NaN, so that a row which is no distribution is none afterwards either.
Returns y [num_rows, vocab_size] float32; logits without an adjustment keep their value where the mask allows them.
"""

from collections.abc import Sequence

from ascend_dsv4.ops.registry import define
from ascend_dsv4.ops.spec import INT, Arg, OpSpec, Out, ShapeError, Tolerance

SPEC = define(
    OpSpec(
        "adjust_logits",
        args={
            "logits": Arg(("num_rows", "vocab_size"), ("float32",)),
            "rows": Arg(("num_adjustments",), INT),
            "ids": Arg(("num_adjustments",), INT),
            "repetition": Arg(("num_adjustments",), ("float32",)),
            "bias": Arg(("num_adjustments",), ("float32",)),
            "allowed": Arg(("num_rows", "mask_words"), INT),
        },
        outs={"y": Out(("num_rows", "vocab_size"), "=logits")},
        tol={("y", "float32"): Tolerance(1e-6, 1e-5, 1e-10)},
        source="Repetition penalty of CTRL (arXiv:1909.05858, 4.1); servers multiply where a division would help the token",
    )
)


def check_mask(logits: Sequence[int], allowed: Sequence[int]) -> None:
    """Raise ShapeError unless a mask of this shape has the words for logits of that shape.

    For implementations to call: a size in SPEC is a name or a number, and cannot say ceil(vocab_size / 32).
    """
    words = -(-logits[1] // 32)
    if allowed[1] != words:
        raise ShapeError(
            f"adjust_logits: allowed has shape {list(allowed)}, "
            f"expected [num_rows={logits[0]}, ceil(vocab_size={logits[1]} / 32)={words}]"
        )
