# SPDX-License-Identifier: Apache-2.0
"""Taking operator calls out of a running engine: chosen operators, layers and steps, into a capsule."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ascend_dsv4.accuracy.capsule import (
    BlobStore,
    CapsuleFullError,
    CapsuleWriter,
    RecordedCall,
    StepRequests,
    empty_capture,
)
from ascend_dsv4.accuracy.selection import Selection
from ascend_dsv4.accuracy.stored_tensors import Part, StoredTensor, changed_parts, store_tensor
from ascend_dsv4.backend.base import Observer, RunNode
from ascend_dsv4.errors import CapsuleError
from ascend_dsv4.graph.ir import Node, Value, is_weight
from ascend_dsv4.ops.registry import get_spec

LOGGER = logging.getLogger("ascend_dsv4.capture")


class Capture:
    """Records calls while steps run: the `watch` of a `runner.runner.ModelRunner`.

    folder           new or empty; gets the capsule
    selection        which calls
    about            what the manifest says of the run: "model", "engine"
    implementations  what computes them, by operator
    limit            bytes written at most; the recording ends with the call that does not fit

    A disk that fills up ends the recording and not the run. Raises ConfigError for a folder with something in it, OSError for
    one that cannot be written.
    """

    def __init__(
        self, folder: Path, selection: Selection, about: Mapping[str, Any], implementations: Mapping[str, str], limit: int
    ) -> None:
        self.selection = selection
        self.num_steps = 0
        """Steps of the run so far, recorded or not."""
        self._implementations = implementations
        self._limit = limit
        self._ended: str | None = None
        """Once the recording is over: why before its time, "" if as planned."""
        self._has_failed = False
        self._requests = StepRequests(-1, ())
        self._constants: dict[tuple[str, str], StoredTensor] = {}
        self._writer = CapsuleWriter(folder, {"selection": str(selection), **about}, limit)

    @property
    def num_calls(self) -> int:
        return self._writer.num_calls

    def observer(self, where: int | str) -> Observer | None:
        """Records the chosen nodes of a layer number, or of "embed", "head", …"""
        if not self.selection.has_graph(where):
            return None
        graph, layer = (f"layer{where}", where) if isinstance(where, int) else (where, None)

        def observe(node: Node, inputs: tuple[Tensor | None, ...], run: RunNode) -> tuple[Tensor, ...]:
            if self._ended is not None or not self.selection.has_op(node.op):
                return run(*inputs)
            return self._record(graph, layer, node, inputs, run)

        return observe

    def begin(self, requests: Sequence[Any]) -> bool:
        """Whether the step that begins is recorded; `requests` are `runner.batch.StepRequest`s."""
        step = self.num_steps
        self.num_steps += 1
        if self._ended is not None or not self.selection.has_step(step):
            return False
        self._requests = StepRequests(step, tuple((r.request_id, r.start, len(r.token_ids)) for r in requests))
        return True

    def end(self) -> None:
        """The step is over. After the last chosen one the capsule is complete, however long the run goes on."""
        if self._ended is not None or self.selection.is_over(self.num_steps):
            self.finish()
            return
        try:
            self._writer.step_done()
        except OSError as error:
            self._fail(error)

    def finish(self) -> None:
        """Complete the capsule, unless that is done. Does not complain."""
        self._ended = self._ended or ""
        try:
            self._writer.close(self._ended)
        except OSError as error:
            self._fail(error)

    @property
    def summary(self) -> str:
        """What to tell the owner."""
        ended = f"; {self._ended}" if self._ended else ""
        return f"captured {self.num_calls} calls, {self._writer.num_bytes:,} B, into {self._writer.folder}{ended}"

    def close(self) -> None:
        """Complete the capsule. Raises CapsuleError if it is empty or could not be written."""
        self.finish()
        reason = self._ended or ""
        if self._has_failed:
            raise CapsuleError(
                f"--capture {self._writer.folder}: {reason}; expected room for what is recorded, because it is all kept. "
                f"{self.num_calls} calls were recorded until then, those on the disk are readable. Name a folder elsewhere."
            )
        if not self.num_calls:
            raise empty_capture(str(self.selection), self.num_steps, reason)

    def _record(
        self, graph: str, layer: int | None, node: Node, inputs: tuple[Tensor | None, ...], run: RunNode
    ) -> tuple[Tensor, ...]:
        store = BlobStore(self._writer)
        outputs: tuple[Tensor, ...] | None = None
        try:
            args = self._stored_arguments(graph, node, inputs, store)
            outputs = run(*inputs)
            changes, outs = _stored_results(node, inputs, args, outputs, store)
            call = RecordedCall(
                self.num_calls, node.op, self._implementations[node.op], dict(node.attrs), self._requests.number, graph, layer,
                node.name, node.scope, node.where, args, outs, changes,
            )  # fmt: skip
            self._writer.add(call, store.blobs, self._requests)
        except CapsuleFullError:
            self._end(
                f"the limit of {self._limit:,} B is reached before {node.name} of {graph} in step {self._requests.number}; "
                "raise --capture-limit or choose less"
            )
        except OSError as error:
            if outputs is None:
                raise  # the operator's own
            self._fail(error)
        return run(*inputs) if outputs is None else outputs

    def _stored_arguments(
        self, graph: str, node: Node, inputs: tuple[Tensor | None, ...], store: BlobStore
    ) -> dict[str, StoredTensor | None]:
        args: dict[str, StoredTensor | None] = {}
        for name, arg, tensor in zip(get_spec(node.op).args, node.args, inputs, strict=True):
            source = arg.name if isinstance(arg, Value) else ""
            args[name] = None if tensor is None else self._stored_argument(graph, tensor, source, store)
        return args

    def _stored_argument(self, graph: str, tensor: Tensor, source: str, store: BlobStore) -> StoredTensor:
        """A weight is read and digested once; it stays where it is."""
        if not is_weight(source):
            return store_tensor(tensor, source, store.add)
        if (graph, source) not in self._constants:
            self._constants[graph, source] = store_tensor(tensor, source, store.add, is_constant=True)
        return self._constants[graph, source]

    def _end(self, reason: str) -> None:
        self._ended = reason
        LOGGER.warning("recording has ended: %s", reason)

    def _fail(self, error: OSError) -> None:
        self._has_failed = True
        self._end(f"{error.filename or 'writing'}: {error.strerror}")


def _stored_results(
    node: Node,
    inputs: tuple[Tensor | None, ...],
    args: Mapping[str, StoredTensor | None],
    outputs: tuple[Tensor, ...],
    store: BlobStore,
) -> tuple[dict[str, tuple[Part, ...]], dict[str, StoredTensor]]:
    """What a call changed in the arguments it writes, and its outputs."""
    spec = get_spec(node.op)
    tensors = dict(zip(spec.args, inputs, strict=True))
    changes: dict[str, tuple[Part, ...]] = {}
    for name in spec.mutates:
        before, tensor = args[name], tensors[name]
        if before is not None and tensor is not None:
            changes[name] = changed_parts(before, store_tensor(tensor, before.source, store.add))
    outs = {
        name: store_tensor(tensor, value.name, store.add)
        for name, value, tensor in zip(spec.outs, node.outs, outputs, strict=True)
    }
    return changes, outs
