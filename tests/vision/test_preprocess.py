# SPDX-License-Identifier: Apache-2.0
"""Sizes, patches and token layout of images, against the released preprocessing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ascend_dsv4.config.vision_config import VisionConfig
from ascend_dsv4.errors import RequestError
from ascend_dsv4.vision.layout import START, expand_placeholders, image_token_types
from ascend_dsv4.vision.preprocess import ImageGrid, plan_grid, preprocess
from tests.vision.conftest import RELEASED

# width, height → resized width, height; ViT grid rows, columns; token grid rows, columns; tokens. From the specification.
EXAMPLES = [
    (448, 336, 630, 476, 34, 45, 12, 15, 194),
    (640, 480, 644, 490, 35, 46, 12, 16, 206),
    (1024, 1024, 1036, 1036, 74, 74, 25, 25, 652),
    (1344, 1344, 1302, 1302, 93, 93, 31, 31, 994),
    (1600, 1200, 1512, 1134, 81, 108, 27, 36, 1001),
    (1920, 1080, 1708, 966, 69, 122, 23, 41, 968),
    (32, 32, 546, 546, 39, 39, 13, 13, 184),
]


@pytest.mark.parametrize("row", EXAMPLES, ids=lambda row: f"{row[0]}x{row[1]}")
def test_released_examples(row: tuple[int, ...]) -> None:
    grid = plan_grid(row[0], row[1], RELEASED)
    found = (grid.best_width, grid.best_height, grid.vit_h, grid.vit_w, grid.llm_h, grid.llm_w, grid.num_tokens)
    assert found == row[2:]


def test_golden_plans(tiny: VisionConfig, golden: dict[str, torch.Tensor]) -> None:
    for width, height, *expected in golden["plan_image_grid"].tolist():
        grid = plan_grid(width, height, tiny)
        assert [grid.llm_h, grid.llm_w, grid.best_height, grid.best_width] == expected, (width, height)


def test_every_plan_fits_and_covers_the_image() -> None:
    """Sizes and aspect ratios over six orders of magnitude: never above the limit, never empty, grids that belong together."""
    rng = np.random.default_rng(1)
    for width, height in np.exp(rng.uniform(0, np.log(1e6), (3000, 2))).astype(int).tolist():
        grid = plan_grid(width, height, RELEASED)
        assert 0 < grid.num_tokens <= 1024
        assert (grid.best_height, grid.best_width) == (14 * grid.vit_h, 14 * grid.vit_w)
        assert 0 <= 3 * grid.llm_h - grid.vit_h < 3 and 0 <= 3 * grid.llm_w - grid.vit_w < 3
        assert grid.vit_h >= 1 and grid.vit_w >= 1


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 3)])
def test_no_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match="expected at least 1x1"):
        plan_grid(*size, RELEASED)


@pytest.mark.parametrize("k", [0, 1])
def test_golden_patches(k: int, golden_v41_parts: Path, tiny: VisionConfig, golden: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    patches, grid = preprocess(Image.open(golden_v41_parts / "images" / f"img{k}.png"), tiny)
    assert [grid.vit_h, grid.vit_w, grid.llm_h, grid.llm_w] == golden[f"img{k}.grid"].tolist()
    expected = golden[f"img{k}.patches"]
    mine = torch.from_numpy(patches)
    assert mine.shape == (len(expected), 588)
    assert torch.equal(mine.bfloat16().float(), mine), "values are not bfloat16"
    assert torch.equal(mine.bfloat16().view(torch.int16), expected.reshape(mine.shape).view(torch.int16))


def test_patch_order(tiny: VisionConfig) -> None:
    """One pixel lights up where it should: patch in reading order, then channel, then row, then column."""
    image = Image.new("RGB", (112, 84))
    image.putpixel((3 * 14 + 5, 2 * 14 + 9), (0, 255, 0))
    patches, grid = preprocess(image, tiny)
    assert (grid.vit_h, grid.vit_w) == (6, 8)
    assert np.argwhere(patches == 1).tolist() == [[2 * 8 + 3, 1 * 196 + 9 * 14 + 5]]
    assert (patches == -1).sum() == patches.size - 1


def test_other_modes_are_converted(tiny: VisionConfig) -> None:
    """Transparent is white, not what lies under it."""
    patches, _ = preprocess(Image.new("RGBA", (84, 84), (9, 9, 9, 0)), tiny)
    assert (patches == 1).all()


def test_padding_is_grey_and_centred(tiny: VisionConfig) -> None:
    """An image 85 wide gets a grid 98 wide: grey stripes of equal width left and right, not black ones."""
    patches, grid = preprocess(Image.new("RGB", (85, 84), (255, 255, 255)), tiny)
    assert (grid.best_width, grid.best_height) == (98, 84)
    top = patches.reshape(6, 7, 3, 14, 14)[0, :, 0, 0].reshape(-1)
    grey = np.float32(127 / 255 * 2 - 1)
    assert (np.abs(top[[0, 5, 92, 97]] - grey) < 1e-3).all()
    assert (top[7:91] == 1).all()


def test_wide_images_are_stretched_under_a_ratio_limit(tiny: VisionConfig) -> None:
    limited = replace(tiny, max_wh_ratio=2.0)
    image = Image.new("RGB", (400, 84), (255, 255, 255))
    patches, grid = preprocess(image, limited)
    assert (grid.best_width, grid.best_height) == (168, 84)
    assert (patches == 1).all(), "stretched, so no padding"
    assert not (preprocess(image, tiny)[0] == 1).all()


def test_too_narrow() -> None:
    """More than 42924 times as tall as wide leaves no column of pixels; it is refused before anything is resized."""
    with pytest.raises(RequestError, match="sides of more similar length.*Cut the image"):
        preprocess(Image.new("RGB", (1, 50_000)), RELEASED)
    patches, _ = preprocess(Image.new("RGB", (1, 40_000)), RELEASED)
    assert patches.shape == (3 * 1533, 588)


@pytest.mark.parametrize("k", [0, 1])
def test_golden_types(k: int, golden: dict[str, torch.Tensor]) -> None:
    vit_h, vit_w, llm_h, llm_w = golden[f"img{k}.grid"].tolist()
    types = image_token_types(ImageGrid(vit_h, vit_w, llm_h, llm_w, 14 * vit_h, 14 * vit_w))
    assert types.dtype == np.int8
    assert types.tolist() == golden[f"img{k}.types"].tolist()


def test_golden_prompt(golden: dict[str, torch.Tensor]) -> None:
    """The expanded golden prompt, folded back to one placeholder per image, expands to itself, and so does what is expanded."""
    ids, types = golden["prompt.input_ids"].tolist(), golden["prompt.token_types"].tolist()
    folded = [token for token, kind in zip(ids, types, strict=True) if kind in (-1, START)]  # -1: text
    assert len(folded) == 68 - 9 - 10
    lengths = [len(golden[f"img{k}.types"]) for k in (0, 1)]
    for token_ids in (folded, ids):
        assert expand_placeholders(token_ids, 511, lengths) == (ids, golden["prompt.image_starts"].tolist())


def test_layout_of_neighbours() -> None:
    """Two images side by side and at both ends of a prompt; the first expanded already, or both."""
    for token_ids in ([9] * 2, [9] * (8 + 1), [9] * (8 + 5)):
        assert expand_placeholders(token_ids, 9, [8, 5]) == ([9] * 13, [0, 8])


def test_many_neighbours() -> None:
    """As many placeholders in a row as their first image takes are one image each."""
    assert expand_placeholders([1, *[9] * 5, 2], 9, [5] * 5) == ([1, *[9] * 25, 2], [1, 6, 11, 16, 21])


def test_text_alone() -> None:
    assert expand_placeholders([3, 1, 4], 9, []) == ([3, 1, 4], [])
    assert expand_placeholders([], 9, []) == ([], [])


@pytest.mark.parametrize(("token_ids", "count"), [([1, 2], 1), ([9], 0), ([9, 9, 9], 2)])
def test_placeholders_and_images_must_match(token_ids: list[int], count: int) -> None:
    places = token_ids.count(9)
    with pytest.raises(RequestError, match=rf"got {count}, and {places} image tokens \(id 9\).*Send as many"):
        expand_placeholders(token_ids, 9, [5] * count)
