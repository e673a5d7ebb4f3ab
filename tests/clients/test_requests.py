"""Keyword arguments are the whole contract."""

from __future__ import annotations

from typing import Any

import pytest
from headgate import v1 as pb
from headgate.options import EmbedOptions, GenerateOptions
from headgate.requests import CALL_OPTIONS, embed_request, generate_request

CONTRACT = pb.GenerationConfig(top_k=1, temperature=0.1)


def asked(**options: Any) -> pb.GenerateRequest:
    return generate_request("fast", "Hi", options)


def test_every_field_of_the_contract_is_an_argument() -> None:
    """A field that is added to the contract must be added here."""
    fields = {field.name for field in pb.GenerateRequest.DESCRIPTOR.fields} - {"model", "messages"}
    fields |= {field.name for field in pb.GenerationConfig.DESCRIPTOR.fields}
    assert fields <= GenerateOptions.__optional_keys__
    embed = {field.name for field in pb.EmbedRequest.DESCRIPTOR.fields} - {"model", "inputs", "layout"}
    assert embed <= EmbedOptions.__optional_keys__


def test_every_argument_ends_up_in_the_request() -> None:
    """All of them at once, in their short forms."""
    request = asked(
        system="Be brief.",
        max_output_tokens=1,
        temperature=0.0,
        top_p=0.5,
        top_k=2,
        stop_sequences=["END"],
        seed=3,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        candidate_count=4,
        response_format="json",
        logprobs=True,
        top_logprobs=5,
        logit_bias={7: -1.0},
        output_modalities=["text"],
        verbosity="low",
        tools=[pb.Tool(function=pb.FunctionTool(name="f"))],
        tool_choice="f",
        parallel_tool_calls=False,
        reasoning="high",
        routing=pb.RoutingPolicy(strategy="cost"),
        fallbacks=["other"],
        execution=pb.ExecutionPolicy(max_attempts=1),
        stream=pb.StreamOptions(),
        end_user_id="u",
        labels={"team": "search"},
        provider_options={"openai": {"store": False}, "anthropic": '{"a": 1.0}'},
        prompt_cache_key="k",
        timeout=5.0,
        request_id="r",
        metadata={},
    )
    assert request == pb.GenerateRequest(
        model="fast",
        messages=[
            pb.Message(role=pb.ROLE_SYSTEM, parts=[pb.Part(text="Be brief.")]),
            pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Hi")]),
        ],
        config=pb.GenerationConfig(
            max_output_tokens=1,
            temperature=0.0,
            top_p=0.5,
            top_k=2,
            stop_sequences=["END"],
            seed=3,
            presence_penalty=0.1,
            frequency_penalty=0.2,
            candidate_count=4,
            response_format=pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON),
            logprobs=True,
            top_logprobs=5,
            logit_bias={7: -1.0},
            output_modalities=["text"],
            verbosity="low",
        ),
        tools=[pb.Tool(function=pb.FunctionTool(name="f"))],
        tool_choice=pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED, allowed_tools=["f"], parallel_calls=False),
        reasoning=pb.ReasoningConfig(effort="high"),
        routing=pb.RoutingPolicy(strategy="cost", fallbacks=["other"]),
        execution=pb.ExecutionPolicy(max_attempts=1),
        stream=pb.StreamOptions(),
        end_user_id="u",
        labels={"team": "search"},
        provider_options={"openai": '{"store": false}', "anthropic": '{"a": 1.0}'},
        prompt_cache_key="k",
    )
    given = GenerateOptions.__optional_keys__ - CALL_OPTIONS - {"config"}
    missing = {name for name in given if not _touches(name, request)}
    assert missing == set()


def test_single_settings_go_before_the_whole_config() -> None:
    """In whatever order they are written; and neither changes what the caller holds."""
    for options in ({"temperature": 0.9, "config": CONTRACT}, {"config": CONTRACT, "temperature": 0.9}):
        assert asked(**options).config == pb.GenerationConfig(top_k=1, temperature=0.9)
    assert CONTRACT.temperature == 0.1


def test_none_is_not_given() -> None:
    """An argument that is None leaves its field absent."""
    assert asked(temperature=None, system=None, tools=None) == asked()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"temprature": 1}, TypeError),
        ({"temprature": None}, TypeError),
        ({"stop_sequences": "END"}, TypeError),
        ({"response_format": "yaml"}, ValueError),
        ({"max_output_tokens": -1}, ValueError),
        ({"temperature": "hot"}, TypeError),
        ({"tools": [7]}, TypeError),
        ({"tools": [{"type": "telepathy"}]}, ValueError),
    ],
)
def test_arguments_that_cannot_be_sent_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    """At the call, not by the server."""
    with pytest.raises(error):
        asked(**options)


@pytest.mark.parametrize(
    ("choice", "mode"),
    [
        ("auto", pb.TOOL_CHOICE_MODE_AUTO),
        ("none", pb.TOOL_CHOICE_MODE_NONE),
        ("required", pb.TOOL_CHOICE_MODE_REQUIRED),
    ],
)
def test_tool_choice_is_a_word(choice: str, mode: pb.ToolChoiceMode.ValueType) -> None:
    """The three modes have names; anything else is a tool's."""
    assert asked(tool_choice=choice).tool_choice == pb.ToolChoice(mode=mode)


def test_reasoning_is_an_effort_or_a_budget() -> None:
    """Or all of the contract's settings."""
    assert asked(reasoning=1024).reasoning == pb.ReasoningConfig(budget_tokens=1024)
    whole = pb.ReasoningConfig(enabled=True, visibility=pb.REASONING_VISIBILITY_FULL)
    assert asked(reasoning=whole).reasoning == whole


def test_an_embedding_without_inputs_is_a_batch_of_none() -> None:
    """The server says what is wrong with it."""
    assert embed_request("m", [], {}) == pb.EmbedRequest(model="m")
    with pytest.raises(TypeError):
        embed_request("m", [7], {})  # type: ignore[list-item]


def _touches(name: str, request: pb.GenerateRequest) -> bool:
    """Whether a request built without this argument would differ: all of the test's are of consequence."""
    places = {"system": "messages", "parallel_tool_calls": "tool_choice", "fallbacks": "routing"}
    name = places.get(name, name)
    holder: Any = request if name in pb.GenerateRequest.DESCRIPTOR.fields_by_name else request.config
    return name in {field.name for field, _ in holder.ListFields()}
