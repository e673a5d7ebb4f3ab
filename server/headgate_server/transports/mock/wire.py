"""OpenAI's wire, the vendor's side of it: a request body in, the chunks of an answer's body out. Pure.

https://platform.openai.com/docs/api-reference/chat and .../embeddings
"""

from __future__ import annotations

import base64
import json
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import msgspec

from headgate_server.config import MockOptions
from headgate_server.transports.mock.models import (
    CHAT_MODELS,
    EMBEDDING_MODELS,
    ChatRequest,
    Reply,
    ToolCall,
    tokens,
    unit_vector,
)

JsonObject = dict[str, Any]
T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
MAX_DIMENSIONS = 4096
MAX_CHOICES = 16
FIELD_PATH = re.compile(r"`\$\.(.+)`$|required field `(.+)`$")
ARGUMENT_PIECE = re.compile(r"(?s).{1,8}")


class EmbeddingRequest(msgspec.Struct):
    """The fields of an embeddings request that the mock reads."""

    model: str
    input: str | list[str | int | list[int]]
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] = "float"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: `chunks` are the pieces of the body that a network could deliver apart.

    The first `content_chunks` of them are content; after those come finish reason, usage and terminator.
    """

    status: int
    content_type: str
    chunks: list[bytes]
    content_chunks: int


class Refusal(Exception):
    """The request is wrong, and OpenAI would say so with this status, code and parameter."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"message": message, "type": "invalid_request_error", "param": param, "code": code}


def answer(path: str, body: bytes, options: MockOptions, number: int) -> Answer:
    """The answer to the `number`-th call."""
    try:
        if path.endswith("/chat/completions"):
            return _chat(_decoded(body, ChatRequest), options, number)
        if path.endswith("/embeddings"):
            return _embeddings(_decoded(body, EmbeddingRequest), options)
        raise Refusal(404, f"Unknown request URL: POST {path}.", code="unknown_url")
    except Refusal as refusal:
        return error_answer(refusal.status, refusal.body)


def error_answer(status: int, error: JsonObject) -> Answer:
    """An answer whose body is an error object."""
    return Answer(status, "application/json", [_json({"error": error})], content_chunks=1)


def event(data: JsonObject) -> bytes:
    """One server-sent event."""
    return b"data: " + _json(data) + b"\n\n"


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        path = FIELD_PATH.search(str(error))
        raise Refusal(400, str(error), code="invalid_value", param=path and path[path.lastindex or 0]) from None
    except msgspec.DecodeError:
        raise Refusal(400, "We could not parse the JSON body of your request.") from None


def _chat(request: ChatRequest, options: MockOptions, number: int) -> Answer:
    model = CHAT_MODELS.get(request.model)
    if model is None:
        raise _unknown_model(request.model, exists=request.model in EMBEDDING_MODELS)
    _check(request)
    completion = _completion(request, model(request, options.words), options)
    base = {"id": f"chatcmpl-mock-{number}", "created": int(time.time()), "model": request.model}
    if not request.stream:
        return Answer(200, "application/json", [_json(_whole(completion, base))], content_chunks=1)
    content = [event(chunk) for chunk in _content_chunks(completion, base)]
    end = [event(chunk) for chunk in _end_chunks(completion, base, request)]
    return Answer(200, "text/event-stream", [*content, *end, DONE], content_chunks=len(content))


