"""Requests as Chat Completions and Embeddings want them: what is sent, what is warned of, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from headgate import v1 as pb

from headgate_server.errors import InvalidRequest, UnsupportedParameter
from headgate_server.providers import openai
from headgate_server.providers.base import HttpCall
from tests.test_openai_stream import target

Json = dict[str, Any]

PNG = b"\x89PNG"
PNG_URL = "data:image/png;base64,iVBORw=="


def call(host: str = "openai", *, stream: bool = False, **fields: Any) -> HttpCall:
    """The call for a request with these fields."""
    request = pb.GenerateRequest(model=f"{host}/inventio-1", **fields)
    return openai.encode(request, target(host), stream=stream)


def sent(host: str = "openai", *, stream: bool = False, **fields: Any) -> Json:
    """The body for a request with these fields, of which nothing is lost."""
    made = call(host, stream=stream, **fields)
    assert not made.warnings
    body: Json = json.loads(made.body)
    return body


def messages(host: str, *turns: pb.Message) -> list[Json]:
    """The messages of a request with these turns."""
    found: list[Json] = sent(host, messages=turns)["messages"]
    return found


def user(*parts: pb.Part, **fields: Any) -> pb.Message:
    """A turn of the user."""
    return pb.Message(role=pb.ROLE_USER, parts=parts, **fields)


def assistant(*parts: pb.Part, **fields: Any) -> pb.Message:
    """A turn of the model."""
    return pb.Message(role=pb.ROLE_ASSISTANT, parts=parts, **fields)


def result(call_id: str, *parts: pb.Part, **fields: Any) -> pb.Part:
    """The result of a tool call."""
    return pb.Part(tool_result=pb.ToolResult(call_id=call_id, parts=parts, **fields))


def media(**fields: Any) -> pb.Part:
    """A media part."""
    return pb.Part(media=pb.Media(**fields))


CONFIG = pb.GenerationConfig(
    max_output_tokens=7,
    temperature=0.7,
    top_p=0.9,
    stop_sequences=["END"],
    seed=2**62,
    presence_penalty=-0.5,
    frequency_penalty=0.5,
    candidate_count=2,
    logprobs=True,
    top_logprobs=3,
    logit_bias={42: -100, 43: 0.5},
    output_modalities=["text"],
    verbosity="low",
)


def test_every_setting_reaches_openai_under_its_own_name() -> None:
    """The whole of GenerationConfig, and nothing else."""
    body = sent(config=CONFIG, messages=[user(pb.Part(text="Hi"))], end_user_id="u", prompt_cache_key="k", stream=True)
    assert body == {
        "model": "inventio-1",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 7,
        "temperature": 0.7,
        "top_p": 0.9,
        "stop": ["END"],
        "seed": 2**62,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.5,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
        "logit_bias": {"42": -100, "43": 0.5},
        "modalities": ["text"],
        "verbosity": "low",
        "prompt_cache_key": "k",
        "safety_identifier": "u",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_what_is_absent_is_not_sent() -> None:
    """The vendor's defaults stay the vendor's."""
    assert sent(messages=[user(pb.Part(text="Hi"))]).keys() == {"model", "messages"}


def test_zero_is_sent_when_it_was_set() -> None:
    """Temperature 0 is a wish, not an absence."""
    body = sent(config=pb.GenerationConfig(temperature=0, seed=0, logprobs=False))
    assert (body["temperature"], body["seed"], body["logprobs"]) == (0, 0, False)


@pytest.mark.parametrize(
    ("host", "name", "value"),
    [
        ("compatible", "max_tokens", 7),
        ("groq", "max_completion_tokens", 7),
        ("mistral", "random_seed", 2**62),
        ("openrouter", "top_k", 5),
        ("vllm", "top_k", 5),
        ("compatible", "user", "u"),
    ],
)
def test_hosts_get_their_own_names(host: str, name: str, value: object) -> None:
    """Renames of the host's row."""
    config = pb.GenerationConfig(max_output_tokens=7, seed=2**62, top_k=5)
    assert json.loads(call(host, config=config, end_user_id="u").body)[name] == value


def test_a_setting_that_a_host_lacks_becomes_a_warning() -> None:
    """Under WARN the call goes on without it, and the warning names the field."""
    made = call(config=pb.GenerationConfig(top_k=5))
    assert "top_k" not in json.loads(made.body)
    assert [(warning.code, warning.field) for warning in made.warnings] == [("unsupported-parameter", "config.top_k")]


