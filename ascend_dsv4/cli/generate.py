# SPDX-License-Identifier: Apache-2.0
"""`ascend-dsv4 generate`: complete prompts as they stand, or print the graphs of a model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ascend_dsv4.cli.images import add_image_options, expanded, read_images, with_image_tokens
from ascend_dsv4.cli.options import (
    add_capture_options,
    add_engine_options,
    add_sampling_options,
    capture_options,
    engine_config,
    model_path,
    sampling_params,
)
from ascend_dsv4.config import EngineConfig, ModelConfig
from ascend_dsv4.engine.request import check_prompt
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from PIL import Image

    from ascend_dsv4.llm import LLM, Prompt, RequestOutput

Commands = Any  # argparse keeps the type of what add_subparsers returns private


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "generate",
        allow_abbrev=False,
        help="complete prompts",
        description="Complete prompts. Text is tokenised as it stands: no template, no begin token (`chat` adds those). The "
        "completion goes to stdout, figures to stderr.",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder as published")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT", help="one or several prompts")
    source.add_argument("--prompt-file", metavar="FILE", help="a text file that is the prompt; - for stdin")
    source.add_argument("--token-ids", type=_token_ids, metavar="1,2,3", help="a prompt as token ids")
    parser.add_argument("--json", action="store_true", help="print one JSON document when all is done")
    parser.add_argument(
        "--dump-graph", nargs="?", const="-", metavar="FILE",
        help="print the typed graphs of the model for these options, or write them to FILE, and stop; a config.json is "
        "enough as model",
    )  # fmt: skip
    add_image_options(parser)
    add_sampling_options(parser)
    add_engine_options(parser)
    add_capture_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Complete the prompts."""
    from ascend_dsv4.cli.terminal import note

    model, engine, capture = model_path(args.model), engine_config(args), capture_options(args)
    if args.dump_graph is not None:
        if capture is not None:
            raise ConfigError(
                "--capture: got it with --dump-graph, expected one of them, because printing runs nothing. Leave one out."
            )
        return _dump_graphs(model, engine, args.dump_graph, as_json=args.json)
    params, images = sampling_params(args), read_images(args)
    prompts = _checked_prompts(_prompts(args), images, model, engine)
    if capture is None:
        return complete(open_model(model, engine), prompts, params, images, as_json=args.json)
    capture.check(model, engine)
    llm = open_model(model, engine)
    with capture.record(llm) as recording:
        code = complete(llm, prompts, params, images, as_json=args.json)
    note(recording.summary)
    return code


def _checked_prompts(
    prompts: Sequence[Prompt], images: Sequence[Image.Image], model: Path, engine: EngineConfig
) -> Sequence[Prompt]:
    """Refuse what the model cannot process before hours of loading, not after. Images get their tokens."""
    from ascend_dsv4.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(model) if (model / "tokenizer.json").exists() else None
    if images:
        prompts = with_image_tokens(prompts, len(images), ModelConfig.from_file(model), tokenizer)
    elif tokenizer is None:
        return prompts  # the model itself says what it needs
    config = ModelConfig.from_file(model)
    for prompt in prompts:
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) and tokenizer is not None else prompt
        assert not isinstance(ids, str)
        limit = engine.max_model_len or config.max_position_embeddings
        check_prompt(expanded(ids, images, config) if images else ids, config, limit)
    return prompts


def open_model(model: Path, engine: EngineConfig) -> LLM:
    """Load a checkpoint; tells on stderr what runs it and how long it took."""
    from ascend_dsv4 import LLM
    from ascend_dsv4.cli.terminal import note

    start = time.perf_counter()
    llm = LLM(model, **dataclasses.asdict(engine))
    implementation = llm.backend.bound_ops().implementation
    note(
        f"{model.name or model}: backend {engine.backend}, ops {engine.ops} = {implementation}, weights {engine.weights}, "
        f"activations {engine.dtype}, caches {engine.kv_cache} for {llm.runner.plan.max_model_len:,} tokens; loaded in "
        f"{time.perf_counter() - start:.1f} s"
    )
    if engine.speculative == "none" and llm.config.draft_method is not None:
        note(f"this checkpoint has draft stages: --speculative {llm.config.draft_method} guesses tokens ahead with them")
    if engine.speculative != "none":
        note(f"speculative decoding: {engine.speculative}, {engine.num_drafts} tokens ahead")
    return llm


def complete(
    llm: LLM, prompts: Sequence[Prompt], params: SamplingParams, images: Sequence[Image.Image] = (), *, as_json: bool
) -> int:
    """Complete prompts and print the results; a single one, which may have images, is printed while it grows.

    Returns the exit code.
    """
    from ascend_dsv4.cli.terminal import print_error, print_json

    if len(prompts) == 1 and not as_json:
        _stream(llm, prompts[0], params, images)
        return 0
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, [images] if images else None)
    seconds = time.perf_counter() - start
    if as_json:
        num_tokens = sum(len(output.token_ids) for output in outputs)
        print_json({
            "engine": dataclasses.asdict(llm.engine_config),
            "implementation": llm.backend.bound_ops().implementation,
            "outputs": [_output_json(output) for output in outputs],
            "num_output_tokens": num_tokens,
            "num_draft_tokens": llm.engine.stats.num_draft_tokens,
            "num_accepted_tokens": llm.engine.stats.num_accepted_tokens,
            "seconds": seconds,
            "tokens_per_second": num_tokens / seconds,
        })  # fmt: skip
    else:
        _print_outputs(llm, prompts, outputs, seconds)
    errors = [output.error for output in outputs if output.error is not None]
    for error in errors:
        print_error(error)
    return 2 if errors else 0


