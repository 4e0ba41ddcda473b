# SPDX-License-Identifier: Apache-2.0
"""Frames out of small clips made here: frame i is a plain picture of grey level 8·i."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ascend_dsv4.errors import RequestError, UnsupportedError
from ascend_dsv4.vision import video
from ascend_dsv4.vision.video import sample_frames

RATE = 10


def clip(path: Path, count: int = 25, *, times: Sequence[float] | None = None, b_frames: int = 0) -> Path:
    """A video of `count` frames at 10 per second, or shown at these times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 20_000_000  # at the default, the encoder leaves frames as they were
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * i, dtype=np.uint8), "rgb24")
            frame.pts, frame.time_base = round(1000 * (i / RATE if times is None else times[i])), Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("video") / "clip.mp4")


def indices(frames: list[Image.Image]) -> list[int]:
    """Which frames these are, by their grey."""
    assert all((frame.mode, frame.size) == ("RGB", (64, 48)) for frame in frames)
    return [round(float(np.asarray(frame).mean()) / 8) for frame in frames]


def test_evenly_spread(mp4: Path) -> None:
    assert indices(sample_frames(mp4, 5)) == [0, 5, 10, 15, 20]
    assert indices(sample_frames(mp4, 1)) == [0]
    assert indices(sample_frames(str(mp4), 100)) == list(range(25))


@pytest.mark.parametrize(("fps", "expected"), [(2, [0, 5, 10, 15, 20]), (1, [0, 10, 20]), (0.5, [0, 20]), (0.1, [0])])
def test_by_time(fps: float, expected: list[int], mp4: Path) -> None:
    assert indices(sample_frames(mp4, 30, fps)) == expected


def test_faster_than_the_video(mp4: Path) -> None:
    """A frame that is shown at two of the moments comes twice."""
    assert indices(sample_frames(mp4, 60, 20))[:6] == [0, 0, 1, 1, 2, 2]


def test_too_many_are_spread(mp4: Path) -> None:
    assert indices(sample_frames(mp4, 5, 10)) == [0, 5, 10, 15, 20]


def test_uneven_times(tmp_path: Path) -> None:
    """By the times of the frames, not by their numbers: the third stays for a second."""
    path = clip(tmp_path / "uneven.mkv", 5, times=[0, 0.1, 0.2, 1.2, 1.3])
    assert indices(sample_frames(path, 30, 2)) == [0, 2, 2]


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.mov", "a.ts"])
def test_containers(name: str, tmp_path: Path) -> None:
    path = clip(tmp_path / name)
    assert indices(sample_frames(path, 5)) == [0, 5, 10, 15, 20]


def test_frames_stored_out_of_order(tmp_path: Path) -> None:
    assert indices(sample_frames(clip(tmp_path / "b.mp4", b_frames=2), 25)) == list(range(25))


def test_playlists_open_nothing(tmp_path: Path, mp4: Path) -> None:
    """They name other files, or addresses."""
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{mp4}\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.txt").write_text(f"ffconcat version 1.0\nfile '{mp4}'\n")
    for name in ("list.m3u8", "list.txt"):
        with pytest.raises(RequestError, match=f"video '{name}': got a file that cannot be read"):
            sample_frames(tmp_path / name, 3)


def test_protocols_are_no_paths() -> None:
    with pytest.raises(RequestError, match="No such file"):
        sample_frames("http://127.0.0.1:9/clip.mp4", 3)


def test_damaged(tmp_path: Path, mp4: Path) -> None:
    spoiled = {"empty.mp4": b"", "text.mp4": b"hello", "half.mp4": mp4.read_bytes()[:900]}
    for name, data in spoiled.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(RequestError, match="cannot be read.*Convert it, or send images"):
            sample_frames(tmp_path / name, 3)
    with pytest.raises(RequestError, match="cannot be read"):
        sample_frames(tmp_path, 3)


def test_sound_alone(tmp_path: Path) -> None:
    path = tmp_path / "sound.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), layout="mono")
        frame.sample_rate = 8000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    with pytest.raises(RequestError, match="it has no video stream"):
        sample_frames(path, 3)


def test_limits(mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_VIDEO_FRAMES", 24)
    with pytest.raises(RequestError, match="got more than 24 frames"):
        sample_frames(mp4, 3)
    monkeypatch.setattr(video, "DEFAULT_LIMITS", video.DEFAULT_LIMITS.__class__(max_pixels=64 * 48 - 1))
    with pytest.raises(RequestError, match="frames of 64x48 pixels, expected at most 3,071"):
        sample_frames(mp4, 3)


@pytest.mark.parametrize(("max_frames", "fps"), [(0, None), (3, 0.0), (3, -1.0), (3, float("nan")), (3, float("inf"))])
def test_parameters(max_frames: int, fps: float | None, mp4: Path) -> None:
    with pytest.raises(RequestError, match="expected at least one frame and 0 < fps"):
        sample_frames(mp4, max_frames, fps)


def test_without_pyav(mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnsupportedError, match=r"PyAV is not installed.*pip install 'ascend-dsv4\[video\]'"):
        sample_frames(mp4, 3)
