# SPDX-License-Identifier: Apache-2.0
"""Writes dumps by msprobe's format, from a small run of torch that stands for a device's.

Written from msprobe's manuals and the code that records: names, nesting, which statistics which dtype gets, and names of files.
The writing shares nothing with the package that reads them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ascend_dsv4.accuracy.results import Report


class DumpWriter:
    """One dump.json with its tensors: what one rank records in one step."""

    def __init__(self, folder: Path, task: str = "tensor", level: str = "L1", checksum: bool = False) -> None:
        self.folder, self.task, self.level, self.checksum = folder, task, level, checksum
        self.data: dict[str, Any] = {}
        self.calls: dict[str, int] = {}
        folder.mkdir(parents=True)
        if task == "tensor":
            (folder / "dump_tensor_data").mkdir()

    def api(self, api: str, *args: Any, returns: Any, **kwargs: Any) -> Any:
        """Record one forward call of an API."""
        number = self.calls.get(api, 0)
        self.calls[api] = number + 1
        name = f"{api}.{number}.forward"
        self.data[name] = {
            "input_args": self.element(args, f"{name}.input"),
            "input_kwargs": self.element(kwargs, f"{name}.kwargs"),
            "output": self.element(returns if isinstance(returns, tuple) else (returns,), f"{name}.output"),
            "is_recompute": False,
        }
        return returns

    def module(self, name: str, number: int, x: Tensor, parameters: Mapping[str, Tensor], returns: Tensor) -> None:
        """Record a module's forward call, with its parameters."""
        full = f"Module.{name}.forward.{number}"
        self.data[full] = {
            "input_args": self.element((x,), f"{full}.input"),
            "input_kwargs": {},
            "output": self.element((returns,), f"{full}.output"),
            "parameters": self.element(dict(parameters), f"{full}.parameters"),
            "is_recompute": False,
        }

    def backward(self, name: str, gradients: tuple[Any, ...], returns: tuple[Any, ...]) -> None:
        """Record a backward call under its full name."""
        self.data[name] = {"input": self.element(gradients, f"{name}.input"), "output": self.element(returns, f"{name}.output")}

    def parameters_grad(self, name: str, gradients: Mapping[str, Tensor]) -> None:
        """Record gradients of a module's parameters."""
        full = f"Module.{name}.parameters_grad.0"
        self.data[full] = {key: [self.element(value, f"{full}.{key}")] for key, value in gradients.items()}

    def element(self, value: Any, name: str) -> Any:
        """A value as the recorder describes it."""
        if isinstance(value, torch.Size):
            return {"type": "torch.Size", "value": list(value)}
        if isinstance(value, Tensor):
            return self.tensor(value, name)
        if isinstance(value, slice):
            return {"type": "slice", "value": [value.start, value.stop, value.step]}
        if isinstance(value, bool | int | float | str):
            return {"type": type(value).__name__, "value": value}
        if isinstance(value, list | tuple):
            return [self.element(item, f"{name}.{index}") for index, item in enumerate(value)]
        if isinstance(value, dict):
            return {key: self.element(item, f"{name}.{key}") for key, item in value.items()}
        return None

    def tensor(self, value: Tensor, name: str) -> dict[str, Any]:
        """A tensor with its statistics, saved if the task says so."""
        found: dict[str, Any] = {"type": "torch.Tensor", "dtype": str(value.dtype), "shape": list(value.shape)}
        found |= dict(zip(("Max", "Min", "Mean", "Norm"), statistics(value), strict=True))
        found["requires_grad"] = value.requires_grad
        if self.checksum:
            found["md5"] = f"{zlib.crc32(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()):08x}"
        if self.task == "tensor":
            found["data_name"] = f"{name}.pt"
            torch.save(value.detach().clone().contiguous(), self.folder / "dump_tensor_data" / f"{name}.pt")
        return found

    def close(self, **changes: Any) -> Path:
        """Write dump.json, stack.json and construct.json."""
        content = {
            "task": self.task, "level": self.level, "framework": "pytorch",
            "dump_data_dir": "/elsewhere/dump_tensor_data" if self.task == "tensor" else None, "data": self.data, **changes,
        }  # fmt: skip
        (self.folder / "dump.json").write_text(json.dumps(content, indent=1))
        lines = ["File /run/model.py, line 7, in forward, \n y = layer(x)"]
        (self.folder / "stack.json").write_text(json.dumps({"0": [list(self.data), lines]}))
        (self.folder / "construct.json").write_text("{}")
        return self.folder / "dump.json"


def statistics(value: Tensor) -> list[Any]:
    """Max, Min, Mean, Norm: mean and norm of floats alone and in their own precision, nothing of an empty tensor."""
    if not value.numel():
        return [None] * 4
    if value.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        return [None] * 4
    if value.is_complex():
        return [value.abs().max().item(), value.abs().min().item(), value.abs().mean().item(), None]
    if value.dtype == torch.bool:
        return [bool(value.any()), bool(value.all()), None, None]
    if not value.dim():
        return [value.item()] * 4
    bounds = [value.max().item(), value.min().item()]
    return [*bounds, value.mean().item(), value.norm().item()] if value.is_floating_point() else [*bounds, None, None]


