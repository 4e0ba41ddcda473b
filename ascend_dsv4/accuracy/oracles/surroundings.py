# SPDX-License-Identifier: Apache-2.0
"""Oracles of what surrounds the text model: n-gram rows and images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ascend_dsv4.accuracy.oracles.numerics import E4M3, Args, Array, normed, round_to, silu


def engram_rows(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    rows, head_dim = a["rows"], attrs["head_dim"]
    out = np.zeros((*rows.shape[:2], head_dim))
    for t, column in np.ndindex(rows.shape[:2]):
        data = [int(byte) for byte in rows[t, column]]
        for c in range(head_dim):
            if attrs["format"] == "bf16":
                out[t, column, c] = np.array([data[2 * c] << 16 | data[2 * c + 1] << 24], dtype="u4").view("f4")[0]
                continue
            if attrs["format"] == "fp8":
                value = (-1) ** (data[c] >> 7) * [*E4M3, math.nan][data[c] & 127]
            elif attrs["format"] == "int8":
                value = data[c] - 256 * (data[c] > 127)
            else:
                nibble = data[c // 2] >> 4 if c % 2 else data[c // 2] & 15
                value = nibble - 16 * (nibble > 7)
            exponent = data[len(data) - head_dim // 32 + c // 32]
            out[t, column, c] = value * (math.nan if exponent == 255 else 2.0 ** (exponent - 127))
    return {"e": round_to(out.reshape(len(rows), rows.shape[1] * head_dim), attrs["out_dtype"])}


def engram_gate(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    streams, out = a["streams"], a["streams"].copy()
    hidden = streams.shape[2]
    for t, s in np.ndindex(streams.shape[:2]):
        if a["is_image"] is not None and a["is_image"][t] != 0:
            continue
        h, key, value = streams[t, s], a["kv"][t, s * hidden : (s + 1) * hidden], a["kv"][t, -hidden:]
        q = normed(h, a["q_weight"][s], attrs["eps"])
        dot = (q * normed(key, a["k_weight"][s], attrs["eps"])).sum() / math.sqrt(hidden)
        sign = 0.0 if dot == 0 and not attrs["sign_of_zero"] else math.copysign(1, dot)
        out[t, s] = h + value / (1 + math.exp(-sign * math.sqrt(max(abs(dot), 1e-6))))
    return {"y": out}


def concat(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    x, y = a["x"], a["y"]
    z = np.empty((*x.shape[:-1], x.shape[-1] + y.shape[-1]))
    z[..., : x.shape[-1]], z[..., x.shape[-1] :] = x, y
    return {"z": z}


def gelu(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    y = [x / 2 * math.erfc(-x / math.sqrt(2)) for x in a["x"].reshape(-1)]
    return {"y": np.array(y).reshape(a["x"].shape)}


def linear_bias(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    return {"y": np.einsum("...i,oi->...o", a["x"], a["weight"]) + a["bias"]}


def merge_patches(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    (blocks, cells), dim = a["patch_ids"].shape, a["x"].shape[1]
    out = np.zeros((blocks, dim * cells))
    for b, k, c in np.ndindex(blocks, cells, dim):
        if a["patch_ids"][b, k] >= 0:
            out[b, c * cells + k] = a["x"][a["patch_ids"][b, k], c]
    return {"y": out}


def half_turned(row: Array, cos: Array, sin: Array) -> Array:
    """A head, channel i with channel i + half."""
    out, half = row.copy(), len(cos)
    for i in range(half):
        out[i] = row[i] * cos[i] - row[i + half] * sin[i]
        out[i + half] = row[i + half] * cos[i] + row[i] * sin[i]
    return out


def vision_block(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    def kept(x: Array) -> Array:
        return round_to(x, dtype)

    x, (count, dim) = a["x"], a["x"].shape
    size = dim // attrs["num_heads"]
    qkv = [kept(a["wqkv"] @ kept(normed(row, a["norm1"], attrs["eps"])) + a["bqkv"]) for row in x]
    o = np.zeros((count, dim))
    for start in range(0, dim, size):
        head = slice(start, start + size)
        q, k = (
            [kept(half_turned(row[part:][head], a["cos"][p], a["sin"][p])) for p, row in enumerate(qkv)] for part in (0, dim)
        )
        for p in range(count):
            scores = np.array([q[p] @ key for key in k]) / math.sqrt(size)
            powers = np.exp(scores - scores.max())
            o[p, head] = sum(power * row[2 * dim :][head] for power, row in zip(powers, qkv, strict=True)) / powers.sum()
    y = np.zeros((count, dim))
    for p in range(count):
        middle = kept(x[p] + kept(a["wo"] @ kept(o[p]) + a["bo"]))
        gate, up = np.split(kept(a["w1"] @ kept(normed(middle, a["norm2"], attrs["eps"]))), 2)
        y[p] = middle + kept(a["w2"] @ kept(kept(silu(gate)) * up))
    return {"y": y}


def place_rows(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    y = a["streams"].copy()
    for row, token in zip(a["rows"], a["at"], strict=True):
        if token >= 0:
            for stream in range(y.shape[1]):
                y[token, stream] = round_to(row, dtype)
    return {"y": y}
