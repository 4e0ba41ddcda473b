# SPDX-License-Identifier: Apache-2.0
"""The HTTP application: routes, their documentation, and what holds for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from ascend_dsv4 import __version__
from ascend_dsv4.errors import AscendDsv4Error
from ascend_dsv4.server import answers
from ascend_dsv4.server.answers import Answer
from ascend_dsv4.server.bodies import (
    Body,
    ChatBody,
    CompletionBody,
    CountTokensBody,
    DetokenizeBody,
    MessagesBody,
    ResponsesBody,
    TokenizeBody,
)
from ascend_dsv4.server.completions import Completions
from ascend_dsv4.server.conversations import Conversations
from ascend_dsv4.server.documentation import document, request_body, responses
from ascend_dsv4.server.errors import HttpError, as_http_error
from ascend_dsv4.server.plain import PlainRoutes
from ascend_dsv4.server.service import Service
from ascend_dsv4.server.transport import PUBLIC_PATHS, Gate, KeyCheck, error_response

SAMPLE_SECONDS: Final = 1.0
"""Between two points of the status page's chart."""


def create_app(service: Service) -> FastAPI:
    """The application around a service, which it starts and closes with its lifespan. Raises ConfigError for bad key files."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        sampler = asyncio.create_task(_sample(service))
        yield
        sampler.cancel()
        with suppress(asyncio.CancelledError):
            await sampler
        await service.close()

    app = FastAPIOffline(  # /docs without a content delivery network: clusters often have no way out
        title="ascend-dsv4",
        version=__version__,
        description="DeepSeek V4 over the OpenAI and Anthropic protocols.",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_routes(app, service)

    keys = service.server.api_keys()
    _describe(app, service, needs_key=keys is not None)

    @app.exception_handler(AscendDsv4Error)
    async def ours(request: Request, error: AscendDsv4Error) -> JSONResponse:
        return error_response(as_http_error(error, service.server.retry_after_s), request.scope)

    @app.exception_handler(HTTPException)
    async def theirs(request: Request, error: HTTPException) -> JSONResponse:
        asked = f"{request.method[:20]} {request.scope['path'][:200]}"
        wrong = HttpError(error.status_code, f"{asked}: {error.detail}. See /docs.")
        wrong.headers = dict(error.headers or {})
        return error_response(wrong, request.scope)

    # The last one is the outermost. Browsers ask about origins without a key, and read no error without CORS headers.
    if keys is not None:
        app.add_middleware(KeyCheck, keys=keys)
    if origins := service.server.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )  # fmt: skip
    app.add_middleware(Gate, metrics=service.metrics)
    return app


async def _sample(service: Service) -> None:
    while True:
        service.metrics.tick()
        await asyncio.sleep(SAMPLE_SECONDS)


def _add_routes(app: FastAPI, service: Service) -> None:
    dialogs, completions, plain = Conversations(service), Completions(service), PlainRoutes(service)
    posts: tuple[tuple[str, Callable[..., Any], type[Body], type[Answer], bool], ...] = (
        ("/v1/chat/completions", dialogs.chat_completions, ChatBody, answers.ChatCompletion, True),
        ("/v1/completions", completions.completions, CompletionBody, answers.Completion, True),
        ("/v1/responses", dialogs.responses, ResponsesBody, answers.Response, True),
        ("/v1/messages", dialogs.messages, MessagesBody, answers.Message, True),
        ("/v1/messages/count_tokens", dialogs.count_tokens, CountTokensBody, answers.TokenCount, False),
        ("/tokenize", plain.tokenize, TokenizeBody, answers.Tokens, False),
        ("/detokenize", plain.detokenize, DetokenizeBody, answers.Text, False),
    )
    for path, endpoint, body, answer, may_stream in posts:
        app.add_api_route(
            path, endpoint, methods=["POST"], summary=(body.__doc__ or "").partition("\n")[0], response_model=None,
            openapi_extra={"requestBody": request_body(body)},
            responses=responses(path, answer, has_body=True, may_stream=may_stream),
        )  # fmt: skip
    gets: tuple[tuple[str, Callable[..., Any], str, type[Answer]], ...] = (
        ("/v1/models", plain.models, "The model that is served.", answers.Models),
        ("/v1/models/{model:path}", plain.model, "One model.", answers.Model),
        ("/health", plain.health, "200 while requests are served.", answers.Health),
        ("/version", plain.version, "The version of the server.", answers.Version),
        ("/status", plain.status, "What the status page shows.", answers.Status),
    )
    for path, endpoint, summary, answer in gets:
        app.add_api_route(
            path, endpoint, methods=["GET"], summary=summary, response_model=None,
            responses=responses(path, answer, has_body=False, may_stream=False),
        )  # fmt: skip
    unlisted: tuple[tuple[str, Callable[..., Any]], ...] = (
        ("/metrics", plain.metrics),
        ("/", plain.page),
        ("/page/{name}", plain.page_file),
    )
    for path, endpoint in unlisted:
        app.add_api_route(path, endpoint, methods=["GET"], response_model=None, include_in_schema=False)


def _describe(app: FastAPI, service: Service, needs_key: bool) -> None:
    """Let /openapi.json be ours, made when it is first asked for."""

    @cache
    def content() -> dict[str, Any]:
        public_paths = PUBLIC_PATHS if needs_key else None
        return document(app, service.model_name, public_paths, reads_images=service.images is not None)

    app.openapi = content  # type: ignore[method-assign]
