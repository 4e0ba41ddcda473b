# SPDX-License-Identifier: Apache-2.0
"""The module as first published, against torch's own layers and across chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ascend_dsv4.engram.original import OriginalEngram

STREAMS, HIDDEN, ENGRAM, KERNEL, DILATION = 4, 16, 24, 4, 3


@pytest.fixture
def module() -> OriginalEngram:
    rng = np.random.default_rng(8)

    def weight(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    per_stream = (STREAMS, HIDDEN)
    return OriginalEngram(
        key_weight=weight(*per_stream, ENGRAM), key_bias=weight(*per_stream), value_weight=weight(HIDDEN, ENGRAM),
        value_bias=weight(HIDDEN), key_norm=weight(*per_stream), query_norm=weight(*per_stream),
        conv_norm=weight(*per_stream), conv_weight=weight(*per_stream, KERNEL), dilation=DILATION, norm_eps=1e-6,
    )  # fmt: skip


def inputs(count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(9)
    shapes = ((count, STREAMS, HIDDEN), (count, ENGRAM))
    first, second = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return first, second


def by_torch(module: OriginalEngram, streams: NDArray[np.float32], e: NDArray[np.float32]) -> NDArray[np.float64]:
    """In float64: linear, rms_norm and conv1d of torch, over the whole sequence at once."""
    w = {name: torch.from_numpy(getattr(module, name)).double() for name in module.__dataclass_fields__
         if isinstance(getattr(module, name), np.ndarray)}  # fmt: skip
    h, rows = torch.from_numpy(streams).double(), torch.from_numpy(e).double()
    value = functional.linear(rows, w["value_weight"], w["value_bias"])
    gated, normed = [], []
    for s in range(STREAMS):
        key = functional.linear(rows, w["key_weight"][s], w["key_bias"][s])
        k = functional.rms_norm(key, (HIDDEN,), w["key_norm"][s], module.norm_eps)
        q = functional.rms_norm(h[:, s], (HIDDEN,), w["query_norm"][s], module.norm_eps)
        dot = (k * q).sum(-1) / HIDDEN**0.5
        gate = torch.sigmoid(dot.abs().clamp_min(1e-6).sqrt() * dot.sign())
        gated.append(gate[:, None] * value)
        normed.append(functional.rms_norm(gated[-1], (HIDDEN,), w["conv_norm"][s], module.conv_eps))
    channels = torch.cat(normed, dim=1).t()[None]
    padded = functional.pad(channels, ((KERNEL - 1) * DILATION, 0))
    kernel = w["conv_weight"].reshape(STREAMS * HIDDEN, 1, KERNEL)
    conv = functional.silu(functional.conv1d(padded, kernel, groups=STREAMS * HIDDEN, dilation=DILATION))
    out = h + torch.stack(gated, dim=1) + conv[0].t().reshape(-1, STREAMS, HIDDEN)
    return out.numpy()


def test_against_torch(module: OriginalEngram) -> None:
    streams, e = inputs(30)
    out, state = module(streams, e, module.initial_state())
    assert module.state_len == 9
    assert state.shape == (9, STREAMS, HIDDEN)
    assert np.abs(out - by_torch(module, streams, e)).max() < 2e-5


@pytest.mark.parametrize("cuts", [[1], [8, 9, 10], [5, 5, 20], list(range(1, 30))])
def test_chunks(module: OriginalEngram, cuts: list[int]) -> None:
    """Token by token or in chunks, the state carries over."""
    streams, e = inputs(30)
    whole, last = module(streams, e, module.initial_state())
    state, parts = module.initial_state(), []
    for start, stop in zip([0, *cuts], [*cuts, 30], strict=True):
        part, state = module(streams[start:stop], e[start:stop], state)
        parts.append(part)
    assert np.abs(np.concatenate(parts) - whole).max() < 2e-5
    assert np.abs(state - last).max() < 2e-5
    forgotten, _ = module(streams[15:], e[15:], module.initial_state())
    assert np.abs(forgotten - whole[15:]).max() > 0.1, "the state matters"
