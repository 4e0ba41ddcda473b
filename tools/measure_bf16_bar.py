# SPDX-License-Identifier: Apache-2.0
"""How far bfloat16 is from float32 in another implementation: writes ascend_dsv4/accuracy/bf16_bar.json.

    pip install transformers==5.23.0
    python tools/measure_bf16_bar.py GOLDENS --out ascend_dsv4/accuracy/bf16_bar.json

GOLDENS holds v4/, v32/ and v41/, each with logits.safetensors (prompts) and bf16/ (a checkpoint). For every prompt all logits
are computed twice, in float32 and in bfloat16, from the same weights. What is kept is KL(float32 ‖ bfloat16) per position, in
nats, its mean and maximum over the prompt, and the share of positions with the same most likely token. Prompts are those of the
goldens and RANDOM_PROMPTS of random ids.

V4 and V3.2 are measured in transformers: `from_pretrained(dtype=…)`, eager attention, eager experts, one forward pass without
cache. Its float32 must agree with the goldens' logits, which shows that the right model was loaded. transformers 5.23 has no
V4.1, so for that a stand-in is measured: this project's float32 reference with every output of every operator, and every cache
row, rounded to bfloat16. The same stand-in is measured on V4 and V3.2 too, as `stand_in_kl_mean`: how it compares with
transformers there says what it is worth.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ascend_dsv4 import LLM
from ascend_dsv4.accuracy.bf16_bar import FINGERPRINT_ROWS, fingerprint, prompt_hash
from ascend_dsv4.accuracy.end_metrics import kl_divergence
from ascend_dsv4.accuracy.lockstep import Override
from ascend_dsv4.accuracy.lockstep_runner import LockstepRunner
from ascend_dsv4.engine.engine import Engine
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.registry import get_implementation, get_spec
from ascend_dsv4.ops.spec import Implementation

RANDOM_PROMPTS, RANDOM_TOKENS = 12, 256
GOLDEN_AGREEMENT = 3e-4
"""Largest difference of transformers' float32 logits from the goldens'."""
IN_TRANSFORMERS = ("v4", "v32")
STATISTIC = (
    "KL(float32 || bfloat16) in nats of the next-token distribution at each position of a prompt, teacher-forced; kl_mean of a "
    "prompt is the mean over its positions, kl_mean of a model the mean over all positions of all its prompts"
)

Logits = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Prompt → logits in float32 and in bfloat16."""


def prompts_of(folder: Path, vocab_size: int, image_token_id: int | None) -> dict[str, list[int]]:
    """Those of the goldens, then random ones."""
    golden = load_file(folder / "logits.safetensors")
    names = sorted({name.split(".")[0] for name in golden}, key=lambda name: int(name.removeprefix("len")))
    prompts = {name: golden[f"{name}.input_ids"].tolist() for name in names}
    for i in range(RANDOM_PROMPTS):
        ids = np.random.default_rng([4, i]).integers(3, vocab_size, RANDOM_TOKENS).tolist()
        prompts[f"random{i}"] = [3 if token == image_token_id else token for token in ids]
    return prompts


def transformers_logits(folder: Path, prompts: Mapping[str, list[int]]) -> tuple[Logits, NDArray[np.float32]]:
    """Logits in both formats, and the first rows of the embedding."""
    from transformers import AutoModelForCausalLM

    runs = []
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(
            folder / "bf16", dtype=dtype, attn_implementation="eager", experts_implementation="eager"
        ).eval()
        with torch.inference_mode():
            outs = {name: model(torch.tensor([ids]), use_cache=False) for name, ids in prompts.items()}
        runs.append({name: out.logits[0].float().numpy() for name, out in outs.items()})
        embedding = model.get_input_embeddings().weight[:FINGERPRINT_ROWS].detach().float().numpy()
    return {name: (runs[0][name], runs[1][name]) for name in prompts}, embedding


def check_golden(folder: Path, logits: Logits) -> None:
    """Raise SystemExit unless float32 agrees with the goldens."""
    golden = load_file(folder / "logits.safetensors")
    for name in (name for name in logits if f"{name}.logits" in golden):
        off = float(np.abs(logits[name][0][golden[f"{name}.positions"]] - golden[f"{name}.logits"]).max())
        if off > GOLDEN_AGREEMENT:
            raise SystemExit(f"{folder}: float32 logits of {name} are {off:.3g} from the goldens; this is another model")


