# SPDX-License-Identifier: Apache-2.0
"""`generate --image` and `--video`: the tokens of the offline API, and every way to get it wrong."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.vision.video import sample_frames
from tests.cli.conftest import Run

IMAGE_ID, SPELLED = 511, "<｜deepseek_image｜>"
SHORT = ("--max-model-len", 256, "--max-num-seqs", 1, "--weights", "fp32")
GREEDY = ("--max-tokens", 4, "--temperature", 0, "--json")


@pytest.fixture(scope="module")
def model(golden_v41: Path) -> Path:
    return golden_v41 / "fp8_fp4"


@pytest.fixture(scope="module")
def images(golden_v41: Path) -> list[Path]:
    return [golden_v41 / "images" / f"img{i}.png" for i in (0, 1)]


@pytest.fixture(scope="module")
def llm(model: Path) -> LLM:
    return LLM(model, weights="fp32", max_model_len=256, max_num_seqs=1, progress=False)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second, brighter from frame to frame."""
    import av

    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 50 * i, dtype=np.uint8), "rgb24")
            frame.pts = i
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def greedy_ids(llm: LLM, prompt: list[int], images: list) -> list[int]:  # type: ignore[type-arg]
    return llm.generate([prompt], SamplingParams(max_tokens=4, temperature=0), images=[images])[0].token_ids


def test_images_stand_where_the_prompt_says(run: Run, model: Path, images: list[Path], llm: LLM) -> None:
    assert llm.tokenizer is not None
    first, second = llm.tokenizer.encode("Look: "), llm.tokenizer.encode(" and ")
    ids = [*first, IMAGE_ID, *second, IMAGE_ID]
    result = run(
        "generate", "--model", model, *SHORT, *GREEDY, "--prompt", f"Look: {SPELLED} and {SPELLED}", "--image", *images
    )
    assert result.code == 0, result.err
    (output,) = json.loads(result.out)["outputs"]
    assert output["token_ids"] == greedy_ids(llm, ids, images)
    assert output["prompt_token_ids"].count(IMAGE_ID) > 2
    by_ids = ("--token-ids", ",".join(map(str, ids)))
    swapped = run("generate", "--model", model, *SHORT, *GREEDY, *by_ids, "--image", *images[::-1])
    assert json.loads(swapped.out)["outputs"][0]["token_ids"] == greedy_ids(llm, ids, images[::-1])


def test_else_they_stand_in_front_and_a_video_is_its_frames(
    run: Run, model: Path, images: list[Path], llm: LLM, video: Path
) -> None:
    frames = sample_frames(video, 2)
    expected = greedy_ids(llm, [IMAGE_ID] * 3 + [5, 6, 7], [images[0], *frames])
    media = ("--video", video, "--video-frames", 2, "--image", images[0])
    result = run("generate", "--model", model, *SHORT, *GREEDY, "--token-ids", "5,6,7", *media)
    assert result.code == 0, result.err
    assert json.loads(result.out)["outputs"][0]["token_ids"] == expected
    assert len(frames) == 2 and np.asarray(frames[0]).mean() < np.asarray(frames[1]).mean()


def test_streamed(run: Run, model: Path, images: list[Path], llm: LLM) -> None:
    assert llm.tokenizer is not None
    args = ("--token-ids", "511,5,6,7", "--image", images[0], "--max-tokens", 4, "--temperature", 0, "--ignore-eos")
    result = run("generate", "--model", model, *SHORT, *args)
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    text = llm.generate([[IMAGE_ID, 5, 6, 7]], params, images=[[images[0]]])[0].text
    assert result.code == 0 and result.out.rstrip("\n") == text.rstrip("\n")


def test_refused_before_the_weights_are_read(
    run: Run, model: Path, images: list[Path], video: Path, tmp_path: Path, golden_v4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "x.png"
    damaged.write_bytes(images[0].read_bytes()[:60])

    def refused(*args: object, folder: Path = model) -> str:
        result = run("generate", "--model", folder, *SHORT, *args)
        assert result.code == 2 and "loaded" not in result.err
        return result.err

    assert "no vision tower" in refused("--prompt", "x", "--image", images[0], folder=golden_v4 / "fp8_fp4")
    assert "got 2 prompts" in refused("--prompt", "x", "y", "--image", images[0])
    assert "got 2, and 1 image tokens (id 511)" in refused("--prompt", SPELLED, "--image", *images)
    assert "cannot be read" in refused("--prompt", "x", "--image", damaged)
    assert "No such file" in refused("--prompt", "x", "--image", tmp_path / "none.png")
    assert "MP4, MOV" in refused("--prompt", "x", "--video", images[0])
    assert "at least one frame" in refused("--prompt", "x", "--video", video, "--video-frames", 0)
    assert "256" in refused("--prompt", "x" * 300, "--image", images[0])
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install 'ascend-dsv4[video]'" in refused("--prompt", "x", "--video", video)
