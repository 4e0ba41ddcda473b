# SPDX-License-Identifier: Apache-2.0
"""`ascend-dsv4 demo`: the whole way from files to text with an embedded tiny model. Needs nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from ascend_dsv4.cli import chat
from ascend_dsv4.cli.generate import complete, open_model
from ascend_dsv4.cli.options import add_engine_options, add_sampling_options, engine_config, sampling_params
from ascend_dsv4.errors import RequestError

PROMPT: Final = "The ship came into the harbour, and the captain"
DEFAULT_MAX_TOKENS: Final = 32


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "demo",
        allow_abbrev=False,
        help="try everything with a tiny model; needs no files",
        description="Write a 10 MB V4 checkpoint with random weights (FP8 and FP4, every layer type), load it as any other, "
        "and complete a prompt. The weights are random, so the text means nothing.",
    )
    parser.add_argument("--prompt", default=PROMPT, metavar="TEXT", help=f"text to complete (default: {PROMPT!r})")
    parser.add_argument("--chat", action="store_true", help="talk to it instead")
    parser.add_argument("--json", action="store_true", help="print one JSON document when all is done")
    parser.add_argument(
        "--keep-dir", metavar="DIR", type=Path,
        help="new folder for the checkpoint (default: in $XDG_CACHE_HOME, where the next demo finds it again)",
    )  # fmt: skip
    chat.add_chat_options(parser, thinking=False)
    add_sampling_options(parser, max_tokens=DEFAULT_MAX_TOKENS)
    add_engine_options(parser, max_num_seqs=1)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write, load, answer."""
    from ascend_dsv4.cli.terminal import note
    from ascend_dsv4.demo import demo_model

    _check_combination(args)
    engine, params = engine_config(args), sampling_params(args)
    folder = demo_model(args.keep_dir)
    size = sum(file.stat().st_size for file in folder.iterdir())
    note(f"demo model: {folder} ({size / 1e6:.1f} MB). Its weights are random: the text means nothing.")
    if args.chat:
        return chat.start(folder, engine, params, args)
    return complete(open_model(folder, engine), [args.prompt], params, as_json=args.json)


def _check_combination(args: argparse.Namespace) -> None:
    if args.chat and args.json:
        raise RequestError("--json: got it with --chat, but a conversation is no document. Leave one of them out.")
    chosen = {"--tools": args.tools, "--system": args.system, "--reasoning-effort": args.reasoning_effort}
    wrong = [name for name, value in (chosen | {"--thinking": args.thinking or None}).items() if value is not None]
    if wrong and not args.chat:
        raise RequestError(f"{', '.join(wrong)}: got without --chat, but only a conversation has it. Add --chat.")
