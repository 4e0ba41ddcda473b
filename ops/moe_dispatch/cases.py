# SPDX-License-Identifier: Apache-2.0
"""Cases of `moe_dispatch`."""

from __future__ import annotations

from ascend_dsv4.ops.cases import (
    Array,
    Case,
    CaseInputs,
    ExpectedCase,
    Rng,
    changed,
    f32,
    i32,
    nan_rows,
    normal,
    scaled,
    strided,
    subnormal_cases,
    token_cases,
)


def inputs(rng: Rng, num_tokens: int, ids: Array | None = None, hidden_size: int = 12, num_experts: int = 8) -> CaseInputs:
    """Two different experts per token, unless `ids` says otherwise."""
    if ids is None:
        ids = i32([rng.permutation(num_experts)[:2] for _ in range(num_tokens)]).reshape(num_tokens, 2)
    args = {"x": normal(rng, num_tokens, hidden_size), "ids": ids, "weights": f32(rng.uniform(0.1, 1, ids.shape))}
    sent = int((ids >= 0).sum())
    mask = (i32(range(ids.size)) < sent).reshape(-1)
    return CaseInputs(args, {"num_experts": num_experts}, defined={"rows": mask, "row_weights": mask})


def nothing_sent(rng: Rng) -> CaseInputs:
    """Padding: id -1, whose row and weight are NaN."""
    made = inputs(rng, 6, i32([[3, 1], [-1, -1], [0, -1], [-1, 7], [3, 3], [-1, -1]]))
    args = {**made.args, "x": nan_rows(f32(made.args["x"]), [1, 5]), "weights": nan_rows(f32(made.args["weights"]), [1, 5])}
    return CaseInputs(args, made.attrs, defined=made.defined)


def views(rng: Rng) -> CaseInputs:
    made = inputs(rng, 6)
    args = {name: strided(array) for name, array in made.args.items() if array is not None}
    return CaseInputs(args, made.attrs, defined=made.defined)


CASES = (
    Case("random", "typical", lambda rng: inputs(rng, 30)),
    *token_cases(inputs),
    Case("one-expert-takes-all", "hostile", lambda rng: inputs(rng, 9, i32([[5, 5]] * 9))),
    Case("last-expert-takes-none", "hostile", lambda rng: inputs(rng, 9, i32([[0, 6]] * 9))),
    Case("nothing-sent", "hostile", nothing_sent),
    Case("one-choice", "boundary", lambda rng: inputs(rng, 3, i32([[2], [0], [2]]))),
    Case("views", "hostile", views),
    Case("large", "hostile", lambda rng: scaled(inputs(rng, 4), 1e30, "x", "weights")),
    *subnormal_cases(lambda rng, small: changed(inputs(rng, 5), x=small.draw(rng, 5, 12), weights=small.draw(rng, 5, 2))),
)

EXPECTED = (
    ExpectedCase(
        "by-expert",
        "by hand: expert 0 gets token 1, expert 1 tokens 0 and 1, expert 2 none, expert 3 token 0",
        lambda: CaseInputs(
            {"x": f32([[10], [20]]), "ids": i32([[3, 1], [1, 0]]), "weights": f32([[0.1, 0.2], [0.3, 0.4]])}, {"num_experts": 4}
        ),
        {
            "rows": f32([[20], [10], [20], [10]]),
            "row_weights": f32([0.4, 0.2, 0.3, 0.1]),
            "counts": i32([1, 2, 0, 1]),
            "row_of": i32([[3, 1], [2, 0]]),
        },
    ),
    ExpectedCase(
        "minus-one",
        "by hand: the second choice of token 0 goes nowhere",
        lambda: CaseInputs(
            {"x": f32([[10], [20]]), "ids": i32([[1, -1], [1, 0]]), "weights": f32([[0.1, 0.2], [0.3, 0.4]])},
            {"num_experts": 3},
            defined={name: i32([1, 1, 1, 0]).astype(bool) for name in ("rows", "row_weights")},
        ),
        {
            "rows": f32([[20], [10], [20], [0]]),
            "row_weights": f32([0.4, 0.1, 0.3, 0]),
            "counts": i32([1, 2, 0]),
            "row_of": i32([[1, -1], [2, 0]]),
        },
    ),
)
