# SPDX-License-Identifier: Apache-2.0
"""The offline API: open a checkpoint, generate, and look inside."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from ascend_dsv4.accuracy.capture import Capture
from ascend_dsv4.accuracy.module_tensors import ModuleTensors
from ascend_dsv4.accuracy.selection import DEFAULT_LIMIT, Selection, parse_layers, parse_ops, parse_steps
from ascend_dsv4.backend import make_backend
from ascend_dsv4.config import EngineConfig, ModelConfig
from ascend_dsv4.engine.engine import Engine, Output
from ascend_dsv4.engine.request import FinishReason, Logprobs, Request
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.engram.opening import open_store, planned_format, resident_table_bytes
from ascend_dsv4.engram.rows import FORMATS, RowFormat
from ascend_dsv4.errors import CapacityError, RequestError, UnsupportedError
from ascend_dsv4.graph.ir import Graph
from ascend_dsv4.kv_cache.layout import CachePlan, draft_caches, plan_caches
from ascend_dsv4.model.checkpoint import Checkpoint
from ascend_dsv4.model.decoder import ForwardConfig
from ascend_dsv4.model.dspark import draft_forward
from ascend_dsv4.model.inventory import inventory, optional_aliases
from ascend_dsv4.model.loader import WeightLoader, as_stored, resident_bytes
from ascend_dsv4.model.vision_weights import vision_weights
from ascend_dsv4.model.weight_trees import dspark_weights, model_weights, mtp_weights
from ascend_dsv4.model.weights import ModelWeights
from ascend_dsv4.runner.batch import PlacedRows
from ascend_dsv4.runner.graphs import ModelGraphs, trace_dspark, trace_model, trace_mtp
from ascend_dsv4.runner.runner import LayerTap, ModelRunner
from ascend_dsv4.runner.vision import EncodedImage, VisionEncoder, place_images, vision_graphs
from ascend_dsv4.spec_decode.drafter import Drafter
from ascend_dsv4.spec_decode.ngram import NgramDrafter
from ascend_dsv4.spec_decode.stages import Drafts, DraftStages
from ascend_dsv4.tokenizer.completion import CompletionText
from ascend_dsv4.tokenizer.tokenizer import Tokenizer
from ascend_dsv4.vision.decode import ImageInput, open_image

Prompt = str | Sequence[int]
Images = Sequence[ImageInput]
"""In the order in which the prompt names them."""
STAGED = ("mtp", "dspark")
"""Drafters that are stages of the checkpoint."""
_PROMPT_ONLY = SamplingParams(max_tokens=0)


@dataclass(frozen=True, slots=True)
class NewToken:
    """One token of a stream."""

    request: Request
    token_id: int


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A finished request."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    """Generated ids, the ending one included."""
    text: str
    """The generated text, without special tokens and up to the stop text; "" if the checkpoint has no tokenizer."""
    finish_reason: FinishReason
    """stop: an end token or stop text; length: max_tokens or max_model_len; error: see `error`."""
    error: str | None
    logprobs: list[Logprobs] | None
    """Per generated token, if asked for: id → log-probability, the drawn id first."""
    prompt_logprobs: list[Logprobs | None] | None
    """Per prompt token, if asked for; None for the first, which nothing predicts."""
    num_cached_tokens: int
    """Prompt tokens taken from a prefix cache."""


class LLM:
    """A model in memory.

    `model` is a folder in a released layout, or in the layout transformers saves. `weights` is how they are held:
    "released" keeps FP8 and FP4 bytes and decodes on use, "fp32" and "bf16" decode while loading. `cache_rounding`
    "released" rounds keys to the model's storage grids; "off" is plain maths. Further keyword arguments are the other
    fields of `EngineConfig`.

    Raises ConfigError, CheckpointError, UnsupportedError or CapacityError before anything is computed.
    """

    def __init__(
        self,
        model: str | Path,
        backend: str = "cpu",
        ops: str = "auto",
        dtype: str = "float32",
        weights: str = "released",
        kv_cache: str = "float32",
        cache_rounding: str = "released",
        *,
        progress: bool = True,
        **options: Any,
    ) -> None:
        chosen = {"backend": backend, "ops": ops, "dtype": dtype, "weights": weights, "kv_cache": kv_cache}
        self.engine_config = EngineConfig.from_dict({**chosen, "cache_rounding": cache_rounding, **options}, source="LLM()")
        self.config = ModelConfig.from_file(Path(model))
        self.backend = make_backend(self.engine_config)
        self.tokenizer = Tokenizer.from_folder(Path(model)) if (Path(model) / "tokenizer.json").exists() else None
        checkpoint = Checkpoint.open(Path(model))
        checkpoint.validate(inventory(self.config), optional_aliases(self.config))
        row_format = planned_format(self.config, self.engine_config)
        self._forward = forward_config(self.config, self.engine_config, row_format)
        plan = plan_caches(self.config, self.engine_config)
        params = self._resident(checkpoint, model_weights(self.config, self.engine_config.weights))
        self._loader = WeightLoader(checkpoint, self.backend.parameter)
        self._stages = DraftStages(self.config, self.engine_config, self._loader)
        if self.engine_config.speculative in STAGED:
            self._stages.check(self.engine_config.speculative)
        self._check_memory(params, plan)
        memory = open_store(self.config, self.engine_config, checkpoint, Path(model)) if self.config.engram else None
        self.graphs = trace_model(self.config, self._forward, params, plan)
        with _progress_bar(self._loader.stored_bytes(params), show=progress) as advance:
            loaded = self._loader.load(params, advance)
        self.runner = ModelRunner(self.config, self.engine_config, plan, self.graphs, loaded, self.backend, memory)
        self.engine = Engine(self.config, self.engine_config, self.runner, drafter=self._drafter())
        self._vision: VisionEncoder | None = None
        self._texts: dict[Request, CompletionText] = {}
        """Of requests under way, whoever makes the steps."""

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        images: Sequence[Images] | None = None,
    ) -> list[RequestOutput]:
        """Complete one or several prompts, text or token ids. Text is tokenised as it stands; nothing is added.

        `params` is one for all or one per prompt; a prompt with n > 1 gives n outputs in a row. `images` are the images of each
        prompt, in the order of the image tokens in it. Raises RequestError for a prompt that cannot be served; then none runs.
        """
        each_images = [()] * len(_as_list(prompts)) if images is None else images
        if len(each_images) != len(_as_list(prompts)):
            raise RequestError(f"{len(_as_list(prompts))} prompts but {len(each_images)} lists of images; give one for each")
        ids = [self._prompt(*pair) for pair in zip(_as_list(prompts), each_images, strict=True)]
        each = [params or SamplingParams()] * len(ids) if params is None or isinstance(params, SamplingParams) else params
        if len(each) != len(ids):
            raise RequestError(f"{len(ids)} prompts but {len(each)} sampling parameters; give one for all, or one each")
        requests = [
            self.engine.make_request(prompt_ids, one, sample_index=i, images=placed)
            for (prompt_ids, placed), one in zip(ids, each, strict=True)
            for i in range(one.n)
        ]
        try:
            for request in requests:
                self._add(request)
            self._run(requests)
            return [self._output(request, self._texts.get(request)) for request in requests]
        finally:
            for request in requests:
                self._end(request)  # nothing is left behind if Ctrl-C came

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, images: Images = ()
    ) -> Generator[NewToken, None, None]:
        """Tokens of one completion as they come. Closing the iterator early abandons the request.

        Several streams may be open, and other calls made meanwhile; each step serves all of them.
        """
        if params is not None and (params.n, min(params.max_tokens, 1)) != (1, 1):
            raise RequestError(
                f"stream: n={params.n}, max_tokens={params.max_tokens}: expected n=1 and at least 1 token, because a stream is "
                "one completion. Use generate for others."
            )
        prompt_ids, placed = self._prompt(prompt, images)
        request = self.engine.make_request(prompt_ids, params or SamplingParams(), images=placed)
        seen = 0
        try:
            self._add(request)
            while seen < len(request.output_ids) or not request.is_finished:
                if seen == len(request.output_ids):
                    self._step()
                for token in request.output_ids[seen:]:
                    seen += 1
                    yield NewToken(request, token)
        finally:
            self._end(request)
        if request.error is not None:
            raise RequestError(request.error)

    def logits(
        self, token_ids: Sequence[int], chunk_size: int | None = None, images: Images | None = None
    ) -> np.ndarray:
        """Teacher-forced logits, float32 [num_tokens, vocab_size]. `chunk_size` bounds the tokens of a step.

        An image takes as many rows as it has tokens, whether `token_ids` has one image token for it or all of them.
        """
        prompt_ids, placed = self._prompt(token_ids, images or ())
        request = self.engine.submit(prompt_ids, _PROMPT_ONLY, keep_logits=True, chunk_size=chunk_size, images=placed)
        try:
            self._run([request])
        finally:
            self.engine.finish(request)
        return np.concatenate(request.logits)

    def hidden_states(self, token_ids: Sequence[int]) -> list[np.ndarray]:
        """num_hidden_layers + 1 arrays [num_tokens, hc_mult, hidden_size]: after the embedding, then after each layer.

        [num_tokens, hidden_size] for a model without hyper-connections (hc_mult 0).
        Raises RequestError while a stream is open.
        """
        self._check_idle("hidden_states")
        parts: list[list[np.ndarray]] = [[] for _ in range(self.config.num_hidden_layers + 1)]
        request = self.engine.submit(token_ids, _PROMPT_ONLY)
        try:
            self._run([request], lambda i, streams: parts[i].append(self.backend.to_host(streams)))
        finally:
            self.engine.finish(request)
        return [np.concatenate(chunks) for chunks in parts]

    def trace(self, token_ids: Sequence[int], images: Images | None = None) -> dict[str, np.ndarray]:
        """Every module tensor by name ("layer3.attn_in", "layer1.indexer.topk", …), for all positions.

        Raises RequestError while a stream is open.
        """
        prompt_ids, placed = self._prompt(token_ids, images or ())
        self._check_idle("trace")
        modules = ModuleTensors(self.backend.to_host, hc_delayed=self.config.hc_delayed)
        # An engine of its own over the same caches: they are free, and rows of padding would be in the way.
        plain = self.engine_config.replace(batch_bucket=1)
        engine = Engine(self.config, plain, self.runner.observed(modules.observer, plain))
        request = engine.submit(prompt_ids, _PROMPT_ONLY, images=placed)
        while not request.is_finished:
            engine.step()
        return modules.result()

    @contextmanager
    def capture(
        self,
        folder: str | Path,
        *,
        ops: Iterable[str] | str = "all",
        layers: Iterable[int | str] | str = "all",
        steps: Iterable[int] | str = "all",
        limit: int = DEFAULT_LIMIT,
    ) -> Iterator[Capture]:
        """Record operator calls of the steps inside the `with` into a capsule, which `ascend-dsv4 compare replay` runs.

        folder   new or empty
        ops      names of operators
        layers   layer numbers, "embed", "head", "step_tables"
        steps    forward passes, counted from 0 here; a text may have ranges such as "0,5-9,20-", as in layers "0,3-5"
        limit    bytes; the recording ends with the call that exceeds it

        Raises ConfigError for a selection that no step of this model has, UnsupportedError for a backend without operators,
        CapsuleError at the end if nothing was recorded or the disk was full.
        """
        selection = Selection(parse_ops(ops), parse_layers(layers), parse_steps(steps))
        check_capture(self.engine_config, selection, self.graphs.by_place(self.config))
        content = json.dumps(dataclasses.asdict(self.config), sort_keys=True, default=str)
        about = {
            "model": {"family": self.config.model_type, "config_sha256": hashlib.sha256(content.encode()).hexdigest()},
            "engine": dataclasses.asdict(self.engine_config),
        }
        capture = Capture(Path(folder), selection, about, self.backend.bound_ops().implementations, limit)
        self.runner.watch(capture)
        try:
            yield capture
        finally:
            self.runner.watch(None)
            capture.finish()
        capture.close()

    def draft(self, token_ids: Sequence[int], method: str) -> Drafts:
        """Draft greedily with the checkpoint's own stages behind `token_ids`: (ids, logits, confidences or None).

        The last id is one that was drawn and is not processed yet.

        "mtp"      ids [n − 1] int32, logits [n − 1, vocab_size] float32: row t is drafted from the backbone's state at t and
                   token t + 1, and stands for token t + 2; the last row follows `token_ids`
        "dspark"   ids [block_size], logits [block_size, vocab_size], confidences [block_size]: the tokens that follow
                   `token_ids`; a confidence is the logit of the chance of being accepted if those before are

        Raises UnsupportedError if the model has no such stages, RequestError while a stream is open.
        """
        self._stages.check(method)
        self._check_idle("draft")
        prompt_ids = self.engine.check_prompt(token_ids)
        self.engine.check_images(prompt_ids, ())
        return self._stages.draft(self.runner, self._forward, prompt_ids)

    def _resident(self, checkpoint: Checkpoint, params: ModelWeights) -> ModelWeights:
        """What is kept in memory: for "released", whatever the files hold."""
        return as_stored(checkpoint, params) if self.engine_config.weights == "released" else params

    def _check_memory(self, params: ModelWeights, plan: CachePlan) -> None:
        """Raises CapacityError if weights and caches do not fit, those of draft stages that the options want included."""
        total = self.backend.memory()[1]
        weight_bytes, cache_bytes = resident_bytes(params), plan.total_bytes
        if self.engine_config.speculative in STAGED:
            weight_bytes, draft_bytes = self._stages.num_bytes(params, plan.num_blocks)
            cache_bytes += draft_bytes
        table_bytes = resident_table_bytes(self.config, self.engine_config)
        if total and weight_bytes + cache_bytes + table_bytes > total:
            tables = f", {table_bytes:,} B of n-gram tables" if table_bytes else ""
            raise CapacityError(
                f"{weight_bytes:,} B of weights{tables} and {cache_bytes:,} B of caches do not fit into {total:,} B of memory. "
                "Lower max_model_len, max_num_seqs or max_total_tokens, use a smaller cache format, or leave tables in their "
                "files (engram_tier); `ascend-dsv4 check --model` prints where the memory goes."
            )

    def _drafter(self) -> Drafter | None:
        """What the options want to draft with."""
        if self.engine_config.speculative in STAGED:
            return self._stages.attach(self.runner, self._forward)
        return NgramDrafter() if self.engine_config.speculative == "ngram" else None

    def encode_image(self, image: ImageInput) -> EncodedImage:
        """An image as it enters the model. The vision tower is loaded at the first one.

        raises  UnsupportedError if the model reads no images, RequestError for one that cannot be read
        """
        return self.vision_encoder().encode(open_image(image))

    def vision_encoder(self) -> VisionEncoder:
        """The vision tower, loaded the first time. raises UnsupportedError if the model reads no images"""
        if self.config.vision is None:
            raise UnsupportedError(
                "images: got one, but this model has no vision tower (no vision_config in its config.json). Leave images out."
            )
        if self._vision is None:
            params = vision_weights(self.config.vision, self.config.hidden_size, self.engine_config.weights)
            graphs = vision_graphs(self.config.vision, self.engine_config.dtype, params)
            loaded = self._loader.load(params, lambda _: None)
            self._vision = VisionEncoder(self.config.vision, graphs, loaded, self.backend)
        return self._vision

    def _prompt(self, prompt: Prompt, images: Images) -> tuple[Sequence[int], tuple[PlacedRows, ...]]:
        """Token ids of a prompt, and what stands in the place of its image tokens."""
        token_ids = self._encode(prompt)
        if isinstance(images, Image | bytes | str | Path):
            raise RequestError(
                f"images: got one of type {type(images).__name__} for a prompt, expected a list of images, because a prompt "
                "may have several. Put it into a list."
            )
        if not images:
            return token_ids, ()
        encoded = [self.encode_image(image) for image in images]
        assert self.config.image_token_id is not None
        return place_images(self.engine.check_prompt(token_ids), encoded, self.config.image_token_id)

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise RequestError("prompt: got text, but this checkpoint has no tokenizer.json to encode it. Send token ids.")
        return self.tokenizer.encode(prompt)

    def _check_idle(self, call: str) -> None:
        if self.engine.has_work:
            raise RequestError(
                f"{call}: a stream is open and holds caches, but the call needs them all. Exhaust or close the stream first."
            )

    def _run(self, requests: Sequence[Request], tap: LayerTap | None = None) -> None:
        """Step until these requests are finished; others that are under way move along."""
        while not all(request.is_finished for request in requests):
            self._step(tap)

    def _step(self, tap: LayerTap | None = None) -> list[Output]:
        """One step of the engine. One that is cut off (Ctrl-C, out of memory) aborts all requests and leaves an idle engine."""
        try:
            outputs = self.engine.step(tap)
            for output in outputs:
                self._extend(output)
            return outputs
        except BaseException:
            self.engine.reset()
            raise

    def _add(self, request: Request) -> None:
        """Queue a request, with what turns its tokens into text. Raises RequestError for stop texts without a tokenizer."""
        params = request.params
        if self.tokenizer is not None:
            self._texts[request] = CompletionText(
                self.tokenizer, stop=params.stop, end_ids=request.end_ids, min_tokens=params.min_tokens
            )
        elif params.stop:
            raise RequestError("stop: got texts, but there is no tokenizer.json to find them by. Use stop_token_ids.")
        self.engine.add(request)

    def _end(self, request: Request) -> None:
        """Give a request up, if it has not ended, and forget its text."""
        self.engine.finish(request)
        self._texts.pop(request, None)

    def _extend(self, output: Output) -> None:
        """Append a step's tokens to their text; a stop text ends the request."""
        request, text = output.request, self._texts.get(output.request)
        if text is not None and not text.has_stopped:
            text.push(output.token_ids)
            if text.has_stopped:
                self.engine.finish(request, "stop")
                request.finish_reason = "stop"  # also if the very token that completed it was the last one allowed
                # Tokens may have come together with it.
                del request.output_ids[text.num_tokens :], request.logprobs[text.num_tokens :]

    def _output(self, request: Request, text: CompletionText | None) -> RequestOutput:
        assert request.finish_reason is not None
        if text is not None:
            text.finish()
        return RequestOutput(
            error=request.error,
            prompt_token_ids=list(request.prompt_ids),
            token_ids=list(request.output_ids),
            text="" if text is None else text.text,
            finish_reason=request.finish_reason,
            logprobs=request.logprobs if request.params.logprobs is not None else None,
            prompt_logprobs=request.prompt_logprobs if request.params.prompt_logprobs is not None else None,
            num_cached_tokens=0,
        )


