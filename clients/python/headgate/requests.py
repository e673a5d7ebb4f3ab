"""Requests of the contract from the arguments of a call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headgate import v1 as pb
from headgate.content import system
from headgate.embeddings import EmbedInputs, add_input
from headgate.messages import Messages, read_messages
from headgate.options import Json
from headgate.tools import read_tool

CALL_OPTIONS = frozenset({"timeout", "request_id", "metadata"})
_CHOICES = {
    "auto": pb.TOOL_CHOICE_MODE_AUTO,
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "required": pb.TOOL_CHOICE_MODE_REQUIRED,
}
_ELEMENT_TYPES = {
    "float32": pb.ELEMENT_TYPE_FLOAT32,
    "float16": pb.ELEMENT_TYPE_FLOAT16,
    "int8": pb.ELEMENT_TYPE_INT8,
}


def generate_request(
    model: str | pb.GenerateRequest, messages: Messages, options: Mapping[str, Any]
) -> pb.GenerateRequest:
    """The request of generate and stream; one that is whole already goes as it is.

    Raises:
        TypeError: an option is unknown, or of a type that it does not take.
        ValueError: a message or an option cannot be said in the contract.
    """
    if isinstance(model, pb.GenerateRequest):
        if messages or not options.keys() <= CALL_OPTIONS:
            raise TypeError("a whole request takes no messages and options beside it")
        return model
    request = pb.GenerateRequest(model=model, messages=read_messages(messages))
    _fill(request, options, _GENERATE)
    return request


def embed_request(model: str | pb.EmbedRequest, inputs: EmbedInputs, options: Mapping[str, Any]) -> pb.EmbedRequest:
    """The request of embed; raises as `generate_request` does."""
    if isinstance(model, pb.EmbedRequest):
        if inputs or not options.keys() <= CALL_OPTIONS:
            raise TypeError("a whole request takes no inputs and options beside it")
        return model
    many: Sequence[Any] = [inputs] if isinstance(inputs, str | pb.EmbedInput) else inputs
    request = pb.EmbedRequest(model=model)
    for each in many:
        add_input(request, each)
    _fill(request, options, _EMBED)
    return request


def _fill(request: Any, options: Mapping[str, Any], setters: Mapping[str, Callable[[Any, Any], None]]) -> None:
    in_order = options if _WHOLES.isdisjoint(options) else sorted(options, key=_order)
    for name in in_order:
        if name in CALL_OPTIONS:
            continue
        if name not in setters:
            raise TypeError(f"there is no option {name!r}")
        if (value := options[name]) is not None:
            setters[name](request, value)


def _order(name: str) -> bool:
    """Wholes before their parts: `config` before `temperature`, `tool_choice` before `parallel_tool_calls`."""
    return name not in _WHOLES


def _scalar(name: str) -> Callable[[Any, Any], None]:
    return lambda message, value: setattr(message, name, value)


def _message(name: str) -> Callable[[Any, Any], None]:
    return lambda message, value: getattr(message, name).CopyFrom(value)


def _several(name: str) -> Callable[[Any, Any], None]:
    def fill(message: Any, values: Any) -> None:
        if isinstance(values, str):
            raise TypeError(f"{name} takes a list, not text")
        message.ClearField(name)
        getattr(message, name).extend(values)

    return fill


def _mapping(name: str) -> Callable[[Any, Any], None]:
    return lambda message, values: getattr(message, name).update(values)


def _of_config(fill: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    return lambda request, value: fill(request.config, value)


def _system(request: pb.GenerateRequest, text: str) -> None:
    request.messages.insert(0, system(text))


def _tools(request: pb.GenerateRequest, tools: Sequence[Any]) -> None:
    request.tools.extend(read_tool(tool).proto for tool in tools)


def _tool_choice(request: pb.GenerateRequest, choice: str | pb.ToolChoice) -> None:
    if isinstance(choice, pb.ToolChoice):
        request.tool_choice.CopyFrom(choice)
    elif choice in _CHOICES:
        request.tool_choice.mode = _CHOICES[choice]
    else:
        request.tool_choice.CopyFrom(pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED, allowed_tools=[choice]))


def _parallel_tool_calls(request: pb.GenerateRequest, parallel: bool) -> None:
    request.tool_choice.parallel_calls = parallel


def _reasoning(request: pb.GenerateRequest, reasoning: str | int | pb.ReasoningConfig) -> None:
    if isinstance(reasoning, str):
        request.reasoning.effort = reasoning
    elif isinstance(reasoning, int):
        request.reasoning.budget_tokens = reasoning
    else:
        request.reasoning.CopyFrom(reasoning)


def _fallbacks(request: pb.GenerateRequest, models: Sequence[str]) -> None:
    _several("fallbacks")(request.routing, models)


def _provider_options(request: Any, options: Mapping[str, Json]) -> None:
    for issuer, values in options.items():
        text = values if isinstance(values, str) else json.dumps(values, ensure_ascii=False)
        request.provider_options[issuer] = text


def _response_format(config: pb.GenerationConfig, form: Any) -> None:
    wanted = config.response_format
    match form:
        case pb.ResponseFormat():
            wanted.CopyFrom(form)
        case "text":
            wanted.type = pb.RESPONSE_FORMAT_TYPE_TEXT
        case "json":
            wanted.type = pb.RESPONSE_FORMAT_TYPE_JSON
        case Mapping():
            wanted.type = pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA
            wanted.name = str(form.get("title") or "answer")
            wanted.schema = json.dumps(form, ensure_ascii=False)
        case str():
            raise ValueError(f"response_format: {form!r} is none of text and json")
        case _:
            _schema_format(wanted, form)


def _schema_format(wanted: pb.ResponseFormat, kind: Any) -> None:
    """The schema of a type; enforced by the vendor, with every field required, where it has no open objects."""
    from headgate.schemas import schema_of, strict

    schema = schema_of(kind)
    closed = strict(schema)
    wanted.type = pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA
    wanted.name = getattr(kind, "__name__", "answer")
    wanted.schema = json.dumps(closed or schema, ensure_ascii=False)
    if closed:
        wanted.strict = True


def _element_type(request: pb.EmbedRequest, name: str) -> None:
    if name not in _ELEMENT_TYPES:
        raise ValueError(f"element_type: {name!r} is none of {', '.join(_ELEMENT_TYPES)}")
    request.element_type = _ELEMENT_TYPES[name]


_WHOLES = {"config", "tool_choice", "routing"}
_SHARED = {
    "routing": _message("routing"),
    "execution": _message("execution"),
    "end_user_id": _scalar("end_user_id"),
    "labels": _mapping("labels"),
    "provider_options": _provider_options,
}
_SAMPLING = {
    **{
        name: _scalar(name)
        for name in (
            "max_output_tokens",
            "temperature",
            "top_p",
            "top_k",
            "seed",
            "presence_penalty",
            "frequency_penalty",
            "candidate_count",
            "logprobs",
            "top_logprobs",
            "verbosity",
        )
    },
    "stop_sequences": _several("stop_sequences"),
    "output_modalities": _several("output_modalities"),
    "logit_bias": _mapping("logit_bias"),
    "response_format": _response_format,
}
_GENERATE: Mapping[str, Callable[[Any, Any], None]] = {
    **_SHARED,
    **{name: _of_config(fill) for name, fill in _SAMPLING.items()},
    "system": _system,
    "config": _message("config"),
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _parallel_tool_calls,
    "reasoning": _reasoning,
    "fallbacks": _fallbacks,
    "stream": _message("stream"),
    "prompt_cache_key": _scalar("prompt_cache_key"),
}
_EMBED: Mapping[str, Callable[[Any, Any], None]] = {
    **_SHARED,
    "dimensions": _scalar("dimensions"),
    "task_type": _scalar("task_type"),
    "element_type": _element_type,
}
