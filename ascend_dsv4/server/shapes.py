# SPDX-License-Identifier: Apache-2.0
"""JSON schemas, for /openapi.json alone, of fields that `bodies` leaves to `deepseek_recipe` to check."""

from __future__ import annotations

from typing import Any, Final

JsonSchema = dict[str, Any]

_TEXT: Final[JsonSchema] = {"type": "string"}
_ANY_OBJECT: Final[JsonSchema] = {"type": "object"}
_SCHEMA: Final[JsonSchema] = {"description": "A JSON schema of an object."}
_NAME: Final[JsonSchema] = {"type": "string", "pattern": "^[a-zA-Z0-9_-]+$"}


def _list(items: JsonSchema) -> JsonSchema:
    return {"type": "array", "items": items}


def _any(*schemas: JsonSchema) -> JsonSchema:
    return {"anyOf": list(schemas)}


def _optional(*schemas: JsonSchema) -> JsonSchema:
    return _any(*schemas, {"type": "null"})


def _object(required: str, **properties: JsonSchema) -> JsonSchema:
    """An object with these properties, and others. `required` are names between spaces; what is not may be null."""
    names = required.split()
    shown = {name: schema if name in names else _optional(schema) for name, schema in properties.items()}
    return {"type": "object", "required": names, "properties": shown}


def _words(*words: str) -> JsonSchema:
    return {"enum": list(words)}


def _text_or(part: JsonSchema) -> JsonSchema:
    return _any(_TEXT, _list(part))


_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra")
_CALL: Final = _object("name arguments", name=_TEXT, arguments=_TEXT)
_STRICT: Final = {"type": "boolean", "description": "Calls follow the schema also where the model is free not to call."}
_FUNCTION: Final = _object("name", name=_NAME, parameters=_SCHEMA, strict=_STRICT)

_CHAT_TEXT: Final = _object("type text", type=_words("text"), text=_TEXT)
_CHAT_CONTENT: Final = _text_or(_CHAT_TEXT)
_CHAT_CALL: Final = _object("id type function", id=_TEXT, type=_words("function"), function=_CALL)
_CHAT_MESSAGE: Final = _any(
    _object("role content", role=_words("system", "developer", "user"), content=_CHAT_CONTENT),
    _object(
        "role content", role=_words("assistant"), content=_CHAT_CONTENT, reasoning_content=_TEXT, tool_calls=_list(_CHAT_CALL)
    ),
    _object("role content tool_calls", role=_words("assistant"), content={"type": "null"}, tool_calls=_list(_CHAT_CALL)),
    _object("role content tool_call_id", role=_words("tool"), content=_CHAT_CONTENT, tool_call_id=_TEXT),
    _object("role content", role=_words("latest_reminder"), content=_TEXT),
)
_CHAT_FORMAT: Final = _any(
    _object("type", type=_words("text", "json_object")),
    _object("type json_schema", type=_words("json_schema"), json_schema=_object("schema", schema=_ANY_OBJECT)),
    _object("type regex", type=_words("regex"), regex=_TEXT),
)
_CHAT_TOOLS: Final = _list(_object("type function", type=_words("function"), function=_FUNCTION))

_MESSAGES_TEXT: Final = _object("type text", type=_words("text"), text=_TEXT)
_MESSAGES_BLOCK: Final = _any(
    _MESSAGES_TEXT,
    _object("type thinking signature", type=_words("thinking"), thinking=_TEXT, signature=_TEXT),
    _object("type id name input", type=_words("tool_use"), id=_TEXT, name=_TEXT, input=_ANY_OBJECT),
    _object("type tool_use_id", type=_words("tool_result"), tool_use_id=_TEXT, content=_text_or(_MESSAGES_TEXT)),
)
_MESSAGES: Final[dict[str, JsonSchema]] = {
    "system": _optional(_text_or(_MESSAGES_TEXT)),
    "tools": _optional(_list(_object("name input_schema", name=_NAME, input_schema=_ANY_OBJECT))),
    "tool_choice": _optional(
        _object("type", type=_words("auto", "any", "none")), _object("type name", type=_words("tool"), name=_TEXT)
    ),
    "thinking": _optional(
        _object("type", type=_words("disabled", "adaptive")),
        _object("type", type=_words("enabled"), budget_tokens={"description": "Without effect."}),
    ),
}

