# SPDX-License-Identifier: Apache-2.0
"""A step's requests as arrays: the only place where Python lists become model inputs. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ascend_dsv4.kv_cache.layout import CachePlan
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.ops.spec import TensorType


@dataclass(frozen=True, slots=True)
class PlacedRows:
    """Rows that stand in the place of token embeddings."""

    start: int
    """Position of the first one."""
    rows: np.ndarray
    """float32 [num_tokens, hidden_size]"""

    @property
    def end(self) -> int:
        """Position after the last one."""
        return self.start + len(self.rows)


@dataclass(frozen=True, slots=True)
class StepRequest:
    """Consecutive tokens of one request that a step processes."""

    request_id: int
    start: int
    """Position of the first token."""
    token_ids: Sequence[int]
    logits_from: int
    """Position from which on logits are wanted; past the last token for none."""
    history: Sequence[int] = ()
    """The ids before the first token, as many as the plan's `history` or as there are."""
    images: Sequence[PlacedRows] = ()
    """Of the whole request, those outside the step too."""
    num_drafts: int = 0
    """How many tokens at the end are drafts, which may turn out wrong."""

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.token_ids)

    @property
    def num_logits(self) -> int:
        """Rows of logits the step returns for this request."""
        return self.end - min(max(self.logits_from, self.start), self.end)


def batch_types(plan: CachePlan) -> dict[str, TensorType]:
    """Names and types of a batch; see `build_batch` for what they hold."""
    types: dict[str, tuple[str, ...]] = dict.fromkeys(("input_ids", "positions", "req_idx"), ("num_tokens",))
    types |= {"cu_query_lens": ("num_query_starts",), "state_slots": ("num_reqs",), "logits_rows": ("num_rows",)}
    if plan.window:
        types |= {"window_slots": ("num_tokens",), "window_table": ("num_reqs", "window_columns")}
    for ratio in plan.ratios:
        types |= {f"cmp{ratio}_slots": ("num_tokens",), f"cmp{ratio}_table": ("num_reqs", f"cmp{ratio}_columns")}
    return {name: TensorType(shape, "int32") for name, shape in types.items()}


def build_batch(requests: Sequence[StepRequest], manager: CacheManager, bucket: int) -> dict[str, np.ndarray]:
    """int32 arrays of a step. Rows of a request are consecutive; rows are padded to a multiple of `bucket`.

    input_ids, positions      token id and absolute position of each row; padding has id 0 and position -1
    req_idx                   row of each token's request in the tables; -1 for padding
    cu_query_lens             where each request's rows begin, and where the last one ends
    window_slots, cmp<r>_slots    where the row's window key, and the entry it closes, are written; -1 for nowhere
    window_table, cmp<r>_table    block tables, state_slots the state slot of each request (no window_* without windows)
    logits_rows               rows of which logits are wanted
    """
    lengths = [len(request.token_ids) for request in requests]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    padding = -int(starts[-1]) % bucket
    has_window = bool(manager.plan.window)
    rows: dict[str, list[np.ndarray]] = {"input_ids": [], "positions": [], "req_idx": []}
    rows |= {"window_slots": []} if has_window else {}
    rows |= {f"cmp{ratio}_slots": [] for ratio in manager.plan.ratios}
    wanted: list[np.ndarray] = []
    for i, (request, length) in enumerate(zip(requests, lengths, strict=True)):
        positions = np.arange(request.start, request.start + length, dtype=np.int32)
        rows["input_ids"].append(np.asarray(request.token_ids, dtype=np.int32))
        rows["positions"].append(positions)
        rows["req_idx"].append(np.full(length, i, dtype=np.int32))
        if has_window:
            rows["window_slots"].append(manager.window_slots(request.request_id, positions))
        for ratio in manager.plan.ratios:
            rows[f"cmp{ratio}_slots"].append(manager.entry_slots(request.request_id, positions, ratio))
        wanted.append(np.arange(starts[i + 1] - request.num_logits, starts[i + 1], dtype=np.int32))
    batch = {
        name: np.concatenate([*parts, np.full(padding, 0 if name == "input_ids" else -1, dtype=np.int32)])
        for name, parts in rows.items()
    }
    ids = [request.request_id for request in requests]
    batch["cu_query_lens"] = starts
    batch["state_slots"] = np.asarray([manager.state_slot(i) for i in ids], dtype=np.int32)
    batch["logits_rows"] = np.concatenate(wanted)
    if has_window:
        batch["window_table"] = np.stack([manager.window_table(i) for i in ids])
    for ratio in manager.plan.ratios:
        batch[f"cmp{ratio}_table"] = np.stack([manager.entry_table(i, ratio) for i in ids])
    return batch


def image_batch(requests: Sequence[StepRequest], hidden_size: int) -> dict[str, np.ndarray]:
    """What images put in the place of token embeddings in a step.

    image_rows   float32 [num_image_rows, hidden_size]
    image_at     int32 [num_image_rows], the row of the step that each replaces
    """
    rows, at = [np.zeros((0, hidden_size), np.float32)], [np.zeros(0, np.int32)]
    first = 0
    for request in requests:
        for image in request.images:
            start, end = max(image.start, request.start), min(image.end, request.end)
            if start < end:
                rows.append(image.rows[start - image.start : end - image.start])
                at.append(np.arange(start, end, dtype=np.int32) - request.start + first)
        first += len(request.token_ids)
    return {"image_rows": np.concatenate(rows), "image_at": np.concatenate(at)}