def test_a_setting_that_a_host_lacks_is_refused_under_reject() -> None:
    """Under REJECT the call is refused, with the field's path."""
    policy = pb.RoutingPolicy(unsupported_policy=pb.UNSUPPORTED_POLICY_REJECT)
    with pytest.raises(UnsupportedParameter) as raised:
        call(config=pb.GenerationConfig(top_k=5), routing=policy)
    assert raised.value.violations[0].field == "config.top_k"


def test_system_and_developer_messages_keep_their_place() -> None:
    """A host without the role developer gets system."""
    turns = [
        pb.Message(role=pb.ROLE_SYSTEM, parts=[pb.Part(text="S")]),
        user(pb.Part(text="U"), name="Ann"),
        pb.Message(role=pb.ROLE_DEVELOPER, parts=[pb.Part(text="D")]),
    ]
    roles = [turn["role"] for turn in messages("openai", *turns)]
    assert roles == ["system", "user", "developer"]
    assert messages("openai", *turns)[1] == {"role": "user", "content": "U", "name": "Ann"}
    assert messages("compatible", *turns)[2]["role"] == "system"


def test_media_go_out_as_the_wire_has_them() -> None:
    """Images by value and by address, audio, files by value and by id; several parts make an array."""
    turn = user(
        pb.Part(text="Look"),
        media(mime_type="image/png", data=PNG, detail="low"),
        media(kind=pb.MEDIA_KIND_IMAGE, uri="https://example.org/a.png"),
        media(mime_type="audio/mpeg", data=b"abc"),
        media(mime_type="application/pdf", data=b"%PDF", filename="a.pdf"),
        media(file=pb.FileRef(issuer="openai", id="file-1")),
    )
    assert messages("openai", turn)[0]["content"] == [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": PNG_URL, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "input_audio", "input_audio": {"data": "YWJj", "format": "mp3"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERg==", "filename": "a.pdf"}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ]


@pytest.mark.parametrize(
    ("host", "part", "expected"),
    [
        ("vllm", {"kind": pb.MEDIA_KIND_VIDEO, "uri": "https://e.org/v"}, {"video_url": {"url": "https://e.org/v"}}),
        ("vllm", {"kind": pb.MEDIA_KIND_AUDIO, "uri": "https://e.org/a"}, {"audio_url": {"url": "https://e.org/a"}}),
        ("mistral", {"kind": pb.MEDIA_KIND_DOCUMENT, "uri": "https://e.org/d"}, {"document_url": "https://e.org/d"}),
        (
            "openrouter",
            {"kind": pb.MEDIA_KIND_DOCUMENT, "uri": "https://e.org/d"},
            {"file": {"file_data": "https://e.org/d"}},
        ),
    ],
)
def test_some_hosts_take_more_media(host: str, part: Json, expected: Json) -> None:
    """Addresses of video, audio and documents."""
    (item,) = messages(host, user(media(**part)))[0]["content"]
    assert item == {"type": next(iter(expected)), **expected}


@pytest.mark.parametrize(
    "part",
    [
        media(kind=pb.MEDIA_KIND_VIDEO, uri="https://e.org/v"),
        media(kind=pb.MEDIA_KIND_AUDIO, uri="https://e.org/a"),
        media(kind=pb.MEDIA_KIND_DOCUMENT, uri="https://e.org/d"),
        media(file=pb.FileRef(issuer="anthropic", id="file-1")),
        media(kind=pb.MEDIA_KIND_IMAGE, file=pb.FileRef(issuer="openai", id="file-1")),
        pb.Part(reasoning=pb.Reasoning(text="I")),
        pb.Part(tool_call=pb.ToolCall(id="c", name="f")),
        pb.Part(),
    ],
)
def test_content_that_cannot_be_represented_is_refused_with_its_path(part: pb.Part) -> None:
    """Content is never dropped."""
    with pytest.raises(UnsupportedParameter) as raised:
        call(messages=[user(pb.Part(text="Hi"), part)])
    assert raised.value.violations[0].field.startswith("messages[0].parts[1]")
    assert raised.value.other_target