_RESPONSES_TEXT: Final = _object("type text", type=_words("input_text", "output_text"), text=_TEXT)
_RESPONSES_ITEM: Final = _any(
    _object("role content", role=_words("user", "system", "developer", "assistant"), content=_text_or(_RESPONSES_TEXT)),
    _object(
        "type call_id name arguments", type=_words("function_call"), call_id=_TEXT, name=_TEXT, arguments=_TEXT
    ),
    _object("type call_id output", type=_words("function_call_output"), call_id=_TEXT, output=_TEXT),
)
_RESPONSES_FORMAT: Final = _any(
    _object("type", type=_words("text", "json_object")),
    _object("type name schema", type=_words("json_schema"), name=_TEXT, schema=_ANY_OBJECT),
)

SHAPES: Final[dict[str, dict[str, JsonSchema]]] = {
    "ChatBody": {
        "messages": {**_list(_CHAT_MESSAGE), "minItems": 1},
        "tools": _optional(_CHAT_TOOLS),
        "tool_choice": _optional(
            _words("none", "auto", "required"),
            _object("type function", type=_words("function"), function=_object("name", name=_TEXT)),
        ),
        "response_format": _optional(_CHAT_FORMAT),
        "reasoning_effort": _optional(_words(*_EFFORTS)),
    },
    "TokenizeBody": {
        "messages": _optional({**_list(_CHAT_MESSAGE), "minItems": 1}),
        "tools": _optional(_CHAT_TOOLS),
    },
    "TemplateOptions": {"reasoning_effort": _optional(_words(*_EFFORTS))},
    "Reasoning": {"effort": _optional(_words(*_EFFORTS))},
    "OutputConfig": {"effort": _optional(_words(*_EFFORTS))},
    "MessagesMessage": {"content": _any({"type": "string", "minLength": 1}, {**_list(_MESSAGES_BLOCK), "minItems": 1})},
    "MessagesBody": _MESSAGES,
    "CountTokensBody": _MESSAGES,
    "ResponsesBody": {
        "input": _any(_TEXT, {**_list(_RESPONSES_ITEM), "minItems": 1}),
        "tools": _optional(_list(_object("type", type=_TEXT, parameters=_SCHEMA))),
        "tool_choice": _optional(
            _words("none", "auto", "required"), _object("type name", type=_words("function"), name=_TEXT)
        ),
        "text": _optional(_object("", format=_RESPONSES_FORMAT)),
    },
}
"""Schema → field → what it may hold, for a model that reads text only."""

_URL: Final = {"type": "string", "description": "data:image/png;base64,... or an http or https URL, if the server fetches any."}
_DETAIL: Final = {"enum": ["low", "high", "original", "auto"], "description": "Without effect."}
_BASE64: Final = _object(
    "type media_type data", type=_words("base64"), data=_TEXT,
    media_type=_words("image/jpeg", "image/png", "image/gif", "image/webp"),
)  # fmt: skip
_IMAGE_BESIDE: Final = (
    (_CHAT_TEXT, _object("type image_url", type=_words("image_url"), image_url=_object("url", url=_URL, detail=_DETAIL))),
    (_RESPONSES_TEXT, _object("type image_url", type=_words("input_image"), image_url=_URL, detail=_DETAIL)),
    (_MESSAGES_TEXT, _object(
        "type source", type=_words("image"), source=_any(_BASE64, _object("type url", type=_words("url"), url=_URL))
    )),
)  # fmt: skip
"""Where a part may be a text, it may also be an image."""


def shapes(*, reads_images: bool) -> dict[str, dict[str, JsonSchema]]:
    """`SHAPES`, with images if the model reads them."""
    widened: dict[str, dict[str, JsonSchema]] = _with_images(SHAPES)
    return widened if reads_images else SHAPES


def _with_images(schema: Any) -> Any:
    for text, image in _IMAGE_BESIDE:
        if schema is text:
            return _any(text, image)
    if isinstance(schema, dict):
        return {name: _with_images(value) for name, value in schema.items()}
    return [_with_images(value) for value in schema] if isinstance(schema, list) else schema