def _print_outputs(llm: LLM, prompts: Sequence[Prompt], outputs: Sequence[RequestOutput], seconds: float) -> None:
    from ascend_dsv4.cli.terminal import Answer, note, printable

    for number, (prompt, output) in enumerate(zip(prompts, outputs, strict=True), 1):
        answer = Answer()
        shown = prompt if isinstance(prompt, str) else ",".join(map(str, prompt))
        answer.content(f"--- {number}: {printable(shown.replace(chr(10), ' '))[:60]}\n")
        answer.content(output.text if llm.tokenizer is not None else ",".join(map(str, output.token_ids)))
        answer.end()
        _print_logprobs(llm, output.token_ids, output.logprobs)
    num_tokens = sum(len(output.token_ids) for output in outputs)
    note(f"{len(prompts)} prompts, {num_tokens} tokens in {seconds:.2f} s: {num_tokens / seconds:.1f} tokens/s{_accepted(llm)}")


def _stream(llm: LLM, prompt: Prompt, params: SamplingParams, images: Sequence[Image.Image]) -> None:
    from ascend_dsv4.cli.terminal import Answer, note
    from ascend_dsv4.tokenizer import IncrementalDetokenizer

    answer = Answer()
    detokenizer = None if llm.tokenizer is None else IncrementalDetokenizer(llm.tokenizer)
    start = time.perf_counter()
    times = []
    try:
        with closing(llm.stream(prompt, params, images)) as tokens:
            for new in tokens:
                times.append(time.perf_counter())
                request = new.request
                is_end = request.finish_reason == "stop" and len(times) == len(request.output_ids)
                if detokenizer is None:
                    answer.content(f"{',' if len(times) > 1 else ''}{new.token_id}")
                elif not is_end:  # the ending token is no text
                    answer.content(detokenizer.push(new.token_id))
        if detokenizer is not None:
            answer.content(detokenizer.finish())
    finally:
        answer.end()
    if params.logprobs is not None:
        _print_logprobs(llm, request.output_ids, request.logprobs)
    note(
        f"{len(request.prompt_ids)} prompt tokens, first token after {times[0] - start:.2f} s; {len(times)} tokens, ended by "
        f"{request.finish_reason}{_speed(times)}{_accepted(llm)}"
    )


def _speed(times: Sequence[float]) -> str:
    """Decode speed from the times at which tokens came."""
    return f", {(len(times) - 1) / (times[-1] - times[0]):.1f} tokens/s after the first" if len(times) > 1 else ""


def _accepted(llm: LLM) -> str:
    """What became of drafts, if there were any."""
    stats = llm.engine.stats
    return f"; {stats.num_accepted_tokens} of {stats.num_draft_tokens} drafts accepted" if stats.num_draft_tokens else ""


def _output_json(output: RequestOutput) -> dict[str, Any]:
    content = dataclasses.asdict(output)
    if output.logprobs is not None:  # JSON has no infinities
        content["logprobs"] = [
            {str(token): value if math.isfinite(value) else None for token, value in row.items()} for row in output.logprobs
        ]
    return content


def _print_logprobs(llm: LLM, token_ids: Sequence[int], logprobs: Sequence[dict[int, float]] | None) -> None:
    """A line per token on stderr: what was drawn, then the alternatives."""
    from ascend_dsv4.cli.terminal import note

    def spelled(token_id: int) -> str:
        return str(token_id) if llm.tokenizer is None else repr(llm.tokenizer.decode([token_id]))

    for token_id, row in zip(token_ids, logprobs or (), strict=False):
        others = "  ".join(f"{spelled(other)} {value:.3f}" for other, value in row.items() if other != token_id)
        note(f"{spelled(token_id)} {row[token_id]:.3f}{'  | ' + others if others else ''}")


def _token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of token ids such as 1,2,3") from None


def _prompts(args: argparse.Namespace) -> list[Prompt]:
    if args.prompt is not None:
        return list(args.prompt)
    if args.token_ids is not None:
        return [args.token_ids]
    if args.prompt_file is None:
        raise RequestError("no prompt: expected --prompt, --prompt-file, --token-ids, or --dump-graph. Give one of them.")
    try:
        data = sys.stdin.buffer.read() if args.prompt_file == "-" else Path(args.prompt_file).read_bytes()
        return [data.decode("utf-8")]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"byte {error.start} is not UTF-8"
        raise RequestError(f"--prompt-file {args.prompt_file}: {reason}; expected UTF-8 text. Check the file.") from error


def _dump_graphs(model: Path, engine: EngineConfig, target: str, *, as_json: bool) -> int:
    from ascend_dsv4.graph import format_graph
    from ascend_dsv4.llm import draft_graphs, model_graphs

    config = ModelConfig.from_file(model)
    graphs = [*model_graphs(config, engine).all(), *draft_graphs(config, engine)]
    if as_json:
        content = [{**dataclasses.asdict(graph), "weight_bytes": graph.weight_bytes()} for graph in graphs]
        text = json.dumps({"graphs": content}, indent=1, default=repr)
    else:
        text = "\n\n".join(map(format_graph, graphs))
    if target == "-":
        print(text)
        return 0
    try:
        Path(target).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--dump-graph {target}: cannot be written ({error.strerror}). Name another file.") from error
    return 0