def test_tool_results_become_messages_of_their_own_before_what_the_user_says() -> None:
    """One Message with two results and a text is three messages on this wire."""
    turn = user(
        result("a", pb.Part(text="1")),
        pb.Part(text="And now?"),
        result("b", pb.Part(text="2"), pb.Part(text="3")),
    )
    assert messages("openai", turn) == [
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {
            "role": "tool",
            "tool_call_id": "b",
            "content": [{"type": "text", "text": "2"}, {"type": "text", "text": "3"}],
        },
        {"role": "user", "content": "And now?"},
    ]


def test_a_structured_result_is_sent_where_there_are_no_parts() -> None:
    """JSON text goes out byte for byte."""
    turn = pb.Message(role=pb.ROLE_TOOL, parts=[result("a", structured_json='{"b": 1,  "a": 2}')])
    assert messages("openai", turn)[0]["content"] == '{"b": 1,  "a": 2}'


def test_an_image_in_a_tool_result_needs_a_host_that_takes_it() -> None:
    """OpenAI takes text only; vLLM takes images."""
    turn = pb.Message(role=pb.ROLE_TOOL, parts=[result("a", media(mime_type="image/png", data=PNG))])
    assert messages("vllm", turn)[0]["content"] == [{"type": "image_url", "image_url": {"url": PNG_URL}}]
    with pytest.raises(UnsupportedParameter, match=r"messages\[0\]\.parts\[0\]\.tool_result\.parts\[0\]"):
        call(messages=[turn])


def test_a_failed_result_is_told_by_its_text_alone() -> None:
    """There is no field: a warning says so, and REJECT does not refuse it."""
    policy = pb.RoutingPolicy(unsupported_policy=pb.UNSUPPORTED_POLICY_REJECT)
    made = call(messages=[user(result("a", pb.Part(text="no such file"), failed=True))], routing=policy)
    assert [warning.field for warning in made.warnings] == ["messages[0].parts[0].tool_result.failed"]


def test_an_answer_goes_back_as_history() -> None:
    """Text, refusal, calls of both kinds, audio by its id, extras of the message and of the call."""
    turn = assistant(
        pb.Part(text="Let me look."),
        pb.Part(tool_call=pb.ToolCall(id="a", name="f", arguments='{"x":  1}', kind=pb.TOOL_CALL_KIND_FUNCTION)),
        pb.Part(
            tool_call=pb.ToolCall(id="b", name="g", arguments="4 + 4", kind=pb.TOOL_CALL_KIND_FREE_TEXT),
            provider_metadata={"openai": '{"extra_content": {"sig": "s"}}', "other": '{"x": 1}'},
        ),
        media(kind=pb.MEDIA_KIND_AUDIO, transcript="Hello"),
        provider_metadata={"openai": '{"prefix": true}'},
    )
    turn.parts[3].item_id = "audio_1"
    turn.parts[3].issuer = "openai"
    assert messages("openai", turn)[0] == {
        "role": "assistant",
        "content": "Let me look.",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":  1}'}},
            {
                "id": "b",
                "type": "custom",
                "custom": {"name": "g", "input": "4 + 4"},
                "extra_content": {"sig": "s"},
            },
        ],
        "audio": {"id": "audio_1"},
        "prefix": True,
    }
    assert messages("openai", assistant(pb.Part(refusal="No.")))[0] == {
        "role": "assistant",
        "content": None,
        "refusal": "No.",
    }
    assert messages("compatible", assistant(pb.Part(refusal="No.")))[0]["content"] == "No."


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("deepseek", {"reasoning_content": "Hm", "content": "Yes"}),
        ("openrouter", {"reasoning": "Hm", "content": "Yes"}),
        (
            "mistral",
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
                    {"type": "text", "text": "Yes"},
                ]
            },
        ),
    ],
)
def test_reasoning_goes_back_where_the_host_takes_it(host: str, expected: Json) -> None:
    """Under the host's own name."""
    turn = assistant(pb.Part(reasoning=pb.Reasoning(text="Hm")), pb.Part(text="Yes"))
    assert messages(host, turn)[0] == {"role": "assistant", **expected}


