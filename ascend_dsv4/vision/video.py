# SPDX-License-Identifier: Apache-2.0
"""Frames of a video file as images. The model knows images only: each frame goes into a prompt as one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from ascend_dsv4.errors import RequestError, UnsupportedError
from ascend_dsv4.vision.decode import DEFAULT_LIMITS

if TYPE_CHECKING:
    from types import ModuleType

CONTAINERS: Final = "mov,mp4,matroska,webm,avi,mpegts"
"""What is opened, by FFmpeg's names: formats that hold the video themselves, unlike playlists, which name other files."""
MAX_VIDEO_FRAMES: Final = 36_000
"""Frames in the file: twenty minutes at 30 per second. All up to the last one wanted are decoded."""


def sample_frames(path: str | Path, max_frames: int, fps: float | None = None) -> list[Image.Image]:
    """Up to `max_frames` frames of the first video stream, in mode RGB and in order.

    fps  frames per second of video: the frame shown at 0, 1/fps, 2/fps, ... Spread evenly over the whole video instead if that
         would be more than `max_frames`, or if it is None
    Rotation that the container asks for is not applied.
    raises  UnsupportedError without PyAV; RequestError for a file that is no readable video, or one that is too large
    """
    if max_frames < 1 or (fps is not None and not 0 < fps <= 1000):
        raise RequestError(
            f"video: got max_frames={max_frames}, fps={fps}, expected at least one frame and 0 < fps <= 1000, because that is "
            "how many images are made of it. Correct the parameters."
        )
    av = _pyav()
    # As an open file, so that no part of the path is taken for a protocol.
    with _refusing(av, path), Path(path).open("rb") as file:
        with _opened(av, file) as container:
            times = _frame_times(container, path)
        wanted = _chosen(times, max_frames, fps)
        file.seek(0)
        frames: list[Image.Image] = []
        with _opened(av, file) as container:
            for index, frame in enumerate(container.decode(video=0)):
                frames += [frame.to_image()] * wanted.count(index)
                if len(frames) == len(wanted):
                    break
    if not frames:
        raise _unreadable(path, "no frame could be decoded")
    return frames


def _frame_times(container: Any, path: str | Path) -> list[float]:
    """Seconds at which the frames are shown, from 0 on, without decoding them."""
    if not container.streams.video:
        raise _unreadable(path, "it has no video stream")
    stream = container.streams.video[0]
    width, height = stream.width, stream.height
    if width * height > DEFAULT_LIMITS.max_pixels:
        raise RequestError(
            f"video {_name(path)}: got frames of {width}x{height} pixels, expected at most {DEFAULT_LIMITS.max_pixels:,}, "
            "because of this server's limit. Send a smaller video."
        )
    stamps: list[int] = []
    for packet in container.demux(stream):
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None and packet.size:
            stamps.append(stamp)
        if len(stamps) > MAX_VIDEO_FRAMES:
            raise RequestError(
                f"video {_name(path)}: got more than {MAX_VIDEO_FRAMES:,} frames, expected fewer, because all are decoded. "
                "Send a shorter video."
            )
    if not stamps:
        raise _unreadable(path, "it has no frames")
    return [float((stamp - min(stamps)) * stream.time_base) for stamp in sorted(stamps)]


def _chosen(times: list[float], max_frames: int, fps: float | None) -> list[int]:
    """Indices of the frames to take, in order."""
    if fps is not None:
        count = int(times[-1] * fps) + 1
        if count <= max_frames:
            return [_shown_at(times, i / fps) for i in range(count)]
    count = min(max_frames, len(times))
    return [i * len(times) // count for i in range(count)]


def _shown_at(times: list[float], moment: float) -> int:
    """The last frame that began by then; stamps are rounded to the container's clock, hence the millisecond."""
    return max(index for index, time in enumerate(times) if time <= moment + 1e-3)


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError:
        raise UnsupportedError(
            "video: PyAV is not installed, expected the package 'av', because it reads video files. "
            "Install it with: pip install 'ascend-dsv4[video]'"
        ) from None
    module: ModuleType = av
    return module


def _opened(av: ModuleType, file: Any) -> Any:
    return av.open(file, options={"format_whitelist": CONTAINERS})


@contextmanager
def _refusing(av: ModuleType, path: str | Path) -> Iterator[None]:
    """Errors of FFmpeg and of the file system as one refusal."""
    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def _unreadable(path: str | Path, why: str) -> RequestError:
    return RequestError(
        f"video {_name(path)}: got a file that cannot be read ({why[:100]}), expected MP4, MOV, MKV, WebM, AVI or MPEG-TS, "
        "because no others are accepted. Convert it, or send images."
    )


def _name(path: str | Path) -> str:
    return repr(Path(path).name[:80])