def _check(request: ChatRequest) -> None:
    if not request.messages:
        raise Refusal(400, "[] is too short - 'messages'", param="messages", code="empty_array")
    for index, message in enumerate(request.messages):
        if message.role not in ROLES:
            raise Refusal(400, f"Invalid value: '{message.role}'.", param=f"messages[{index}].role")
    for name in ("max_completion_tokens", "max_tokens", "n"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise Refusal(400, f"Invalid '{name}': must be at least 1.", param=name, code="integer_below_min_value")
    if request.n is not None and request.n > MAX_CHOICES:
        raise Refusal(400, f"Invalid 'n': must be at most {MAX_CHOICES}.", param="n", code="integer_above_max_value")


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer in tokens: thinking, then either text or the arguments of a call."""

    thinking: list[str]
    pieces: list[str]
    call: ToolCall | None
    finish_reason: str
    usage: JsonObject
    choices: range


def _completion(request: ChatRequest, reply: Reply, options: MockOptions) -> Completion:
    call = reply if isinstance(reply, ToolCall) else None
    if isinstance(reply, ToolCall):
        pieces = ARGUMENT_PIECE.findall(reply.arguments)
    else:
        pieces = tokens(_before_any(reply, request.stop_sequences))
    everything = len(pieces)
    thinking = tokens(options.reasoning)
    if request.token_limit is not None:
        thinking = thinking[: request.token_limit]
        pieces = pieces[: request.token_limit - len(thinking)]
    finish_reason = "length" if len(pieces) < everything else "tool_calls" if call else "stop"
    choices = range(request.n or 1)
    return Completion(
        thinking=thinking,
        pieces=pieces,
        call=call,
        finish_reason=options.finish_reason or finish_reason,
        usage=_usage(request, len(thinking) * len(choices), len(pieces) * len(choices), options),
        choices=choices,
    )


def _before_any(text: str, stops: list[str]) -> str:
    return text[: min((text.index(stop) for stop in stops if stop and stop in text), default=len(text))]


def _usage(request: ChatRequest, thinking: int, pieces: int, options: MockOptions) -> JsonObject:
    claimed = options.usage
    sent = sum(len(tokens(message.text())) for message in request.messages)
    prompt = sent if claimed.prompt_tokens is None else claimed.prompt_tokens
    completion = thinking + pieces if claimed.completion_tokens is None else claimed.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": claimed.cached_tokens or 0},
        "completion_tokens_details": {
            "reasoning_tokens": thinking if claimed.reasoning_tokens is None else claimed.reasoning_tokens
        },
    }


def _whole(completion: Completion, base: JsonObject) -> JsonObject:
    message: JsonObject = {"role": "assistant", "content": None, "refusal": None}
    if completion.thinking:
        message["reasoning_content"] = "".join(completion.thinking)
    if completion.call:
        message["tool_calls"] = [_call(completion.call, "".join(completion.pieces), base)]
    else:
        message["content"] = "".join(completion.pieces)
    return {
        **base,
        "object": "chat.completion",
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": completion.finish_reason}
            for index in completion.choices
        ],
        "usage": completion.usage,
    }


def _content_chunks(completion: Completion, base: JsonObject) -> Iterator[JsonObject]:
    for delta in _deltas(completion, base):
        for index in completion.choices:
            yield _chunk(base, [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])


def _deltas(completion: Completion, base: JsonObject) -> Iterator[JsonObject]:
    yield {"role": "assistant", "content": None if completion.call else "", "refusal": None}
    for thought in completion.thinking:
        yield {"reasoning_content": thought}
    if completion.call is None:
        for piece in completion.pieces:
            yield {"content": piece}
        return
    yield {"tool_calls": [{"index": 0, **_call(completion.call, "", base)}]}
    member, argument = ("custom", "input") if completion.call.free_text else ("function", "arguments")
    for piece in completion.pieces:
        yield {"tool_calls": [{"index": 0, member: {argument: piece}}]}


def _end_chunks(completion: Completion, base: JsonObject, request: ChatRequest) -> Iterator[JsonObject]:
    for index in completion.choices:
        yield _chunk(base, [{"index": index, "delta": {}, "logprobs": None, "finish_reason": completion.finish_reason}])
    if request.stream_options and request.stream_options.include_usage:
        yield {**_chunk(base, []), "usage": completion.usage}


def _chunk(base: JsonObject, choices: list[JsonObject]) -> JsonObject:
    return {**base, "object": "chat.completion.chunk", "choices": choices}


def _call(call: ToolCall, arguments: str, base: JsonObject) -> JsonObject:
    identity = {"id": f"call_{base['id']}"}
    if call.free_text:
        return {**identity, "type": "custom", "custom": {"name": call.name, "input": arguments}}
    return {**identity, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _embeddings(request: EmbeddingRequest, options: MockOptions) -> Answer:
    if request.model not in EMBEDDING_MODELS:
        raise _unknown_model(request.model, exists=request.model in CHAT_MODELS)
    dimensions = options.dimensions if request.dimensions is None else request.dimensions
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise Refusal(400, f"Invalid 'dimensions': must be 1 to {MAX_DIMENSIONS}.", param="dimensions")
    inputs = _inputs(request)
    if not inputs or not all(inputs):
        raise Refusal(400, "Invalid 'input': must not be empty.", param="input")
    rows = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _embedding(unit_vector(_json(content), dimensions), request.encoding_format),
        }
        for index, content in enumerate(inputs)
    ]
    sent = sum(len(tokens(content)) if isinstance(content, str) else len(content) for content in inputs)
    if options.usage.prompt_tokens is not None:
        sent = options.usage.prompt_tokens
    usage = {"prompt_tokens": sent, "total_tokens": sent}
    body = _json({"object": "list", "data": rows, "model": request.model, "usage": usage})
    return Answer(200, "application/json", [body], content_chunks=1)


def _inputs(request: EmbeddingRequest) -> list[str] | list[list[int]]:
    match request.input:
        case str(text):
            return [text]
        case [int(), *_] as token_ids:
            return [cast("list[int]", token_ids)]
        case several:
            return cast("list[str]", several)


def _embedding(vector: list[float], encoding: str) -> list[float] | str:
    if encoding == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _unknown_model(model: str, *, exists: bool) -> Refusal:
    reason = "cannot be used at this endpoint" if exists else "does not exist"
    return Refusal(404, f"The model `{model}` {reason}.", code="model_not_found", param="model")


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
