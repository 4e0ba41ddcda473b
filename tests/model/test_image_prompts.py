# SPDX-License-Identifier: Apache-2.0
"""Prompts with images: the same bits however they are cut, batched, padded or interrupted; and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.errors import RequestError, UnsupportedError

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)


class Setting:
    """A model, a prompt with one token per image, its images, and what it gives when it is prefilled whole."""

    def __init__(self, goldens: Path, rounding: str) -> None:
        self.folder, self.rounding = goldens / "fp8_fp4", rounding
        self.images = [Image.open(goldens / "images" / f"img{k}.png") for k in (0, 1)]
        with safe_open(goldens / "vision.safetensors", "np") as file:
            ids, types = file.get_tensor("prompt.input_ids"), file.get_tensor("prompt.token_types")
        self.prompt: list[int] = ids[types <= 0].tolist()  # of every image its first token alone
        self.expanded: list[int] = ids.tolist()
        self.llm = self.make()
        self.logits = self.llm.logits(self.prompt, images=self.images)
        self.tokens = self.llm.generate([self.prompt], GREEDY, images=[self.images])[0].token_ids

    def make(self, **options: int) -> LLM:
        return LLM(self.folder, cache_rounding=self.rounding, max_model_len=512, progress=False, **options)


@pytest.fixture(scope="module", params=["off", "released"])
def setting(request: pytest.FixtureRequest, golden_v41: Path) -> Setting:
    return Setting(golden_v41, request.param)


def test_both_spellings_of_a_prompt(setting: Setting) -> None:
    """One image token for an image, or all that it takes."""
    assert len(setting.logits) == len(setting.expanded) > len(setting.prompt)
    assert np.array_equal(setting.llm.logits(setting.expanded, images=setting.images), setting.logits)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 8, 9, 20])
def test_chunks(setting: Setting, chunk_size: int) -> None:
    assert np.array_equal(setting.llm.logits(setting.prompt, chunk_size=chunk_size, images=setting.images), setting.logits)


def test_batched_and_padded(setting: Setting) -> None:
    llm = setting.make(max_num_batched_tokens=32, batch_bucket=5)
    text, image = list(range(2, 60)), setting.images[:1]
    prompts = [text, setting.prompt, [9, setting.llm.config.image_token_id, 8], [3]]
    outputs = llm.generate(prompts, GREEDY, images=[[], setting.images, image, []])
    assert outputs[1].token_ids == setting.tokens
    assert outputs[2].token_ids == setting.llm.generate([prompts[2]], GREEDY, images=[image])[0].token_ids


def test_preempted(setting: Setting) -> None:
    """Interrupted inside an image and while decoding: its rows are still there when it starts again."""
    engine = setting.make(max_num_batched_tokens=16).engine
    ids, placed = setting.llm._prompt(setting.prompt, setting.images)
    request = engine.submit(ids, GREEDY, images=placed)
    inside = placed[0].start + 2
    for border in (inside, len(ids) + 2):
        while request.num_computed < border:
            engine.step()
        engine.scheduler._preempt(request)
        assert request.num_computed == 0
    while not request.is_finished:
        engine.step()
    assert request.output_ids == setting.tokens


@pytest.mark.parametrize("method", ["dspark", "ngram"])
def test_drafted(setting: Setting, method: str) -> None:
    llm = LLM(setting.folder, cache_rounding=setting.rounding, max_model_len=512, speculative=method, progress=False)
    assert llm.generate([setting.prompt], GREEDY, images=[setting.images])[0].token_ids == setting.tokens


def test_images_matter(setting: Setting) -> None:
    other = setting.llm.logits(setting.prompt, images=setting.images[::-1])
    assert other.shape != setting.logits.shape or np.abs(other - setting.logits).max() > 0.1


def test_what_is_refused(setting: Setting, golden_v4: Path) -> None:
    llm, token = setting.llm, setting.llm.config.image_token_id
    with pytest.raises(RequestError, match="images: got 1, and 2 image tokens"):
        llm.logits(setting.prompt, images=setting.images[:1])
    with pytest.raises(RequestError, match="images: got 3, and 2 image tokens"):
        llm.logits(setting.prompt, images=[*setting.images, setting.images[0]])
    with pytest.raises(RequestError, match=f"image token {token} at position 1"):
        llm.generate([5, token, 6])
    with pytest.raises(RequestError, match=f"image token {token} at position 1"):
        llm.draft([5, token, 6], "dspark")
    with pytest.raises(RequestError, match="no such file|cannot be read"):
        llm.logits([token], images=["missing.png"])
    for one in (setting.images[0], b"bytes", "path.png", Path("path.png")):
        with pytest.raises(RequestError, match="images: got one of type .* expected a list"):
            llm.generate([[token]], GREEDY, images=[one])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="image of type int: expected bytes, a path or"):
        llm.logits([token], images=[3])  # type: ignore[list-item]
    with pytest.raises(UnsupportedError, match="no vision tower"):
        LLM(golden_v4 / "fp8_fp4", max_model_len=512, progress=False).logits([5], images=setting.images)
    assert not llm.engine.has_work


def test_the_image_token_is_never_drawn(setting: Setting) -> None:
    token = setting.llm.config.image_token_id
    assert token is not None
    pushed = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True, logit_bias={token: 100})
    assert token not in setting.llm.generate([5, 6, 7], pushed)[0].token_ids
