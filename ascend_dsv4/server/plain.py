# SPDX-License-Identifier: Apache-2.0
"""Routes that generate nothing: models, tokens, health, metrics, the status page."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from fastapi import Request
from fastapi.responses import FileResponse, JSONResponse, Response

from ascend_dsv4 import __version__
from ascend_dsv4.server.bodies import ChatBody, DetokenizeBody, TokenizeBody
from ascend_dsv4.server.conversations import measure_images, plain_chat
from ascend_dsv4.server.dialog import CHAT, Dialog, JsonObject
from ascend_dsv4.server.errors import HttpError
from ascend_dsv4.server.metrics import FINISH_REASONS, cache_use
from ascend_dsv4.server.service import Service
from ascend_dsv4.server.transport import parse_body, read_body

PAGE: Final = Path(__file__).with_name("page")
PAGE_FILES: Final = {"status.js": "text/javascript", "status.css": "text/css"}
_SHOWN_OPTIONS: Final = ("backend", "ops", "dtype", "weights", "kv_cache", "cache_rounding")
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class PlainRoutes:
    """Everything but generation."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self) -> JSONResponse:
        name = self._service.model_name
        return JSONResponse(
            {"object": "list", "data": [self._model()], "has_more": False, "first_id": name, "last_id": name}
        )

    async def model(self, model: str) -> JSONResponse:
        self._service.check_model(model)
        return JSONResponse(self._model())

    def _model(self) -> JsonObject:
        """In the words of both protocols that list models."""
        name, limit = self._service.model_name, self._service.max_model_len
        created = int(self._service.started_at)
        openai = {"object": "model", "created": created, "owned_by": "ascend-dsv4", "max_model_len": limit}
        day = datetime.fromtimestamp(created, timezone.utc).isoformat()
        anthropic = {"type": "model", "display_name": name, "created_at": day, "lifecycle": "active"}
        return {"id": name, **openai, **anthropic, "max_input_tokens": limit, "max_tokens": limit}

    async def tokenize(self, request: Request) -> JSONResponse:
        data = await read_body(request, self._service.server.max_body_bytes)
        body, found = await asyncio.to_thread(self._tokenize, data)
        if isinstance(found, Dialog):
            await measure_images(self._service, request, found)
            found = list(found.prompt_ids)
        result: JsonObject = {"count": len(found), "max_model_len": self._service.max_model_len, "tokens": found}
        if body.return_token_strs:
            tokenizer = self._service.text_tokenizer()
            result["token_strs"] = await asyncio.to_thread(lambda: [tokenizer.decode([token_id]) for token_id in found])
        return JSONResponse(result)

    def _tokenize(self, data: bytes) -> tuple[TokenizeBody, list[int] | Dialog]:
        service = self._service
        body, content = parse_body(data, TokenizeBody, reads_images=service.images is not None)
        service.check_model(body.model)
        tokenizer = service.text_tokenizer()
        if (body.prompt is None) == (body.messages is None):
            raise HttpError(400, "expected prompt or messages, one of the two. Correct the request.", code="invalid_value")
        if body.prompt is not None:
            begin = [tokenizer.bos_token_id] if body.add_special_tokens and tokenizer.bos_token_id is not None else []
            return body, [*begin, *tokenizer.encode(body.prompt)]
        return body, service.dialog_format().open(CHAT, self._as_chat(body, content))

    def _as_chat(self, body: TokenizeBody, content: JsonObject) -> JsonObject:
        """The Chat Completions body that has the prompt of these messages."""
        fields = {"messages": content["messages"], "tools": content.get("tools"), "model": self._service.model_name}
        options = content.get("chat_template_kwargs")
        given = {**fields, "chat_template_kwargs": options}
        chat = ChatBody.model_validate(given, context={"reads_images": self._service.images is not None})
        return plain_chat(chat, {name: value for name, value in fields.items() if value is not None})

    async def detokenize(self, request: Request) -> JSONResponse:
        data = await read_body(request, self._service.server.max_body_bytes)
        return await asyncio.to_thread(self._detokenize, data)

    def _detokenize(self, data: bytes) -> JSONResponse:
        body, _ = parse_body(data, DetokenizeBody)
        self._service.check_model(body.model)
        tokenizer = self._service.text_tokenizer()
        if (largest := max(body.tokens, default=0)) >= tokenizer.vocab_size:
            raise HttpError(
                400, f"tokens: got {largest}, expected ids below {tokenizer.vocab_size}, the size of the vocabulary. Take ids "
                "from /tokenize.", param="tokens", code="invalid_value",
            )  # fmt: skip
        return JSONResponse({"prompt": tokenizer.decode(body.tokens)})

    async def health(self) -> JSONResponse:
        state = self._state()
        return JSONResponse({"status": state}, 200 if state == "serving" else 503)

    async def version(self) -> JSONResponse:
        return JSONResponse({"version": __version__})

    async def metrics(self) -> Response:
        return Response(self._service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self) -> FileResponse:
        return FileResponse(PAGE / "index.html", media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)

    async def page_file(self, name: str) -> FileResponse:
        if name not in PAGE_FILES:
            raise HttpError(404, f"/page/{name[:100]}: no such file; expected one of {', '.join(PAGE_FILES)}.")
        return FileResponse(PAGE / name, media_type=PAGE_FILES[name], headers=_PAGE_HEADERS)

    async def status(self) -> JSONResponse:
        service, engine = self._service, self._service.engine
        options, metrics = engine.engine, service.metrics
        return JSONResponse({
            "model": {
                "name": service.model_name,
                "num_hidden_layers": service.config.num_hidden_layers,
                "max_model_len": service.max_model_len,
                "vocab_size": service.config.vocab_size,
            },
            "engine": {
                **{name: getattr(options, name) for name in _SHOWN_OPTIONS},
                "implementation": engine.runner.backend.bound_ops().implementation,
                "max_num_seqs": options.max_num_seqs,
                "max_num_batched_tokens": options.max_num_batched_tokens,
            },
            "version": __version__,
            "state": self._state(),
            "uptime_seconds": time.time() - service.started_at,
            "requests": {
                "running": len(engine.scheduler.running),
                "waiting": service.loop.num_waiting,
                "max_running": options.max_num_seqs,
                "max_waiting": options.max_num_waiting,
                "finished": {reason: metrics.num_finished[reason] for reason in FINISH_REASONS},
                "preemptions": engine.stats.num_preemptions,
            },
            "tokens": {"prompt": engine.stats.num_prompt_tokens, "generation": engine.stats.num_output_tokens},
            "speculation": {
                "method": options.speculative,
                "num_speculative_tokens": options.num_drafts,
                "drafts": engine.stats.num_drafts,
                "draft_tokens": engine.stats.num_draft_tokens,
                "accepted_tokens": engine.stats.num_accepted_tokens,
            },
            "throughput": metrics.throughput(),
            "caches": [
                {"group": group, "used_blocks": used, "num_blocks": total} for group, used, total in cache_use(engine)
            ],
            "latency_ms": metrics.latency_ms(),
            "history": metrics.history(),
        })  # fmt: skip

    def _state(self) -> str:
        if not self._service.loop.is_running:
            return "failed"
        return "draining" if self._service.is_draining else "serving"
