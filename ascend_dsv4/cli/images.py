# SPDX-License-Identifier: Apache-2.0
"""Images and videos on a command line, and where they stand in a prompt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ascend_dsv4.config import ModelConfig
from ascend_dsv4.errors import RequestError, UnsupportedError

if TYPE_CHECKING:
    from PIL import Image

    from ascend_dsv4.llm import Prompt
    from ascend_dsv4.tokenizer import Tokenizer

DEFAULT_FRAMES: Final = 8


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Flags of commands whose prompt may have images."""
    group = parser.add_argument_group(
        "image options",
        "for models that read images. Each image token of the prompt stands for one of them, first all images, then the frames "
        "of all videos; in a prompt without any, they all stand in front.",
    )
    group.add_argument(
        "--image", nargs="+", action="extend", default=[], metavar="FILE", help="PNG, JPEG, WebP, GIF or BMP files"
    )
    group.add_argument(
        "--video", nargs="+", action="extend", default=[], metavar="FILE",
        help="video files, of which the model sees sampled frames as images (needs the extra 'video')",
    )  # fmt: skip
    group.add_argument(
        "--video-frames", type=int, default=DEFAULT_FRAMES, metavar="N",
        help=f"frames of each video at most, spread evenly over it (default: {DEFAULT_FRAMES})",
    )  # fmt: skip
    group.add_argument(
        "--video-fps", type=float, metavar="X", help="frames per second of video instead, as long as there are no more than N"
    )


def read_images(args: argparse.Namespace) -> list[Image.Image]:
    """The images of a command line. Raises RequestError for files that cannot be read, UnsupportedError without PyAV."""
    if not (args.image or args.video):
        return []
    from ascend_dsv4.vision.decode import open_image
    from ascend_dsv4.vision.video import sample_frames

    frames = [frame for path in args.video for frame in sample_frames(path, args.video_frames, args.video_fps)]
    return [*map(open_image, args.image), *frames]


def with_image_tokens(
    prompts: Sequence[Prompt], num_images: int, config: ModelConfig, tokenizer: Tokenizer | None
) -> list[Prompt]:
    """The prompt of so many images as token ids with an image token for each. Raises a typed error if there can be none."""
    token = config.image_token_id
    if config.vision is None or token is None:
        raise UnsupportedError(
            "--image, --video: this model has no vision tower (no vision_config in its config.json), expected one that reads "
            "images. Leave them out."
        )
    if len(prompts) != 1:
        raise RequestError(f"--image, --video: got {len(prompts)} prompts, expected one, which the images belong to. Give one.")
    (prompt,) = prompts
    if isinstance(prompt, str):
        if tokenizer is None:
            raise RequestError("prompt: got text, but this checkpoint has no tokenizer.json to encode it. Send token ids.")
        prompt = tokenizer.encode(prompt)
    return [list(prompt) if token in prompt else [token] * num_images + list(prompt)]


def expanded(prompt: Sequence[int], images: Sequence[Image.Image], config: ModelConfig) -> list[int]:
    """A prompt with as many image tokens as its images take. Raises RequestError if it has not one for each."""
    from ascend_dsv4.vision.layout import expand_placeholders
    from ascend_dsv4.vision.preprocess import plan_grid

    assert config.vision is not None and config.image_token_id is not None
    lengths = [plan_grid(image.width, image.height, config.vision).num_tokens for image in images]
    return expand_placeholders(prompt, config.image_token_id, lengths)[0]
