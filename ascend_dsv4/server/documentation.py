# SPDX-License-Identifier: Apache-2.0
"""What /openapi.json says about the routes: bodies, answers, errors, keys."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ascend_dsv4.server import answers
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
from ascend_dsv4.server.shapes import shapes

BODIES: Final = (
    ChatBody, CompletionBody, ResponsesBody, MessagesBody, CountTokensBody, TokenizeBody, DetokenizeBody,
)  # fmt: skip
ANSWERS: Final = (
    answers.ChatCompletion, answers.Completion, answers.Response, answers.Message, answers.TokenCount, answers.Tokens,
    answers.Text, answers.Model, answers.Models, answers.Health, answers.Version, answers.Status, answers.Error,
    answers.MessagesError,
)  # fmt: skip
_REF: Final = "#/components/schemas/"
_ANY_TIME: Final = (500, 503)
_OF_BODIES: Final = (400, 404, 408, 413, 415)
_OF_GENERATION: Final = (429, 504)
_STATUSES: Final = {
    400: "The request is wrong; the message says where, and what to do.",
    401: "No valid API key.",
    404: "No such model.",
    408: "The body came too slowly.",
    413: "The body is too long.",
    415: "The body is not declared as JSON.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "The server failed; its log has the details under the request's id.",
    503: "The server is stopping, or holds as many connections as it may.",
    504: "The request took longer than the server allows.",
}
_EVENT: Final = {
    "description": "A server-sent event, if stream is set.",
    "type": "object",
    "required": ["data"],
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "description": "JSON, or [DONE]."},
    },
}
_REQUEST_ID: Final = {
    "X-Request-Id": {
        "description": "The request's own, if it had one of at most 128 letters, digits, and . _ : -",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
        "required": True,
    }
}
_RETRY_AFTER: Final = {"Retry-After": {"description": "In seconds.", "schema": {"type": "integer", "minimum": 1}}}
_CHALLENGE: Final = {"WWW-Authenticate": {"description": "Bearer.", "schema": {"type": "string"}}}
_HEADERS: Final = {401: _CHALLENGE, 429: _RETRY_AFTER, 503: _RETRY_AFTER}


def request_body(body: type[Body]) -> dict[str, Any]:
    """The `requestBody` of a route."""
    return {"required": True, "content": {"application/json": {"schema": _ref(body)}}}


def responses(path: str, answer: type[BaseModel], *, has_body: bool, may_stream: bool) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route."""
    content: dict[str, Any] = {"application/json": {"schema": _ref(answer)}}
    if may_stream:
        content["text/event-stream"] = {"schema": _EVENT}
    statuses = {401, *_ANY_TIME, *(_OF_BODIES if has_body else ()), *(_OF_GENERATION if may_stream else ())}
    if "{" in path:
        statuses.add(404)
    error = _ref(answers.MessagesError if path.startswith("/v1/messages") else answers.Error)
    failures: dict[int | str, dict[str, Any]] = {
        status: {
            "description": _STATUSES[status],
            "headers": {**_REQUEST_ID, **_HEADERS.get(status, {})},
            "content": {"application/json": {"schema": error}},
        }
        for status in sorted(statuses)
    }
    if answer is answers.Health:
        failures[503]["content"] = {"application/json": {"schema": {"anyOf": [_ref(answers.Health), error]}}}
    return {200: {"description": answer.__doc__, "headers": _REQUEST_ID, "content": content}, **failures}


def document(
    app: FastAPI, model_name: str, public_paths: tuple[str, ...] | None, *, reads_images: bool
) -> dict[str, Any]:
    """The OpenAPI document. `public_paths` need no key; None if nothing does."""
    content = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = content["components"] = {"schemas": _schemas(model_name, reads_images)}
    for path, methods in content["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)  # FastAPI's own, which is never sent
            if public_paths is None or path in public_paths:
                operation["responses"].pop("401", None)
            if public_paths is not None and path in public_paths:
                operation["security"] = []
    if public_paths is not None:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        content["security"] = [{"bearer": []}, {"x-api-key": []}]
    return content


def _schemas(model_name: str, reads_images: bool) -> dict[str, Any]:
    """Every body and answer by name. Bodies also list what they ignore, and the one model there is."""
    kinds = [(kind, "validation") for kind in (*BODIES, *ANSWERS)]
    schemas: dict[str, Any] = models_json_schema(kinds, ref_template=_REF + "{model}")[1]["$defs"]  # type: ignore[arg-type]
    for name, fields in shapes(reads_images=reads_images).items():
        schemas[name]["properties"].update(fields)
    for body in BODIES:
        fields = schemas[body.__name__]["properties"]
        fields["model"] = {"enum": [model_name] if body.model_fields["model"].is_required() else [model_name, None]}
        fields.update({name: {"description": "Accepted, without effect."} for name in body.IGNORED})
    return schemas


def _ref(kind: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF + kind.__name__}
