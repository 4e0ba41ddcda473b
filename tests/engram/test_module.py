# SPDX-License-Identifier: Apache-2.0
"""The whole Engram module on the golden checkpoints: token ids, rows of the table, projection, gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ascend_dsv4.accuracy.calls import call
from ascend_dsv4.engram.hashing import ABSENT, EngramHash
from ascend_dsv4.model.checkpoint import Checkpoint


def packed_table(checkpoint: Checkpoint, name: str) -> tuple[str, NDArray[np.uint8]]:
    """Format and packed rows of a stored table."""
    entry = checkpoint.entry(name)
    codes = checkpoint.bytes(name).reshape(entry.shape[0], -1)
    if entry.dtype == "BF16":
        return "bf16", codes
    return "fp8", np.concatenate([codes, checkpoint.array(checkpoint.quantized_scale(name))], axis=1)


@pytest.mark.parametrize("variant", ["bf16", "fp8_fp4"])
@pytest.mark.parametrize("layer", [1, 4])
def test_reproduces_the_golden_streams(
    full_golden_v41: Path, golden_engram: dict[str, NDArray[Any]], golden_hash: EngramHash, variant: str, layer: int
) -> None:
    checkpoint = Checkpoint.open(full_golden_v41 / variant)
    before, after = (golden_engram[f"len300.layer{layer}.{side}_streams"] for side in ("in", "out"))
    compressed = golden_engram["token_map"][golden_engram["len300.input_ids"]]
    ids = golden_hash.row_ids(compressed, np.full(3, ABSENT, dtype=np.int32))[golden_engram["streams.positions"]]
    format, table = packed_table(checkpoint, f"layers.{layer}.engram.embed.weight")
    rows = torch.from_numpy(table[ids[:, golden_hash.layer_ids.index(layer)]])
    wkv, q_weight, k_weight = (
        torch.from_numpy(checkpoint.read_float32(f"layers.{layer}.engram.{name}", (32, 32)))
        for name in ("wkv.weight", "q_weight", "k_weight")
    )
    e = call("engram_rows", "reference", {"rows": rows}, {"format": format, "head_dim": 32, "out_dtype": "float32"})["e"]
    linear = {"block": (32, 32), "out_dtype": "float32"}
    kv = call("linear", "reference", {"x": e, "weight": wkv, "scale": None}, linear)["y"]
    args = {"streams": torch.from_numpy(before), "kv": kv, "q_weight": q_weight, "k_weight": k_weight, "is_image": None}
    y = call("engram_gate", "reference", args, {"eps": 1e-20, "sign_of_zero": True})["y"].numpy()
    assert np.abs(after - before).max() > 0.1, "the module does something"
    assert np.abs(y - after).max() < 1e-5