def forward_config(config: ModelConfig, engine: EngineConfig, engram_format: RowFormat = FORMATS[0]) -> ForwardConfig:
    """The choices of a run that model functions see. Raises UnsupportedError for a cache format no operator writes."""
    if engine.kv_cache == "packed":
        raise UnsupportedError(
            "kv_cache='packed': no operator of this version stores packed codes, `ascend-dsv4 check` only counts their "
            "bytes. Use float32 or bf16."
        )
    return ForwardConfig(config, engine.dtype, engine.cache_rounding, engram_format)


def model_graphs(config: ModelConfig, engine: EngineConfig) -> ModelGraphs:
    """The graphs of a model without its weights, for printing and planning."""
    params, forward = model_weights(config, engine.weights), forward_config(config, engine, planned_format(config, engine))
    return trace_model(config, forward, params, plan_caches(config, engine))


def check_capture(engine: EngineConfig, selection: Selection, graphs: dict[int | str, Graph]) -> None:
    """Refuse a recording that would be empty on a model with these graphs. Raises ConfigError, UnsupportedError."""
    if engine.backend == "null":
        raise UnsupportedError("--capture: backend 'null' computes nothing, expected one that does. Use backend='cpu'.")
    selection.check(graphs)


def draft_graphs(config: ModelConfig, engine: EngineConfig) -> tuple[Graph, ...]:
    """The graphs of the draft stages without their weights; none for a model without such stages."""
    if config.draft_method is None:
        return ()
    plan, caches = plan_caches(config, engine), draft_caches(config, engine)
    backbone = forward_config(config, engine)  # refuses what the stages cannot store either
    if config.dspark is None:
        return trace_mtp(config, backbone, mtp_weights(config, engine.weights), plan, caches).all()
    forward = draft_forward(config, engine.dtype, engine.cache_rounding)
    return trace_dspark(config, forward, dspark_weights(config, engine.weights), plan, caches).all()


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Several prompts, whichever way one or many were given."""
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


@contextmanager
def _progress_bar(total_bytes: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """Advance by bytes; drawn on stderr if that is a terminal."""
    if not (show and sys.stderr.isatty()):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("loading weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("load", total=total_bytes)
        yield lambda count: bar.advance(task, count)
