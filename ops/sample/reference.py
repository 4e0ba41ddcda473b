# SPDX-License-Identifier: Apache-2.0
"""Reference of `sample`, one row at a time in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.sample import SPEC


def draw(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    """One token id from one row of float64 logits; -1 if the row is no distribution."""
    if not torch.isfinite(logits.max()):  # the maximum of a row with a NaN is NaN
        return -1
    if temperature == 0:
        return int(torch.argmax(logits))
    ranked, ids = torch.sort(logits / temperature, descending=True, stable=True)
    if top_k:
        ranked = ranked[:top_k]
    weights = torch.exp(ranked - ranked[0])
    running = torch.cumsum(weights, 0)  # its last element is the total; `sum` would depend on the number of threads
    kept = (running - weights < top_p * running[-1]) & (weights >= min_p)
    kept[0] = True
    sums = torch.cumsum(torch.where(kept, weights, 0), 0)
    at = int(torch.searchsorted(sums, uniform * sums[-1], right=True))
    return int(ids[min(at, int(kept.nonzero()[-1]))])


@implements(SPEC, "reference")
def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    params = (values.tolist() for values in (temperature, top_k, top_p, min_p, uniform))
    rows = logits.double().unbind(0)
    chosen = [draw(row, *row_params) for row, *row_params in zip(rows, *params, strict=True)]
    ids = torch.tensor(chosen, dtype=torch.int32, device=logits.device)
    logprobs = logits.new_full((len(rows),), torch.nan)
    for i, (row, token) in enumerate(zip(rows, chosen, strict=True)):
        if token >= 0:
            logprobs[i] = torch.log_softmax(row, 0)[token]
    return ids, logprobs