def rounded(function: Implementation, written: list[int]) -> Implementation:
    """An operator whose outputs, and the arguments at these places, are rounded to bfloat16."""

    def nearest(x: Any) -> Any:
        return x.bfloat16().to(x.dtype) if x.is_floating_point() else x

    def call(*tensors: Any, **attrs: Any) -> Any:
        outs = function(*tensors, **attrs)
        for place in written:
            tensors[place].copy_(nearest(tensors[place]))
        return tuple(map(nearest, outs)) if isinstance(outs, tuple) else None if outs is None else nearest(outs)

    return call


def stand_in_logits(folder: Path, prompts: Mapping[str, list[int]]) -> tuple[Logits, NDArray[np.float32]]:
    """The float32 reference, and the same with every output rounded."""
    model = LLM(folder / "bf16", ops="reference", weights="fp32", cache_rounding="off", progress=False)
    overrides = []
    for name in OP_NAMES:
        spec = get_spec(name)
        places = [list(spec.args).index(arg) for arg in spec.mutates]
        overrides.append(Override(name, rounded(get_implementation(name, "reference"), places)))
    logits: Logits = {}
    for name, ids in prompts.items():
        parts: list[tuple[Any, Any]] = []
        runner = LockstepRunner(model.runner, model.runner, overrides, take=lambda a, b, parts=parts: parts.append((a, b)))
        engine = Engine(runner.config, runner.engine, runner)
        request = engine.submit(ids, SamplingParams(max_tokens=0, prompt_logprobs=0))
        while not request.is_finished:
            engine.step()
        logits[name] = np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])
    embedding = model.backend.to_host(model.runner.weights.embed[:FINGERPRINT_ROWS])
    return logits, np.array(embedding)


def measured(logits: Logits, prompts: Mapping[str, list[int]]) -> tuple[list[dict[str, Any]], float]:
    """What is kept of each prompt, and the mean over all positions."""
    kept, everything = [], []
    for name, (wide, narrow) in logits.items():
        divergence = kl_divergence(wide, narrow)
        everything.append(divergence)
        kept.append(
            {
                "name": name,
                "num_tokens": len(prompts[name]),
                "kl_mean": float(divergence.mean()),
                "kl_max": float(divergence.max()),
                "top1_agreement": float((wide.argmax(-1) == narrow.argmax(-1)).mean()),
                "sha256": prompt_hash(prompts[name]),
                "token_ids": prompts[name],
            }
        )
    return kept, float(np.concatenate(everything).mean())


def measure(folder: Path) -> dict[str, Any]:
    """One model."""
    text = json.loads((folder / "bf16" / "config.json").read_text(encoding="utf-8"))
    config = text.get("text_config", text)
    prompts = prompts_of(folder, config["vocab_size"], text.get("image_token_id"))
    stand_in, embedding = stand_in_logits(folder, prompts)
    stand_in_kept, stand_in_mean = measured(stand_in, prompts)
    if folder.name in IN_TRANSFORMERS:
        logits, embedding = transformers_logits(folder, prompts)
        check_golden(folder, logits)
        kept, mean = measured(logits, prompts)
        baseline = f"transformers {version('transformers')} {config['model_type']} in bfloat16, eager"
    else:
        kept, mean = stand_in_kept, stand_in_mean
        baseline = "stand-in: float32 reference operators, each output rounded to bfloat16 (transformers has no such model)"
    return {
        "name": folder.name,
        "baseline": baseline,
        "config_sha256": hashlib.sha256((folder / "bf16" / "config.json").read_bytes()).hexdigest(),
        "fingerprint": fingerprint(embedding),
        "num_positions": sum(map(len, prompts.values())),
        "kl_mean": mean,
        "stand_in_kl_mean": stand_in_mean,
        "prompts": kept,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("goldens", type=Path, help="folder with v4/, v32/, v41/")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    models = [measure(args.goldens / name) for name in ("v4", "v32", "v41")]
    lines: Callable[[Any], str] = lambda value: json.dumps(value, ensure_ascii=False)  # noqa: E731
    head = {
        "format": 1,
        "statistic": STATISTIC,
        "command": f"python tools/measure_bf16_bar.py GOLDENS --out {args.out}",
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("torch", "transformers", "numpy")},
    }
    parts = []
    for model in models:
        prompts = ",\n   ".join(map(lines, model.pop("prompts")))
        parts.append(f'  {lines(model)[:-1]},\n   "prompts": [\n   {prompts}]}}')
        print(f"{model['name']:4s} {model['kl_mean']:.6f} ({model['stand_in_kl_mean']:.6f} stand-in) {model['baseline']}")
    models_text = ",\n".join(parts)
    args.out.write_text(f'{lines(head)[:-1]},\n "models": [\n{models_text}\n ]}}\n', encoding="utf-8")
    json.loads(args.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
