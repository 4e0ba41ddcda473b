# SPDX-License-Identifier: Apache-2.0
"""Laws of a bidirectional block: patches have no order of their own, only angles, and only differences of angles matter."""

from __future__ import annotations

import numpy as np
import torch

from ascend_dsv4.ops.cases import CaseInputs, f32
from ascend_dsv4.ops.vision_block.cases import inputs
from tests.ops.harness import Array, run


def shifted(made: CaseInputs, by: Array) -> CaseInputs:
    """Every angle of every patch more by `by` [half]."""
    angles = np.arctan2(f32(made.args["sin"]), f32(made.args["cos"])) + by
    return CaseInputs({**made.args, "cos": f32(np.cos(angles)), "sin": f32(np.sin(angles))}, made.attrs)


def test_patches_may_be_permuted(rng: np.random.Generator) -> None:
    made = inputs(rng, 300)
    order = rng.permutation(300)
    moved = {name: f32(made.args[name])[order] for name in ("x", "cos", "sin")}
    whole, permuted = (
        run("vision_block", made, "float32")["y"],
        run("vision_block", CaseInputs({**made.args, **moved}, made.attrs), "float32")["y"],
    )
    torch.testing.assert_close(permuted, whole[torch.from_numpy(order)], rtol=1e-5, atol=1e-5)


def test_only_differences_of_angles_matter(rng: np.random.Generator) -> None:
    """Turning all patches alike changes nothing; turning one, the rest."""
    made = inputs(rng, 30)
    whole = run("vision_block", made, "float32")["y"]
    alike = run("vision_block", shifted(made, rng.uniform(-3, 3, 4)), "float32")["y"]
    torch.testing.assert_close(alike, whole, rtol=1e-4, atol=1e-4)
    one = np.zeros((30, 4))
    one[7] = 1.0
    assert float((run("vision_block", shifted(made, one), "float32")["y"] - whole).abs().max()) > 1e-2


def test_every_patch_sees_every_other(rng: np.random.Generator) -> None:
    """No mask: the last patch moves the first, and the first the last."""
    made = inputs(rng, 20)
    whole = run("vision_block", made, "float32")["y"]
    for changed, seen in ((19, 0), (0, 19)):
        x = f32(made.args["x"])
        x[changed] = -x[changed]
        moved = run("vision_block", CaseInputs({**made.args, "x": x}, made.attrs), "float32")["y"]
        assert float((moved[seen] - whole[seen]).abs().max()) > 1e-4