Wrong = Mapping[str, Callable[[Any], Any]]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding by halves."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def gate(logits: Tensor, bias: Tensor, k: int, scaling: float, eps: float) -> tuple[Tensor, Tensor]:
    """Sigmoid scores, experts by score and bias, weights normalised over the chosen."""
    scores = torch.sigmoid(logits)
    chosen = torch.topk(scores + bias, k).indices
    weights = scores.gather(1, chosen)
    return weights / (weights.sum(-1, keepdim=True) + eps) * scaling, chosen.int()


def run(
    writer: DumpWriter, seed: int, dtype: torch.dtype = torch.float32, wrong: Wrong | None = None, noise: float = 0.0
) -> None:
    """A small decoder layer, call by call, as an L1 dump records it.

    wrong  API → what it does to its output
    noise  relative error of every linear layer, as another device's order of summation would give
    """
    torch.manual_seed(seed)
    wrong = wrong or {}

    def call(api: str, *args: Any, returns: Any, **kwargs: Any) -> Any:
        returns = wrong[api](returns) if api in wrong else returns
        return writer.api(api, *args, returns=returns, **kwargs)

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = F.linear(x, weight, bias)
        y = y + noise * torch.sin(torch.arange(y.numel(), dtype=torch.float32)).reshape(y.shape).to(dtype) * y
        result: Tensor = call("Functional.linear", x, weight, **({} if bias is None else {"bias": bias}), returns=y)
        return result

    tokens, hidden, inner = 6, 16, 24
    ids, table = torch.randint(0, 40, (tokens,)), torch.randn(40, hidden).to(dtype)
    x = call("Functional.embedding", ids, table, None, None, 2.0, returns=F.embedding(ids, table))
    gain = (torch.rand(hidden) + 0.5).to(dtype)
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    normed, _ = call("NPU.npu_rms_norm", x, gain, epsilon=1e-6, returns=((wide * scale * gain.float()).to(dtype), scale))
    query = linear(normed, torch.randn(hidden, hidden).to(dtype) / 4).reshape(1, tokens, 2, hidden // 2)
    angle = torch.rand(1, tokens, 1, hidden // 4).repeat(1, 1, 1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    rotated = call("NPU.npu_rotary_mul", query, cos, sin, returns=rotate(query.float(), cos.float(), sin.float()).to(dtype))
    heads = rotated[0].transpose(0, 1).contiguous()
    scores = call("Torch.bmm", heads, heads.transpose(1, 2).contiguous(), returns=torch.bmm(heads, heads.transpose(1, 2)))
    call("Tensor.masked_fill", scores, torch.ones(1, tokens, dtype=torch.bool).logical_not(), 0.0, returns=scores.clone())
    gated = linear(normed, torch.randn(2 * inner, hidden).to(dtype) / 4, torch.randn(2 * inner).to(dtype))
    left, right = gated.float().chunk(2, dim=-1)
    active = call("NPU.npu_swiglu", gated, dim=-1, returns=(F.silu(left) * right).to(dtype))
    down = linear(active, torch.randn(hidden, inner).to(dtype) / 4)
    logits, bias = linear(down, torch.randn(8, hidden).to(dtype)).float(), torch.randn(8) / 10
    weights, chosen = gate(logits, bias, 3, 2.5, 1e-20)
    call(
        "NPU.npu_moe_gating_top_k", logits, 3, bias=bias, norm_type=1, routed_scaling_factor=2.5, eps=1e-20,
        returns=(weights, chosen, None),
    )  # fmt: skip
    activated = call("Functional.gelu", down, returns=F.gelu(down))
    call("Functional.silu", activated, False, returns=F.silu(activated))
    ln = (torch.rand(hidden).to(dtype), torch.randn(hidden).to(dtype))
    call("Functional.layer_norm", down, (hidden,), *ln, 1e-5, returns=F.layer_norm(down, (hidden,), *ln, 1e-5))
    call("Torch.cat", (down, activated), dim=-1, returns=torch.cat((down, activated), -1))
    call("Tensor.__getitem__", down, [slice(0, 2, None), None], returns=down[0:2, None])


def write_run(folder: Path, steps: int = 2, ranks: int = 2, task: str = "tensor", **how: Any) -> Path:
    """A dump of several steps and ranks. `wrong` applies in the last step of the last rank alone."""
    wrong, checksum = how.pop("wrong", None), how.pop("checksum", False)
    for step in range(steps):
        for rank in range(ranks):
            writer = DumpWriter(folder / f"step{step}" / f"rank{rank}", task, checksum=checksum)
            last = (step, rank) == (steps - 1, ranks - 1)
            run(writer, seed=10 * step + rank, wrong=wrong if last else None, **how)
            writer.close()
    return folder


def write_one(folder: Path, output: torch.Tensor | None = None, **how: Any) -> tuple[Path, dict[str, Any]]:
    """A dump of one call, x ↦ silu(x), and its content to tamper with."""
    x = torch.linspace(-3, 3, 24).reshape(4, 6)
    writer = DumpWriter(folder, **how)
    writer.api("Functional.silu", x, returns=torch.nn.functional.silu(x) if output is None else output)
    file = writer.close()
    return file, json.loads(file.read_text())


def finding(report: Report, part: str) -> str:
    """The one finding with this text."""
    found = [text for text in report.findings if part in text]
    assert len(found) == 1, f"{part!r} in {report.findings}"
    return found[0]
