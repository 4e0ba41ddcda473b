# SPDX-License-Identifier: Apache-2.0
"""Request bodies: what our own fields may hold. Conversations themselves are checked by `deepseek_recipe`.

A field that is neither here nor in `IGNORED` of its body is an error: a misspelt parameter must not be lost silently.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ascend_dsv4.engine.sampling_params import (
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_STOP_CHARS,
    MAX_STOP_IDS,
    MAX_STOP_STRINGS,
)

Temperature = Annotated[float, Field(ge=0, le=2, description="0 is greedy, with thinking too.")]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63, description="Same seed, same prompt, same text, whatever else runs.")]
Tokens = Annotated[int, Field(ge=1, lt=1 << 31)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stop = StopText | Annotated[list[StopText], Field(max_length=MAX_STOP_STRINGS)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
# fail_fast where lists may be long: a million complaints take many seconds to make, and three are shown.
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]


def _few_enough(biases: Any) -> Any:
    """Before each entry is looked at, for the same reason."""
    if isinstance(biases, dict) and len(biases) > MAX_LOGIT_BIAS:
        raise ValueError(f"{len(biases)} entries, expected at most {MAX_LOGIT_BIAS}")
    return biases


LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
    BeforeValidator(_few_enough),
    Field(max_length=MAX_LOGIT_BIAS, description="Token id → what is added to its logit."),
]
JsonObject = dict[str, Any]
JsonObjects = Annotated[list[JsonObject], Field(fail_fast=True)]

IMAGE_PARTS: Final = ("image_url", "image", "input_image")
_DOCUMENTS: Final = ("file", "document", "input_file")
_IMAGE_URL: Final = re.compile(r"data:image/[^,]{1,80};base64,|https?://.", re.IGNORECASE)


def _readable(parts: list[Any], info: ValidationInfo) -> list[Any]:
    """Refuse what `deepseek_recipe` would replace by a placeholder, which would look as if the model had seen it.

    The context of a validation says whether the model `reads_images`.
    """
    reads_images = bool(info.context and info.context["reads_images"])
    for index, part in enumerate(parts):
        if not isinstance(part, dict):
            continue
        kind = part.get("type")
        if kind in _DOCUMENTS or (kind in IMAGE_PARTS and not reads_images):
            what = "text and images" if reads_images else "text"
            raise ValueError(f"part {index} has type {kind}, but this model reads {what} only; leave it out")
        if kind in IMAGE_PARTS and not _names_an_image(part):
            raise ValueError(f"part {index} names no image: expected data:image/png;base64,... or an http or https URL")
        for inner in (part.get("content"), part.get("output")):
            if isinstance(inner, list):
                _readable(inner, info)
    return parts


def _names_an_image(part: JsonObject) -> bool:
    """Whether the URL of an image part, if it has one, is of a kind that is read; what it leads to is seen later."""
    url = part.get("image_url")
    if isinstance(url, dict):
        url = url.get("url")
    return not isinstance(url, str) or _IMAGE_URL.match(url[:200]) is not None


def _form(content: Any) -> str | None:
    return "text" if isinstance(content, str) else "parts" if isinstance(content, list) else None


Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[JsonObjects, AfterValidator(_readable), Tag("parts")],
    Discriminator(_form, custom_error_type="content", custom_error_message="Input should be a string or a list of parts"),
]


def _in_foreground(value: bool) -> bool:
    if value:
        raise ValueError("nothing is stored here, so no response could be fetched later")
    return value


NotInBackground = Annotated[bool, AfterValidator(_in_foreground), Field(json_schema_extra={"const": False})]


class Body(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    IGNORED: ClassVar[tuple[str, ...]] = ()
    """Fields that real clients send and that have no effect here."""

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, content: Any) -> Any:
        """The first field that does not exist, with a suggestion, instead of a complaint about each."""
        for name in content if isinstance(content, dict) else ():
            if name not in cls.model_fields and name not in cls.IGNORED:
                close = difflib.get_close_matches(name[:100], cls.model_fields, 1)
                hint = f"Did you mean {close[0]}?" if close else "Leave it out; /docs lists the fields."
                raise PydanticCustomError("unknown_field", "unknown field", {"field": name[:100], "hint": hint})
        return content


class Sampling(Body):
    """Sampling parameters of every protocol. Those that a protocol does not define have the names that Chat Completions, vLLM
    or SGLang gave them."""

    top_k: Annotated[int, Field(ge=-1, lt=1 << 31, description="0 and -1 keep the whole vocabulary.")] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_IDS)] | None = None
    ignore_eos: bool | None = None


class StreamOptions(Body):
    """How a stream reports."""

    include_usage: bool | None = Field(default=None, description="A last chunk with the token counts.")
    include_obfuscation: bool | None = Field(default=None, description="Accepted; nothing is padded.")


class OpenAISampling(Sampling):
    """Sampling parameters of Chat Completions and Completions."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class TemplateOptions(Body):
    """`chat_template_kwargs` of vLLM and SGLang, as far as this model has them."""

    thinking: bool | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None


