# SPDX-License-Identifier: Apache-2.0
"""Rotary frequencies against published check values, and against the arithmetic of the released code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ascend_dsv4.config import ModelConfig
from ascend_dsv4.model.rotary import inv_freq

YARN = {0: 1, 1: 0.687656045, 14: 0.00528685655, 15: 0.00363553851, 16: 0.00226562493, 20: 0.000296977785,
        25: 5.37231244e-06, 31: 5.6805294e-07}  # fmt: skip
PLAIN = {1: 0.749894202, 15: 0.0133352149, 31: 0.00013335215}


@pytest.fixture(scope="module")
def flash() -> ModelConfig:
    return ModelConfig.from_file(Path(__file__).parents[2] / "configs" / "models" / "v4_flash.json")


@pytest.mark.parametrize(("ratio", "expected"), [(4, YARN), (128, YARN), (0, PLAIN)])
def test_check_values(flash: ModelConfig, ratio: int, expected: dict[int, float]) -> None:
    """The values are published to nine digits: the same float32."""
    table = inv_freq(flash, ratio)
    assert table.dtype == np.float32
    assert {i: table[i] for i in expected} == {i: np.float32(value) for i, value in expected.items()}


def test_plain_table_is_the_released_arithmetic(flash: ModelConfig) -> None:
    released = 1.0 / (10000 ** (torch.arange(0, 64, 2, dtype=torch.float32) / 64))
    assert np.array_equal(inv_freq(flash, 0), released.numpy())


def test_no_ramp_when_both_turning_points_fall_together(flash: ModelConfig) -> None:
    """An original length of less than one turn: the ramp becomes a step instead of a division by zero."""
    scaling = flash.rope_scaling
    assert scaling is not None
    steep = replace(flash, rope_scaling=replace(scaling, original_max_position_embeddings=6))
    table = inv_freq(steep, 4)
    plain = inv_freq(replace(flash, rope_theta=flash.compress_rope_theta), 0)
    assert np.isfinite(table).all()
    assert set(np.round(plain / table).tolist()) == {1.0, 16.0}
