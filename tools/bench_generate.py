# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of offline generation: prefill and decode tokens/s, milliseconds per step, load time, peak memory.

    python tools/bench_generate.py --model DIR --batch 4 --prompt 256 --decode 32 --threads 2
    python tools/bench_generate.py --model DIR --against transformers    # the same weights, dtype and threads

Every engine runs in a process of its own; rounds alternate between them, so that a busy machine slows all of them alike.
The figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

FIRST_ID, ID_RANGE = 3, 400
"""Prompts count through ids that every tokenizer of the family has as ordinary tokens."""


def prompt_ids(length: int, number: int) -> list[int]:
    """A prompt that differs from request to request."""
    return [FIRST_ID + (number * 37 + 7 * position) % ID_RANGE for position in range(length)]


class Ours:
    """This package."""

    def __init__(self, options: argparse.Namespace) -> None:
        from ascend_dsv4 import LLM, SamplingParams

        total = options.prompt + options.decode
        self.llm = LLM(
            options.model, ops=options.ops, dtype=options.dtype, weights=options.weights, cache_rounding="off",
            max_model_len=total, max_num_seqs=options.batch, max_total_tokens=total * options.batch,
            max_num_batched_tokens=options.prompt * options.batch, progress=False,
        )  # fmt: skip
        self.params = SamplingParams(max_tokens=options.decode, temperature=0, ignore_eos=True)
        self.options = options

    def round(self) -> tuple[float, float]:
        """Seconds of the prefill (one step) and of all decode steps."""
        engine = self.llm.engine
        for number in range(self.options.batch):
            engine.submit(prompt_ids(self.options.prompt, number), self.params)
        start = time.perf_counter()
        engine.step()
        middle = time.perf_counter()
        while engine.has_work:
            engine.step()
        return middle - start, time.perf_counter() - middle


class Transformers:
    """Hugging Face transformers with its own cache, eager."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
        self.options = options

    def round(self) -> tuple[float, float]:
        """As `Ours.round`."""
        with self.torch.inference_mode():
            ids = self.torch.tensor([prompt_ids(self.options.prompt, n) for n in range(self.options.batch)])
            start = time.perf_counter()
            out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
            middle = time.perf_counter()
            for _ in range(self.options.decode - 1):
                out = self.model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
            return middle - start, time.perf_counter() - middle


ENGINES = {"ascend-dsv4": Ours, "transformers": Transformers}


def serve(name: str, options: argparse.Namespace, pipe: Connection) -> None:
    """Body of an engine's process: load, then a round for every message, then report peak memory."""
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import ascend_dsv4  # noqa: F401  (sets OpenMP up before torch loads, for every engine alike)

    start = time.perf_counter()
    engine = ENGINES[name](options)
    pipe.send(time.perf_counter() - start)
    while pipe.recv():
        pipe.send(engine.round())
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All engines, rounds interleaved; the first round of each is a warm-up."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in ["ascend-dsv4", *([options.against] if options.against else [])]:
        pipe, child = context.Pipe()
        context.Process(target=serve, args=(name, options, child), daemon=True).start()
        child.close()
        pipes[name] = (pipe, pipe.recv())
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in pipes}
    for number in range(options.rounds + 1):
        for name, (pipe, _) in pipes.items():
            pipe.send(True)
            result = pipe.recv()
            if number:
                rounds[name].append(result)
    return {name: figures(options, rounds[name], load, _finish(pipe)) for name, (pipe, load) in pipes.items()}


def _finish(pipe: Connection) -> int:
    pipe.send(False)
    return int(pipe.recv())


def figures(options: argparse.Namespace, rounds: list[tuple[float, float]], load: float, peak: int) -> dict[str, float]:
    """Medians of an engine's rounds."""
    prefill = statistics.median(r[0] for r in rounds)
    step = statistics.median(r[1] for r in rounds) / (options.decode - 1)
    return {
        "load_s": load,
        "prefill_tokens_per_s": options.batch * options.prompt / prefill,
        "prefill_ms": prefill * 1e3,
        "decode_tokens_per_s": options.batch / step,
        "decode_ms_per_step": step * 1e3,
        "peak_memory_bytes": peak,
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: the demo model)")
    parser.add_argument("--batch", type=int, default=1, help="sequences at once (default 1)")
    parser.add_argument("--prompt", type=int, default=128, help="prompt tokens per sequence (default 128)")
    parser.add_argument("--decode", type=int, default=32, help="generated tokens per sequence, at least 2 (default 32)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="OpenMP threads (default: all cores)")
    parser.add_argument("--ops", default="auto", help="op set (default auto)")
    parser.add_argument("--dtype", default="float32", help="compute dtype (default float32)")
    parser.add_argument("--weights", default="fp32", help="resident weight format (default fp32, as transformers holds them)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default 3)")
    parser.add_argument("--against", choices=["transformers"], help="measure this engine too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if min(options.batch, options.prompt, options.rounds) < 1 or options.decode < 2:
        parser.error("--batch, --prompt and --rounds start at 1, --decode at 2")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.model is None:
        from ascend_dsv4.demo import demo_model

        options.model = demo_model()
    results = measure(options)
    setup: dict[str, Any] = {key: getattr(options, key) for key in ("batch", "prompt", "decode", "threads", "ops", "dtype")}
    setup |= {"weights": options.weights, "model": options.model.name, "machine": platform.machine(), "rounds": options.rounds}
    if options.json:
        print(json.dumps({"setup": setup, "results": results}, indent=2))
        return 0
    print(", ".join(f"{key} {value}" for key, value in setup.items()))
    for name, result in results.items():
        print(name)
        for key, value in result.items():
            print(f"  {key:22s} {value:14,.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