class ThinkingSwitch(Body):
    """DeepSeek's own switch."""

    type: Literal["enabled", "disabled"]


class ChatMessage(BaseModel):
    """A message; `deepseek_recipe` checks what belongs to each role."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool", "latest_reminder"]
    content: Content | None = None


class ChatBody(OpenAISampling):
    """A Chat Completions request."""

    IGNORED = (
        "user", "metadata", "store", "service_tier", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
        "safety_identifier", "verbosity", "prediction",
    )  # fmt: skip
    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: JsonObjects | None = None
    tool_choice: str | JsonObject | None = None
    response_format: JsonObject | None = None
    reasoning_effort: str | None = None
    thinking: ThinkingSwitch | None = None
    chat_template_kwargs: TemplateOptions | None = None


class CompletionBody(OpenAISampling):
    """A Completions request; the prompt is completed as it stands."""

    IGNORED = ("user", "best_of", "metadata", "service_tier", "safety_identifier", "prompt_cache_key")
    model: str
    prompt: str | Texts | TokenIds | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31, description="0 with echo scores the prompt.")] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    return_token_ids: bool | None = Field(default=None, description="Each choice also has its token_ids.")


class Reasoning(BaseModel):
    """How the Responses protocol asks for effort."""

    model_config = ConfigDict(extra="allow")
    effort: str | None = None


class ResponsesBody(Sampling):
    """A Responses request. Nothing is stored: each request brings its whole conversation."""

    IGNORED = (
        "user", "metadata", "store", "service_tier", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
        "safety_identifier", "truncation", "max_tool_calls", "stream_options", "client_metadata",
    )  # fmt: skip
    model: str
    input: Content
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    include: Annotated[list[str], Field(max_length=64, fail_fast=True)] | None = None
    reasoning: Reasoning | None = None
    text: JsonObject | None = None
    tools: JsonObjects | None = None
    tool_choice: str | JsonObject | None = None
    stream: bool | None = None
    background: NotInBackground | None = None


class MessagesMessage(BaseModel):
    """A message of the Messages protocol."""

    model_config = ConfigDict(extra="allow")
    role: Literal["user", "assistant", "system"]
    content: Content


class OutputConfig(Body):
    """How the Messages protocol asks for effort. Its `format` is not supported, and must not be taken for granted."""

    effort: str | None = None


class CountTokensBody(Body):
    """A count_tokens request of the Messages protocol."""

    IGNORED = ("metadata", "service_tier", "context_management", "cache_control", "speed", "inference_geo")
    model: str
    messages: Annotated[list[MessagesMessage], Field(min_length=1, fail_fast=True)]
    system: str | JsonObjects | None = None
    tools: JsonObjects | None = None
    tool_choice: JsonObject | None = None
    thinking: JsonObject | None = None
    output_config: OutputConfig | None = None


class MessagesBody(CountTokensBody, Sampling):
    """A Messages request."""

    max_tokens: Tokens
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stop_sequences: Annotated[list[StopText], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stream: bool | None = None


class TokenizeBody(Body):
    """Text, or a conversation, to token ids."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None = None
    tools: JsonObjects | None = None
    chat_template_kwargs: TemplateOptions | None = None
    add_special_tokens: bool | None = Field(default=None, description="A begin-of-sentence token in front of the text.")
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """Token ids to text."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