def test_state_of_another_issuer_is_dropped_with_a_warning_and_its_text_kept() -> None:
    """Signatures, item ids and vendor items go to their issuer only."""
    turn = assistant(
        pb.Part(text="Hi", signature=b"sig", issuer="anthropic"),
        pb.Part(text=" you", item_id="msg_1", issuer="openai-responses"),
        pb.Part(provider_item=pb.ProviderItem(type="x", json="{}"), issuer="anthropic"),
        pb.Part(reasoning=pb.Reasoning(text="Hm")),
        pb.Part(tool_call=pb.ToolCall(id="c", name="search", kind=pb.TOOL_CALL_KIND_PROVIDER_EXECUTED)),
    )
    made = call(messages=[turn])
    content = json.loads(made.body)["messages"][0]["content"]
    assert [item["text"] for item in content] == ["Hi", " you"]
    assert [(warning.code, warning.field) for warning in made.warnings] == [
        ("dropped-content", "messages[0].parts[0].signature"),
        ("dropped-content", "messages[0].parts[1].item_id"),
        ("dropped-content", "messages[0].parts[2].provider_item"),
        ("dropped-content", "messages[0].parts[3].reasoning"),
        ("dropped-content", "messages[0].parts[4].tool_call"),
    ]


def test_a_vendor_s_own_item_goes_back_verbatim() -> None:
    """Mistral's references, say."""
    item = pb.Part(provider_item=pb.ProviderItem(type="reference", json='{"type":"reference","reference_ids":[1]}'))
    item.issuer = "mistral"
    (message,) = messages("mistral", assistant(pb.Part(text="So"), item))
    assert message["content"][1] == {"type": "reference", "reference_ids": [1]}


def test_call_ids_are_made_to_fit_the_host_alike_in_call_and_result() -> None:
    """Mistral wants nine letters and digits; its own ids stay."""
    turns = [
        assistant(pb.Part(tool_call=pb.ToolCall(id="toolu_0123456789abcdefghij", name="f", arguments="{}"))),
        user(result("toolu_0123456789abcdefghij", pb.Part(text="1"))),
        assistant(pb.Part(tool_call=pb.ToolCall(id="Abc123XyZ", name="f", arguments="{}"))),
    ]
    found = messages("mistral", *turns)
    made = found[0]["tool_calls"][0]["id"]
    assert len(made) == 9
    assert made.isalnum()
    assert found[1]["tool_call_id"] == made
    assert found[2]["tool_calls"][0]["id"] == "Abc123XyZ"
    assert messages("vllm", *turns)[1]["tool_call_id"] == "toolu_0123456789abcdefghij"


SCHEMA = '{"type":"object",  "properties": {"n": {"const": 12345678901234567890123}}}'
FUNCTION = pb.Tool(function=pb.FunctionTool(name="f", description="does", parameters_schema=SCHEMA, strict=True))
CUSTOM = pb.Tool(free_text=pb.FreeTextTool(name="g", format_json='{"type":"text"}'))
HOSTED = pb.Tool(provider=pb.ProviderTool(issuer="openrouter", type="openrouter:web_search", config_json='{"a":1}'))


def test_tools_go_out_with_their_schemas_byte_for_byte() -> None:
    """Neither the spaces nor the large number of the schema change."""
    made = call(tools=[FUNCTION, CUSTOM])
    assert SCHEMA.encode() in made.body
    assert json.loads(made.body)["tools"] == [
        {
            "type": "function",
            "function": {"name": "f", "description": "does", "parameters": json.loads(SCHEMA), "strict": True},
        },
        {"type": "custom", "custom": {"name": "g", "format": {"type": "text"}}},
    ]
    assert sent("openrouter", tools=[HOSTED])["tools"] == [{"type": "openrouter:web_search", "a": 1}]


@pytest.mark.parametrize("tool", [CUSTOM, HOSTED, pb.Tool()])
def test_a_tool_that_a_host_cannot_have_is_refused(tool: pb.Tool) -> None:
    """Free-text tools at a compatible host, another vendor's hosted tools."""
    with pytest.raises(UnsupportedParameter, match=r"tools\[1\]"):
        call("compatible", tools=[FUNCTION, tool])


