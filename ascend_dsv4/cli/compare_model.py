# SPDX-License-Identifier: Apache-2.0
"""What `compare model` opens: two engines over one checkpoint, and the prompts."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ascend_dsv4.cli.options import model_path
from ascend_dsv4.config import EngineConfig
from ascend_dsv4.errors import ConfigError

if TYPE_CHECKING:
    from ascend_dsv4 import LLM
    from ascend_dsv4.accuracy.model_comparison import Prompt
    from ascend_dsv4.accuracy.results import Report

RANDOM_TOKENS = 130
"""More than the window of the released models and their largest ratio: every cache is read and every kind of entry closed."""


def run_model(args: argparse.Namespace, engine: EngineConfig, command: str) -> Report:
    """Open both sides and compare them."""
    from ascend_dsv4.accuracy.lockstep import parse_override
    from ascend_dsv4.accuracy.model_comparison import WalkOptions, compare_model
    from ascend_dsv4.accuracy.sweeps import SWEEPS

    overrides = [parse_override(text) for text in args.impl or ()]
    sweeps = args.sweep or []
    other = candidate_config(engine, args.candidate or ())
    if args.bar:
        _check_bar(engine, other)
    model = model_path(args.model)
    reference = _open(model, engine)
    candidate = None if other == engine else _open(model, other)
    prompts = _prompts(args, reference)
    walked = {"first": None, "all": [prompt.name for prompt in prompts], "none": []}[args.walk]
    walk = WalkOptions(walked, args.chunk_size, args.node or (), args.elements, args.standard)
    return compare_model(
        reference.runner,
        None if candidate is None else candidate.runner,
        prompts,
        overrides,
        walk=walk,
        greedy_tokens=args.greedy,
        sweeps=list(SWEEPS) if "all" in sweeps else sweeps,
        command=command,
    )


def _check_bar(reference: EngineConfig, candidate: EngineConfig) -> None:
    """Raises ConfigError for sides that the bar says nothing about."""
    sides = [(side.dtype, side.cache_rounding) for side in (reference, candidate)]
    if sides != [("float32", "off"), ("bfloat16", "off")]:
        raise ConfigError(
            f"--bar: got {sides[0]} and {sides[1]} as dtype and cache_rounding, expected float32 beside bfloat16, both without "
            "rounding, because that is what the bar was measured on. Add --cache-rounding off --candidate dtype=bfloat16 "
            "weights=bf16 kv_cache=bf16."
        )


def candidate_config(engine: EngineConfig, changes: Sequence[str]) -> EngineConfig:
    """The engine options with OPTION=VALUE changed. Raises ConfigError for an unknown option or a bad value."""
    values: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--candidate {change}: expected OPTION=VALUE, such as dtype=bfloat16. Write it that way.")
        values[name.replace("-", "_")] = _value(value)
    return EngineConfig.from_dict({**dataclasses.asdict(engine), **values}, source="--candidate")


def _value(text: str) -> Any:
    """A number, true, false or null; else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _open(model: Path, engine: EngineConfig) -> LLM:
    from ascend_dsv4 import LLM

    return LLM(model, **dataclasses.asdict(engine))


def _prompts(args: argparse.Namespace, llm: LLM) -> list[Prompt]:
    """The prompts of the command line; random tokens if there are none."""
    from ascend_dsv4.accuracy.model_comparison import Prompt, bar_prompts

    prompts = [Prompt(f"ids{i}", _token_ids(text)) for i, text in enumerate(args.token_ids or ())]
    for i, text in enumerate(args.prompt or ()):
        if llm.tokenizer is None:
            raise ConfigError(f"--prompt: {args.model} has no tokenizer.json, which text needs. Use --token-ids or --random.")
        prompts.append(Prompt(f"text{i}", llm.tokenizer.encode(text)))
    if args.bar:
        measured = bar_prompts(llm.runner)
        if not measured:
            raise ConfigError(
                f"--bar: {args.model} is not among the models that the bf16 bar was measured on. Measure it with "
                "tools/measure_bf16_bar.py, or give other prompts."
            )
        prompts += measured
    if args.random is not None or not prompts:
        prompts.append(Prompt("random", _random_tokens(args.random or RANDOM_TOKENS, llm)))
    return prompts


def _random_tokens(count: int, llm: LLM) -> list[int]:
    """Token ids of the engine's seed, those of images left out."""
    rng = np.random.default_rng(llm.engine_config.seed)
    ids = [i for i in range(llm.config.vocab_size) if i != llm.config.image_token_id]
    return [ids[i] for i in rng.integers(0, len(ids), count)]


def _token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--token-ids {text!r}: expected ids such as 1,2,3. Write them that way.") from None
