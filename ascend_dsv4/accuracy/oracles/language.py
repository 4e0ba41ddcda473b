# SPDX-License-Identifier: Apache-2.0
"""Oracles of the text model, from embedding to sampling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ascend_dsv4.accuracy.oracles.numerics import Args, Array, decode, normed, round_to, silu, stored, turned


def embed(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    out = np.zeros((len(a["input_ids"]), attrs["hc_mult"], a["weight"].shape[1]))
    for t, token in enumerate(a["input_ids"]):
        for n in range(attrs["hc_mult"]):
            out[t, n] = a["weight"][token]
    return {"y": out}


def rms_norm(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    x = a["x"]
    rows = [normed(row, a["weight"], attrs["eps"]) for row in x.reshape(-1, x.shape[-1])]
    return {"y": np.array(rows).reshape(x.shape)}


def layer_norm(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    out = np.zeros(a["x"].shape)
    for index in np.ndindex(out.shape[:-1]):
        row = a["x"][index]
        mean = math.fsum(row) / len(row)
        variance = math.fsum((row - mean) ** 2) / len(row)
        out[index] = (row - mean) / math.sqrt(variance + attrs["eps"]) * a["weight"] + a["bias"]
    return {"y": out}


def linear(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    return {"y": a["x"] @ decode(a["weight"], a["scale"], attrs["block"]).T}


def grouped_linear(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    x, weight = a["x"], decode(a["weight"], a["scale"], attrs["block"])
    per_group = len(weight) // x.shape[1]
    out = np.zeros((*x.shape[:2], per_group))
    for g in range(x.shape[1]):
        for r in range(per_group):
            out[:, g, r] = x[:, g] @ weight[g * per_group + r]
    return {"y": out}


def rope(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    out = a["x"].copy()
    for index in np.ndindex(out.shape[:-1]):
        cos, sin = a["cos"][index[0]], a["sin"][index[0]]
        out[index] = turned(out[index], cos, -sin if attrs["inverse"] else sin, attrs["start"], attrs["layout"])
    return {"y": out}


def step_metadata(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    angles = np.zeros((len(a["positions"]), len(a["inv_freq"])))
    for t, position in enumerate(a["positions"]):
        for i, frequency in enumerate(a["inv_freq"]):
            angles[t, i] = np.float32(position + attrs["offset"]) * np.float32(frequency)
    return {"cos": np.cos(angles), "sin": np.sin(angles)}


def projected(streams: Array, fn: Array, eps: float) -> Array:
    z = streams.reshape(-1)
    return np.array([(row * z).sum() for row in fn]) / math.sqrt((z * z).mean() + eps)


def hc_pre(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    streams, scale, base, eps = a["streams"], a["scale"], a["base"], attrs["hc_eps"]
    count, n, hidden = streams.shape
    x, pre, post, comb = np.zeros((count, hidden)), np.zeros((count, n)), np.zeros((count, n)), np.zeros((count, n, n))
    for t in range(count):
        u = projected(streams[t], a["fn"], attrs["norm_eps"])
        for i in range(n):
            pre[t, i] = 1 / (1 + math.exp(-(u[i] * scale[0] + base[i]))) + eps
            x[t] += (pre if a["mix"] is None else a["mix"])[t, i] * streams[t, i]
            post[t, i] = 2 / (1 + math.exp(-(u[n + i] * scale[1] + base[n + i])))
            row = [math.exp(u[2 * n + i * n + j] * scale[2] + base[2 * n + i * n + j]) for j in range(n)]
            comb[t, i] = [power / sum(row) + eps for power in row]
        for step in range(2 * attrs["sinkhorn_iters"] - 1):
            sums = comb[t].sum(axis=step % 2) + eps  # even steps: over the first index, giving column sums
            comb[t] = comb[t] / (sums[None, :] if step % 2 == 0 else sums[:, None])
    return {"x": x, "post": post, "comb": comb, "pre": pre}


def hc_collapse(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    x = np.zeros((len(a["streams"]), a["streams"].shape[2]))
    for t, n in np.ndindex(a["mix"].shape):
        x[t] += a["mix"][t, n] * a["streams"][t, n]
    return {"x": x}


def hc_post(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    out = np.zeros(a["streams"].shape)
    for t, j in np.ndindex(out.shape[:2]):
        out[t, j] = a["post"][t, j] * a["x"][t]
        for i in range(out.shape[1]):
            out[t, j] += a["comb"][t, i, j] * a["streams"][t, i]
    return {"y": out}


def hc_head(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    streams = a["streams"]
    out = np.zeros((len(streams), streams.shape[2]))
    for t in range(len(streams)):
        u = projected(streams[t], a["fn"], attrs["norm_eps"])
        for n in range(streams.shape[1]):
            out[t] += (1 / (1 + math.exp(-(u[n] * a["scale"][0] + a["base"][n]))) + attrs["hc_eps"]) * streams[t, n]
    return {"y": out}


def store_kv(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    cache = a["cache"].copy()
    for row, slot in zip(a["rows"], a["slots"], strict=True):
        if slot >= 0:
            cache[slot // cache.shape[1], slot % cache.shape[1]] = stored(row, attrs["rounding"], attrs["rope_dim"], dtype)
    return {"cache": cache}


def compress_kv(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    cache, state, ratio = a["cache"].copy(), a["state"].copy(), attrs["ratio"]
    head_dim, width = cache.shape[2], a["kv"].shape[1]
    logits = np.array([a["gate"][t] + a["ape"][p % ratio] for t, p in enumerate(a["positions"])]).reshape(-1, width)
    for i, slot in enumerate(a["state_slots"]):
        mine = range(a["cu_query_lens"][i], a["cu_query_lens"][i + 1])
        at = {int(a["positions"][t]): t for t in mine}
        for position, t in at.items():
            if a["slots"][t] < 0:
                continue
            terms = []  # (logits, kv) of every covered token
            for p in range(position - ratio * (width // head_dim) + 1, position + 1):
                if p < 0:
                    continue
                kv, b = (a["kv"][at[p]], logits[at[p]]) if p in at else a["state"][slot, p % state.shape[1]]
                older = p <= position - ratio
                part = slice(head_dim) if older or width == head_dim else slice(head_dim, width)
                terms.append((b[part], kv[part]))
            entry = np.zeros(head_dim)
            for c in range(head_dim):
                top = max(b[c] for b, _ in terms)
                powers = [math.exp(b[c] - top) for b, _ in terms]
                entry[c] = sum(p * kv[c] for p, (_, kv) in zip(powers, terms, strict=True)) / sum(powers)
            entry = round_to(normed(round_to(entry, dtype), a["norm"], attrs["eps"]), dtype)
            first = head_dim - 2 * a["cos"].shape[1]
            entry = round_to(turned(entry, a["cos"][t], a["sin"][t], first, "adjacent"), dtype)
            where = divmod(int(a["slots"][t]), cache.shape[1])
            cache[where] = stored(entry, attrs["rounding"], 2 * a["cos"].shape[1], dtype)
        for position, t in at.items():
            if position > max(at) - state.shape[1]:
                state[slot, position % state.shape[1]] = [a["kv"][t], logits[t]]
    return {"cache": cache, "state": state}


def requests_of(a: Args) -> list[tuple[int, dict[int, int]]]:
    """State slot and position → row, for every request of a step."""
    return [
        (int(slot), {int(a["positions"][t]): t for t in range(a["cu_query_lens"][i], a["cu_query_lens"][i + 1])})
        for i, slot in enumerate(a["state_slots"])
    ]


def pool_kv(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    entries, ratio = np.zeros(a["kv"].shape), attrs["ratio"]
    for slot, at in requests_of(a):
        for last, t in at.items():
            if last % ratio != ratio - 1:
                continue
            group = []
            for p in range(last - ratio + 1, last + 1):
                kept = a["state"][slot, p % a["state"].shape[1]]
                group.append((a["kv"][at[p]], a["gate"][at[p]]) if p in at else (kept[0], kept[1]))
            for c in range(entries.shape[1]):
                top = max(gate[c] for _, gate in group)
                powers = [math.exp(gate[c] - top) for _, gate in group]
                entries[t, c] = sum(power * kv[c] for power, (kv, _) in zip(powers, group, strict=True)) / sum(powers)
    return {"entries": entries}


def store_state(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    state = a["state"].copy()
    for slot, at in requests_of(a):
        for p in sorted(at):  # later positions take the place of earlier ones
            state[slot, p % state.shape[1]] = a["kv"][at[p]], a["gate"][at[p]]
    return {"state": state}


def index_topk(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    chosen = np.full((len(a["q"]), attrs["topk"]), -1, dtype=np.int32)
    published = np.full((len(a["q"]), attrs["num_candidates"]), -1, dtype=np.int32)
    size = attrs["candidate_block"]
    for t, (position, request) in enumerate(zip(a["positions"], a["req_idx"], strict=True)):
        scores = []
        queries = [stored(q, attrs["rounding"], 0, dtype) for q in a["q"][t]]
        for s in range((position + 1) // attrs["ratio"] if request >= 0 else 0):
            block, row = divmod(s, a["idx_kv"].shape[1])
            key = a["idx_kv"][a["block_table"][request, block], row]
            score = 0.0
            for q, weight in zip(queries, a["weights"][t], strict=True):
                score += weight * max(q @ key, 0.0)
            scores.append((-score, s))
        allowed = [pair for pair in scores if a["candidates"] is None or pair[1] // size in a["candidates"][t]]
        best = sorted(s for _, s in sorted(allowed)[: attrs["topk"]])
        chosen[t, : len(best)] = best
        if scores and attrs["num_candidates"]:
            ranked = sorted((min(scores[first : first + size])[0], first // size) for first in range(0, len(scores), size))
            newest = (len(scores) - 1) // size
            kept = [block for _, block in ranked if block != newest][: attrs["num_candidates"] - 1]
            published[t, : len(kept) + 1] = sorted([*kept, newest])
    return {"entries": chosen, "blocks": published}


def sparse_attention(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    out = np.zeros(a["q"].shape)
    for t, (position, request) in enumerate(zip(a["positions"], a["req_idx"], strict=True)):
        if request < 0:
            continue
        keys = []
        for p in range(max(0, position - attrs["window"] + 1), position + 1):
            block, row = divmod(p, a["win_kv"].shape[1])
            keys.append(a["win_kv"][a["window_table"][request, block % a["window_table"].shape[1]], row])
        if a["cmp_kv"] is not None:
            for s in range((position + 1) // attrs["ratio"]):
                if a["entries"] is None or s in a["entries"][t]:
                    block, row = divmod(s, a["cmp_kv"].shape[1])
                    keys.append(a["cmp_kv"][a["block_table"][request, block], row])
        for h, q in enumerate(a["q"][t]):
            scores = np.array(keys) @ q * attrs["scale"]
            top = max(*scores, a["sink"][h])
            powers = np.exp(scores - top)
            out[t, h] = powers @ np.array(keys) / (powers.sum() + math.exp(a["sink"][h] - top))
    return {"o": out}


def mla_attention(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    out = np.zeros((*a["q"].shape[:2], attrs["value_dim"]))
    for t, (position, request) in enumerate(zip(a["positions"], a["req_idx"], strict=True)):
        rows = []
        for s in range(position + 1):
            if a["entries"] is None or s in a["entries"][t]:
                block, row = divmod(s, a["mla_kv"].shape[1])
                rows.append(a["mla_kv"][a["block_table"][request, block], row])
        for h, q in enumerate(a["q"][t] if rows else []):
            scores = [float(row @ q) * attrs["scale"] for row in rows]
            weights = [math.exp(score - max(scores)) for score in scores]
            for weight, row in zip(weights, rows, strict=True):
                out[t, h] += weight / math.fsum(weights) * row[: attrs["value_dim"]]
    return {"o": out}


def eligible(ranks: Array, attrs: dict[str, Any]) -> list[int]:
    """Experts of the groups that are kept."""
    if attrs["n_group"] == 1:
        return list(range(len(ranks)))
    size = len(ranks) // attrs["n_group"]
    groups = [range(start, start + size) for start in range(0, len(ranks), size)]
    worth = [sum(sorted(ranks[e] for e in group)[-2:]) for group in groups]
    best = sorted(range(len(groups)), key=lambda g: (-worth[g], g))[: attrs["topk_group"]]
    return [e for g in sorted(best) for e in groups[g]]


def route(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    ids = np.zeros((len(a["logits"]), attrs["topk"]), dtype=np.int32)
    weights = np.zeros(ids.shape)
    for t, row in enumerate(a["logits"]):
        if attrs["scoring"] == "sigmoid":
            scores = [1 / (1 + math.exp(-x)) for x in row]
        else:
            scores = [math.sqrt(max(x, 0.0) + math.log1p(math.exp(-abs(x)))) for x in row]
        if a["tid2eid"] is not None:
            ids[t] = a["tid2eid"][a["input_ids"][t]]
        else:
            bias = a["bias_vl"] if a["is_image"] is not None and a["is_image"][t] else a["bias"]
            ranks = np.array(scores) + (0 if bias is None else bias)
            ids[t] = sorted(eligible(ranks, attrs), key=lambda e: (-ranks[e], e))[: attrs["topk"]]
        total = sum(scores[e] for e in ids[t]) + attrs["norm_eps"] if attrs["norm_topk_prob"] else 1.0
        weights[t] = [scores[e] / total * attrs["scaling"] for e in ids[t]]
    return {"ids": ids, "weights": weights}


def moe_dispatch(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    ids = a["ids"]
    rows, row_weights = np.zeros((ids.size, a["x"].shape[1])), np.zeros(ids.size)
    counts, row_of = np.zeros(attrs["num_experts"], dtype=np.int32), np.full(ids.shape, -1, dtype=np.int32)
    at = 0
    for expert in range(attrs["num_experts"]):
        for t, j in np.ndindex(ids.shape):
            if ids[t, j] == expert:
                rows[at], row_weights[at], row_of[t, j] = a["x"][t], a["weights"][t, j], at
                counts[expert] += 1
                at += 1
    return {"rows": rows, "row_weights": row_weights, "counts": counts, "row_of": row_of}


def expert_mlp(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    out, at, limit = np.zeros(a["rows"].shape), 0, attrs["limit"]
    for expert, count in enumerate(a["counts"]):
        w13, w2 = (
            decode(a[name][expert], None if a[f"{name}_scale"] is None else a[f"{name}_scale"][expert], attrs["block"])
            for name in ("w13", "w2")
        )
        for row in range(at, at + count):
            both = w13 @ a["rows"][row]
            gate, up = both[: len(both) // 2], both[len(both) // 2 :]
            hidden = a["row_weights"][row] * silu(np.minimum(gate, limit)) * np.clip(up, -limit, limit)
            out[row] = w2 @ round_to(hidden, dtype)
        at += count
    return {"y": out}


def moe_combine(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    out = np.zeros((len(a["row_of"]), a["rows"].shape[1]))
    for t, j in np.ndindex(a["row_of"].shape):
        if a["row_of"][t, j] >= 0:
            out[t] += a["rows"][a["row_of"][t, j]]
    return {"y": out}


def swiglu(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    limit = attrs["limit"]
    return {"y": silu(np.minimum(a["gate"], limit)) * np.clip(a["up"], -limit, limit)}


def logits(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    return {"y": np.array([a["weight"] @ a["x"][row] for row in a["rows"]]).reshape(-1, len(a["weight"]))}


def adjust_logits(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    y = a["logits"].copy()
    for r, i, repetition, bias in zip(a["rows"], a["ids"], a["repetition"], a["bias"], strict=True):
        if r >= 0:
            penalised = round_to(y[r, i] / repetition if y[r, i] > 0 else y[r, i] * repetition, dtype)
            y[r, i] = round_to(penalised + bias, dtype)
    for r, i in np.ndindex(y.shape):
        bits = f"{int(a['allowed'][r, i // 32]) % 2**32:032b}"
        if bits[-1 - i % 32] == "0":
            y[r, i] = -math.inf if y[r, i] < math.inf else math.nan
    return {"y": y}


def sample(a: Args, attrs: dict[str, Any], dtype: str) -> dict[str, Array]:
    ids, logprobs = [], []
    for r, row in enumerate(a["logits"]):
        if np.isnan(row).any() or not np.isfinite(max(row)):
            ids.append(-1)
            logprobs.append(math.nan)
            continue
        ranked = sorted(range(len(row)), key=lambda i: (-row[i], i))
        token = ranked[0]
        if a["temperature"][r] > 0:
            if a["top_k"][r] > 0:
                ranked = ranked[: a["top_k"][r]]
            weights = [math.exp((row[i] - row[ranked[0]]) / a["temperature"][r]) for i in ranked]
            total, running = sum(weights), 0.0
            kept: list[tuple[int, float]] = []
            for i, weight in zip(ranked, weights, strict=True):
                if not kept or running < a["top_p"][r] * total:
                    kept.append((i, weight))
                running += weight
            kept = [(i, weight) for i, weight in kept if weight >= a["min_p"][r] or i == ranked[0]]
            goal, running = a["uniform"][r] * sum(weight for _, weight in kept), 0.0
            for i, weight in kept:
                running += weight
                token = i
                if running > goal:
                    break
        top = max(row)
        ids.append(token)
        logprobs.append(row[token] - top - math.log(sum(math.exp(x - top) for x in row)))
    return {"ids": np.array(ids, dtype=np.int32), "logprobs": np.array(logprobs)}