@pytest.mark.parametrize(
    ("host", "choice", "expected"),
    [
        ("openai", {"mode": "TOOL_CHOICE_MODE_REQUIRED"}, "required"),
        ("openai", {"mode": "TOOL_CHOICE_MODE_NONE", "allowedTools": ["f"]}, "none"),
        (
            "openai",
            {"mode": "TOOL_CHOICE_MODE_REQUIRED", "allowedTools": ["f"]},
            {"type": "function", "function": {"name": "f"}},
        ),
        (
            "openai",
            {"mode": "TOOL_CHOICE_MODE_REQUIRED", "allowedTools": ["g"]},
            {"type": "custom", "custom": {"name": "g"}},
        ),
        (
            "openai",
            {"allowedTools": ["f", "g"]},
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [
                        {"type": "function", "function": {"name": "f"}},
                        {"type": "custom", "custom": {"name": "g"}},
                    ],
                },
            },
        ),
        ("compatible", {"mode": "TOOL_CHOICE_MODE_REQUIRED", "allowedTools": ["f", "h"]}, "required"),
    ],
)
def test_tool_choice_says_what_is_allowed(host: str, choice: Json, expected: object) -> None:
    """Modes, one forced tool, a set of allowed tools."""
    other = pb.Tool(function=pb.FunctionTool(name="h"))
    tools = [FUNCTION, CUSTOM if host == "openai" else other, pb.Tool(function=pb.FunctionTool(name="i"))]
    body = sent(host, tools=tools, tool_choice=ParseDict(choice, pb.ToolChoice()))
    assert body["tool_choice"] == expected
    assert len(body["tools"]) == (3 if host == "openai" else 2), "only the allowed tools go to a host without a set"


def test_parallel_calls_can_be_forbidden() -> None:
    """False is sent, absence is not."""
    assert sent(tool_choice=pb.ToolChoice(parallel_calls=False))["parallel_tool_calls"] is False
    assert "parallel_tool_calls" not in sent(tool_choice=pb.ToolChoice())


def test_response_formats() -> None:
    """JSON, JSON by a schema, and json_object where a host has no schemas."""
    form = pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, name="n", schema=SCHEMA, strict=False)
    config = pb.GenerationConfig(response_format=form)
    made = call(config=config)
    assert SCHEMA.encode() in made.body
    assert json.loads(made.body)["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": json.loads(SCHEMA), "strict": False},
    }
    made = call("deepseek", config=config)
    assert json.loads(made.body)["response_format"] == {"type": "json_object"}
    assert [warning.field for warning in made.warnings] == ["config.response_format.schema"]


@pytest.mark.parametrize(
    ("host", "reasoning", "expected"),
    [
        ("openai", {"effort": "high"}, {"reasoning_effort": "high"}),
        ("openai", {"enabled": False}, {"reasoning_effort": "none"}),
        ("openai", {"enabled": True}, {"reasoning_effort": "medium"}),
        (
            "deepseek",
            {"enabled": True, "effort": "high"},
            {"thinking": {"type": "enabled"}, "reasoning_effort": "high"},
        ),
        ("zai", {"effort": "none"}, {"thinking": {"type": "disabled"}}),
        ("qwen", {"enabled": True, "budgetTokens": 9}, {"enable_thinking": True, "thinking_budget": 9}),
        ("vllm", {"enabled": False}, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            "openrouter",
            {"enabled": True, "effort": "low", "budgetTokens": 9, "visibility": "REASONING_VISIBILITY_NONE"},
            {"reasoning": {"enabled": True, "effort": "low", "max_tokens": 9, "exclude": True}},
        ),
        ("groq", {"visibility": "REASONING_VISIBILITY_FULL"}, {"reasoning_format": "parsed"}),
        ("groq", {"visibility": "REASONING_VISIBILITY_NONE"}, {"reasoning_format": "hidden"}),
    ],
)
def test_reasoning_is_asked_for_in_the_host_s_own_words(host: str, reasoning: Json, expected: Json) -> None:
    """Effort, switch, budget and visibility."""
    body = sent(host, reasoning=ParseDict(reasoning, pb.ReasoningConfig()))
    assert {name: value for name, value in body.items() if name not in ("model", "messages")} == expected


def test_reasoning_settings_without_a_field_are_warned_of() -> None:
    """A budget at OpenAI, an effort at Qwen."""
    reasoning = pb.ReasoningConfig(budget_tokens=9, visibility=pb.REASONING_VISIBILITY_FULL)
    fields = [warning.field for warning in call(reasoning=reasoning).warnings]
    assert fields == ["reasoning.budget_tokens", "reasoning.visibility"]
    assert [w.field for w in call("qwen", reasoning=pb.ReasoningConfig(effort="low")).warnings] == ["reasoning.effort"]


def test_cache_breakpoints_go_where_there_is_a_field() -> None:
    """OpenRouter takes Anthropic's; OpenAI caches by itself."""
    hour = pb.CacheBreakpoint(ttl=Duration(seconds=3600))
    turns = [
        user(pb.Part(text="Hi", cache_breakpoint=pb.CacheBreakpoint())),
        user(pb.Part(tool_result=pb.ToolResult(call_id="a", parts=[pb.Part(text="1")]), cache_breakpoint=hour)),
    ]
    found = messages("openrouter", *turns)
    assert found[0]["content"] == [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]
    assert found[1]["content"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    tool = pb.Tool(function=pb.FunctionTool(name="f"), cache_breakpoint=pb.CacheBreakpoint())
    assert sent("openrouter", tools=[tool])["tools"][0]["cache_control"] == {"type": "ephemeral"}
    made = call(messages=turns)
    assert json.loads(made.body)["messages"][0]["content"] == "Hi"
    assert {warning.code for warning in made.warnings} == {"unsupported-parameter"}


def test_provider_options_are_merged_last_as_a_merge_patch() -> None:
    """They change, add and remove, also inside a schema that is otherwise passed byte for byte."""
    form = pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, name="n", schema='{"a": {"b": 1}, "c": 2}')
    options = {
        "openai": '{"temperature": null, "service_tier": "flex",'
        ' "response_format": {"json_schema": {"schema": {"a": {"b": null, "d": 3}}}}}',
        "anthropic": '{"ignored": true}',
    }
    config = pb.GenerationConfig(temperature=0.5, response_format=form)
    body = sent(config=config, provider_options=options)
    assert body["service_tier"] == "flex"
    assert body["response_format"]["json_schema"] == {"name": "n", "schema": {"a": {"d": 3}, "c": 2}}
    assert body.keys().isdisjoint({"temperature", "ignored"})


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"provider_options": {"openai": "[]"}}, 'provider_options["openai"]'),
        ({"tools": [pb.Tool(function=pb.FunctionTool(name="f", parameters_schema="{"))]}, "tools[0].function"),
        ({"messages": [user(pb.Part(text="a"), provider_metadata={"openai": "1"})]}, "messages[0].provider_metadata"),
        ({"tools": [pb.Tool(free_text=pb.FreeTextTool(name="f", format_json="[" * 99999))]}, "tools[0].free_text"),
    ],
)
def test_a_json_text_that_is_none_is_refused_with_its_path(fields: Json, path: str) -> None:
    """What goes out byte for byte is checked first."""
    with pytest.raises(InvalidRequest) as raised:
        call(**fields)
    assert raised.value.violations[0].field.startswith(path)


def embed(host: str, *inputs: pb.EmbedInput, **fields: Any) -> HttpCall:
    """The call for one batch of inputs."""
    request = pb.EmbedRequest(model="m", inputs=inputs, **fields)
    return openai.encode_embed(request, request.inputs, target(host))


def test_embeddings_are_asked_for_in_base64_where_the_host_has_it() -> None:
    """Texts and token ids, dimensions and user; options last."""
    made = embed(
        "openai",
        pb.EmbedInput(text="a"),
        pb.EmbedInput(token_ids=pb.TokenIds(values=[1, 2])),
        dimensions=4,
        end_user_id="u",
        provider_options={"openai": '{"user": null, "x": 1}'},
    )
    assert made.path == "/embeddings"
    assert json.loads(made.body) == {
        "model": "inventio-1",
        "input": ["a", [1, 2]],
        "encoding_format": "base64",
        "dimensions": 4,
        "x": 1,
    }
    assert json.loads(embed("compatible", pb.EmbedInput(text="a")).body)["encoding_format"] == "float"


def test_the_task_of_embeddings_is_said_or_warned_of() -> None:
    """OpenRouter has a field, OpenAI has none."""
    made = embed("openrouter", pb.EmbedInput(text="a"), task_type="retrieval-query")
    assert json.loads(made.body)["input_type"] == "search_query"
    assert [w.field for w in embed("openai", pb.EmbedInput(text="a"), task_type="x").warnings] == ["task_type"]


def test_multimodal_embedding_inputs_are_refused() -> None:
    """This wire embeds text and tokens."""
    content = pb.EmbedContent(parts=[pb.Part(text="a")])
    with pytest.raises(UnsupportedParameter, match=r"inputs\[1\]"):
        embed("openai", pb.EmbedInput(text="a"), pb.EmbedInput(content=content))
