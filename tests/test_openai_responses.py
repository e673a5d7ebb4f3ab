"""Requests of the Responses wire: what of the contract goes where, what is lost with a warning, what is refused."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from headgate import v1 as pb
from openai import AsyncOpenAI

from headgate_server.errors import InvalidRequest, UnsupportedParameter
from headgate_server.providers import openai_responses
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.hosts import HOSTS
from tests.conftest import Serve
from tests.fold import canonical, check_invariants, fold
from tests.headgate_process import ask, user
from tests.vendor import Behaviour, Exchange, Vendor

WIRE = Path(__file__).parent / "wire" / "openai-responses"
ANSWERS = sorted(WIRE.glob("*.json"))
ENCRYPTED = "reasoning.encrypted_content"

Json = dict[str, Any]


def encoded(request: pb.GenerateRequest, host: str = "openai", model: str = "inventio-2") -> HttpCall:
    """The call for a request to a known host."""
    target = Target(provider=host, model=model, host=HOSTS[host], issuer=host)
    return openai_responses.encode(request, target, stream=False)


def body(request: pb.GenerateRequest, host: str = "openai", model: str = "inventio-2") -> Json:
    """What is sent for a request."""
    sent: Json = json.loads(encoded(request, host, model).body)
    return sent


def items(*parts: pb.Part, role: pb.Role.ValueType = pb.ROLE_ASSISTANT, host: str = "openai") -> list[Json]:
    """The input items that one message becomes."""
    request = pb.GenerateRequest(messages=[pb.Message(role=role, parts=parts)])
    sent: list[Json] = body(request, host).get("input", [])
    return sent


def lost(request: pb.GenerateRequest, host: str = "openai") -> list[str]:
    """The fields that the warnings of a request name."""
    return [warning.field for warning in encoded(request, host).warnings]


def lost_parts(*parts: pb.Part, role: pb.Role.ValueType = pb.ROLE_ASSISTANT) -> list[str]:
    """The fields that the warnings of one message name."""
    return lost(pb.GenerateRequest(messages=[pb.Message(role=role, parts=parts)]))


def test_reasoning_is_asked_for_encrypted_and_nothing_is_stored() -> None:
    """By default; a caller who wants the vendor to keep the answer says so."""
    sent = body(ask("x"))
    assert (sent["include"], sent["store"]) == ([ENCRYPTED], False)
    for options, store in (
        ({"store": True}, True),
        ({"background": True}, None),
        ({"conversation": "conv_1"}, None),
        ({"previous_response_id": "resp_1"}, False),
    ):
        sent = body(ask("x", provider_options={"openai": json.dumps(options)}))
        assert sent.get("store") is store
        assert options.items() <= sent.items()


@pytest.mark.parametrize(
    ("model", "asks"),
    [
        ("gpt-4.1-mini", False),
        ("gpt-4o", False),
        ("ft:gpt-4o-mini:acme", False),
        ("openai/gpt-4o", False),
        ("gpt-3.5-turbo", False),
        ("chatgpt-4o-latest", False),
        ("gpt-5-chat-latest", False),
        ("gpt-5", True),
        ("gpt-5.6", True),
        ("o4-mini", True),
        ("gpt-oss-120b", True),
        ("gpt-45", True),
        ("deployment-7", True),
    ],
)
def test_models_of_before_reasoning_are_not_asked_for_it(model: str, asks: bool) -> None:
    """They would refuse the whole call."""
    assert (ENCRYPTED in body(ask("x"), model=model).get("include", [])) == asks


def test_system_messages_stay_where_they_are() -> None:
    """As items, in order; a host without the role developer gets it as system."""
    roles = [pb.ROLE_SYSTEM, pb.ROLE_USER, pb.ROLE_DEVELOPER]
    request = pb.GenerateRequest(messages=[pb.Message(role=role, parts=[pb.Part(text="a")]) for role in roles])
    assert [item["role"] for item in body(request)["input"]] == ["system", "user", "developer"]
    assert [item["role"] for item in body(request, "deepseek")["input"]] == ["system", "user", "system"]


def test_every_answer_goes_back_as_it_came() -> None:
    """The items of a wire file, written again from the parts that were read from it."""
    for file in ANSWERS:
        host = file.name.partition("-")[0]
        target = Target(provider=host, model="m", host=HOSTS[host], issuer=host)
        answer = openai_responses.decode(file.read_bytes(), target)
        request = pb.GenerateRequest(messages=[answer.candidates[0].message])
        call = openai_responses.encode(request, target, stream=False)
        sent = json.loads(call.body)["input"]
        recorded = json.loads(file.read_bytes())["output"]
        assert not call.warnings
        assert [item["type"] for item in sent] == [item["type"] for item in recorded]
        for item, original in zip(sent, recorded, strict=True):
            for key in ("id", "encrypted_content", "arguments", "input", "result", "action", "phase", "depth"):
                assert item.get(key) == original.get(key)
            for piece, said in zip(item.get("content", []), original.get("content", []), strict=True):
                assert piece == ({**said, "logprobs": []} if "logprobs" in said else said)


def test_reasoning_without_ids_is_one_item_up_to_each_signature() -> None:
    """Clients that drop ids still send two items where there were two."""
    thoughts = [pb.Reasoning(text=text, kind=pb.REASONING_KIND_SUMMARY) for text in "abc"]
    parts = [pb.Part(reasoning=thought, issuer="openai") for thought in thoughts]
    parts[1].signature, parts[2].signature = b"one", b"two"
    first, second = items(*parts)
    assert ([piece["text"] for piece in first["summary"]], first["encrypted_content"]) == (["a", "b"], "one")
    assert ([piece["text"] for piece in second["summary"]], second["encrypted_content"]) == (["c"], "two")


def test_reasoning_of_another_vendor_is_dropped_and_said_so() -> None:
    """Its signature is for its issuer only; hosts of open models read its text."""
    part = pb.Part(reasoning=pb.Reasoning(text="hm"), signature=b"s", issuer="anthropic")
    assert items(part) == []
    assert lost_parts(part) == ["messages[0].parts[0].reasoning", "messages[0].parts[0].signature"]
    assert items(part, host="llamacpp") == [
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    ]


def test_a_broken_off_thought_is_never_sent_with_its_signature() -> None:
    """The vendor would refuse it."""
    part = pb.Part(reasoning=pb.Reasoning(text="hm"), signature=b"s", issuer="openai", item_id="rs_1", incomplete=True)
    assert items(part, pb.Part(text="Hi")) == [{"type": "message", "role": "assistant", "content": "Hi"}]
    assert "messages[0].parts[0].signature" in lost_parts(part)


def test_item_ids_of_another_vendor_do_not_go_out() -> None:
    """The text and the call do."""
    text = pb.Part(text="Hi", item_id="msg_1", issuer="azure")
    call = pb.Part(tool_call=pb.ToolCall(id="call_1", name="f", arguments="{}"), item_id="fc_1", issuer="azure")
    assert items(text, call) == [
        {"type": "message", "role": "assistant", "content": "Hi"},
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
    ]
    assert lost_parts(text, call) == ["messages[0].parts[0].item_id", "messages[0].parts[1].item_id"]


def test_a_vendor_item_goes_out_byte_for_byte_and_only_to_its_issuer() -> None:
    """Key order, spacing and large numbers as they came."""
    verbatim = '{"type": "compaction",  "n": 12345678901234567890, "id":"c"}'
    part = pb.Part(provider_item=pb.ProviderItem(type="compaction", json=verbatim), issuer="openai")
    request = pb.GenerateRequest(messages=[pb.Message(role=pb.ROLE_ASSISTANT, parts=[part])])
    assert verbatim.encode() in encoded(request).body
    part.issuer = "xai"
    assert lost_parts(part) == ["messages[0].parts[0].provider_item"]


def test_results_of_free_text_calls_are_custom_outputs() -> None:
    """The call in the history says which it was."""
    call = pb.ToolCall(id="c1", name="shell", arguments="ls", kind=pb.TOOL_CALL_KIND_FREE_TEXT)
    results = [pb.Part(tool_result=pb.ToolResult(call_id=name, parts=[pb.Part(text="ok")])) for name in ("c1", "c2")]
    request = pb.GenerateRequest(
        messages=[
            pb.Message(role=pb.ROLE_ASSISTANT, parts=[pb.Part(tool_call=call)]),
            pb.Message(role=pb.ROLE_TOOL, parts=results),
        ]
    )
    assert body(request)["input"] == [
        {"type": "custom_tool_call", "call_id": "c1", "name": "shell", "input": "ls"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"},
        {"type": "function_call_output", "call_id": "c2", "output": "ok"},
    ]


def test_results_hold_text_and_media_or_structure() -> None:
    """And between them, in a user message, what the user says."""
    image = pb.Part(media=pb.Media(mime_type="image/png", data=b"\x89PNG"))
    first = pb.Part(tool_result=pb.ToolResult(call_id="c1", parts=[pb.Part(text="see"), image]))
    second = pb.Part(tool_result=pb.ToolResult(call_id="c2", structured_json='{"n": 1}'))
    seen, structured, said = items(first, second, pb.Part(text="so?"), role=pb.ROLE_USER)
    assert [piece["type"] for piece in seen["output"]] == ["input_text", "input_image"]
    assert structured["output"] == '{"n": 1}'
    assert said == {"role": "user", "content": "so?"}


def test_media_have_the_vendor_s_own_forms() -> None:
    """By value, by address, by id of a stored file."""
    data = b64encode(b"x").decode()
    forms: list[tuple[Json, Json]] = [
        (
            {"mime_type": "image/png", "data": b"x", "detail": "low"},
            {"type": "input_image", "image_url": f"data:image/png;base64,{data}", "detail": "low"},
        ),
        (
            {"kind": pb.MEDIA_KIND_IMAGE, "file": pb.FileRef(issuer="openai", id="file-1")},
            {"type": "input_image", "file_id": "file-1", "detail": "auto"},
        ),
        (
            {"mime_type": "application/pdf", "data": b"x", "filename": "a.pdf"},
            {"type": "input_file", "file_data": f"data:application/pdf;base64,{data}", "filename": "a.pdf"},
        ),
        (
            {"kind": pb.MEDIA_KIND_DOCUMENT, "uri": "https://x.example/a.pdf"},
            {"type": "input_file", "file_url": "https://x.example/a.pdf"},
        ),
        (
            {"mime_type": "audio/mpeg", "data": b"x"},
            {"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}},
        ),
    ]
    for fields, expected in forms:
        (item,) = items(pb.Part(media=pb.Media(**fields)), role=pb.ROLE_USER)
        assert item["content"] == [expected]


@pytest.mark.parametrize(
    "part",
    [
        pb.Part(media=pb.Media(mime_type="video/mp4", data=b"x")),
        pb.Part(media=pb.Media(mime_type="image/png", file=pb.FileRef(issuer="gemini", id="f"))),
        pb.Part(tool_call=pb.ToolCall(id="c", name="f")),
    ],
    ids=["video", "another vendor's file", "a call of the user's"],
)
def test_content_that_has_no_place_is_refused(part: pb.Part) -> None:
    """Content is never dropped silently."""
    with pytest.raises(UnsupportedParameter):
        items(part, role=pb.ROLE_USER)


def test_tools_are_flat_and_their_schemas_byte_for_byte() -> None:
    """Functions, free text with a grammar, hosted tools."""
    schema = '{"type":"object",  "properties":{"b":{},"a":{}}}'
    request = ask(
        "x",
        tools=[
            pb.Tool(function=pb.FunctionTool(name="f", description="d", parameters_schema=schema, strict=False)),
            pb.Tool(free_text=pb.FreeTextTool(name="g", format_json='{"type": "grammar", "syntax": "lark"}')),
            pb.Tool(provider=pb.ProviderTool(issuer="openai", type="mcp", config_json='{"server_label": "s"}')),
        ],
    )
    assert schema.encode() in encoded(request).body
    function, custom, hosted = body(request)["tools"]
    assert (function["type"], function["name"], function["strict"]) == ("function", "f", False)
    assert custom == {"type": "custom", "name": "g", "format": {"type": "grammar", "syntax": "lark"}}
    assert hosted == {"type": "mcp", "server_label": "s"}


@pytest.mark.parametrize(
    ("mode", "names", "expected"),
    [
        (pb.TOOL_CHOICE_MODE_REQUIRED, [], "required"),
        (pb.TOOL_CHOICE_MODE_NONE, ["f"], "none"),
        (pb.TOOL_CHOICE_MODE_REQUIRED, ["f"], {"type": "function", "name": "f"}),
        (pb.TOOL_CHOICE_MODE_REQUIRED, ["g"], {"type": "custom", "name": "g"}),
        (pb.TOOL_CHOICE_MODE_REQUIRED, ["mcp"], {"type": "mcp", "server_label": "s"}),
        (
            pb.TOOL_CHOICE_MODE_UNSPECIFIED,
            ["f", "g"],
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "g"}],
            },
        ),
    ],
)
def test_tool_choice_names_tools_by_their_kind(mode: Any, names: list[str], expected: Any) -> None:
    """One name that is required forces that tool; several are the allowed ones."""
    request = ask(
        "x",
        tools=[
            pb.Tool(function=pb.FunctionTool(name="f")),
            pb.Tool(free_text=pb.FreeTextTool(name="g")),
            pb.Tool(provider=pb.ProviderTool(issuer="openai", type="mcp", config_json='{"server_label": "s"}')),
        ],
        tool_choice=pb.ToolChoice(mode=mode, allowed_tools=names, parallel_calls=False),
    )
    sent = body(request)
    assert (sent["tool_choice"], sent["parallel_tool_calls"]) == (expected, False)


def test_a_host_that_cannot_be_told_which_tools_are_allowed_gets_only_those() -> None:
    """So that no other is called."""
    tools = [pb.Tool(function=pb.FunctionTool(name=name)) for name in "abc"]
    request = ask("x", tools=tools, tool_choice=pb.ToolChoice(allowed_tools=["a", "c"]))
    sent = body(request, "xai")
    assert ([tool["name"] for tool in sent["tools"]], sent["tool_choice"]) == (["a", "c"], "auto")


def test_formats_verbosity_reasoning_and_log_probabilities() -> None:
    """Under the names of this wire."""
    form = pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, name="n", schema="{}", strict=True)
    config = pb.GenerationConfig(response_format=form, verbosity="low", logprobs=True, top_logprobs=2)
    reasoning = pb.ReasoningConfig(effort="high", visibility=pb.REASONING_VISIBILITY_FULL)
    sent = body(ask("x", config=config, reasoning=reasoning))
    json_schema = {"type": "json_schema", "name": "n", "schema": {}, "strict": True}
    assert sent["text"] == {"format": json_schema, "verbosity": "low"}
    assert sent["reasoning"] == {"effort": "high", "summary": "detailed"}
    assert sent["include"] == [ENCRYPTED, "message.output_text.logprobs"]
    assert sent["top_logprobs"] == 2
    assert body(ask("x", reasoning=pb.ReasoningConfig(enabled=False)))["reasoning"] == {"effort": "none"}


def test_settings_that_the_vendor_does_not_have_are_told() -> None:
    """As warnings, or as a refusal; llama.cpp has most of them."""
    config = pb.GenerationConfig(top_k=1, seed=2, stop_sequences=["x"], presence_penalty=0.5, candidate_count=2)
    request = ask("x", config=config, reasoning=pb.ReasoningConfig(budget_tokens=5))
    assert lost(request) == [
        "reasoning.budget_tokens",
        "config.top_k",
        "config.stop_sequences",
        "config.seed",
        "config.presence_penalty",
        "config.candidate_count",
    ]
    assert lost(request, "llamacpp") == ["reasoning.budget_tokens", "config.candidate_count"]
    assert body(request, "llamacpp")["stop"] == ["x"]
    request.routing.unsupported_policy = pb.UNSUPPORTED_POLICY_REJECT
    with pytest.raises(UnsupportedParameter):
        encoded(request)


def test_one_candidate_of_text_is_no_loss() -> None:
    """It is what this wire gives."""
    assert lost(ask("x", config=pb.GenerationConfig(candidate_count=1, output_modalities=["text"]))) == []


def test_a_cache_breakpoint_marks_what_is_said_to_the_model() -> None:
    """Where the host knows it."""
    request = ask("x")
    request.messages[0].parts[0].cache_breakpoint.SetInParent()
    assert body(request)["input"][0]["content"][0]["prompt_cache_breakpoint"] == {"mode": "explicit"}
    assert lost(request, "xai") == ["messages[0].parts[0].cache_breakpoint"]


def test_long_call_ids_of_other_vendors_are_shortened_alike() -> None:
    """The call and its result still name each other."""
    call = pb.Part(tool_call=pb.ToolCall(id="c" * 80, name="f", arguments="{}"))
    result = pb.Part(tool_result=pb.ToolResult(call_id="c" * 80, parts=[pb.Part(text="ok")]))
    request = pb.GenerateRequest(
        messages=[
            pb.Message(role=pb.ROLE_ASSISTANT, parts=[call]),
            pb.Message(role=pb.ROLE_TOOL, parts=[result]),
        ]
    )
    first, second = body(request)["input"]
    assert first["call_id"] == second["call_id"]
    assert len(first["call_id"]) <= 64


def test_extras_of_the_vendor_reach_their_objects() -> None:
    """Of a message its phase, of a tool whether its loading is deferred; those of other vendors stay out."""
    request = ask("x", tools=[pb.Tool(function=pb.FunctionTool(name="f"))])
    request.tools[0].provider_metadata.update({"openai": '{"defer_loading": true}', "xai": '{"x": 1}'})
    message = request.messages.add(role=pb.ROLE_ASSISTANT, parts=[pb.Part(text="Hi")])
    message.provider_metadata["openai"] = '{"phase": "commentary"}'
    sent = body(request)
    assert sent["tools"][0].keys() == {"type", "name", "parameters", "defer_loading"}
    assert sent["input"][1]["phase"] == "commentary"


def test_json_of_the_caller_that_is_none_is_refused() -> None:
    """With the path of the field."""
    with pytest.raises(InvalidRequest) as refused:
        encoded(ask("x", provider_options={"openai": "["}))
    assert refused.value.violations[0].field == 'provider_options["openai"]'


def replaying(file: Path) -> Behaviour:
    """A vendor that answers what a wire file has, plain or streamed as asked."""
    plain, streamed = file.read_bytes(), file.with_suffix(".sse").read_bytes()

    async def replays(exchange: Exchange) -> None:
        if exchange.json.get("stream"):
            await exchange.begin()
            await exchange.chunk(streamed)
            await exchange.end()
        else:
            await exchange.answer(200, plain)

    return replays


@pytest.mark.parametrize("file", ANSWERS, ids=lambda file: file.stem)
async def test_plain_and_streamed_answers_agree_with_the_vendor_s_own_package(serve: Serve, file: Path) -> None:
    """Headgate and the official client read the same text, calls and usage from one vendor."""
    async with Vendor(replaying(file)) as vendor:
        provider = {"host": "openai", "adapter": "openai-responses", "base_url": vendor.base_url, "api_key": "key"}
        async with serve(providers={"openai": provider}) as headgate:
            answer = await headgate.stub.Generate(ask("openai/gpt-5"))
            events = [event async for event in headgate.stub.StreamGenerate(ask("openai/gpt-5"))]
        async with AsyncOpenAI(base_url=vendor.base_url, api_key="key", max_retries=0) as client:
            official = await client.responses.create(model="gpt-5", input="Hi")
    assert [exchange.path for exchange in vendor.exchanges] == ["/v1/responses"] * 3
    assert vendor.exchanges[0].headers["authorization"] == "Bearer key"
    check_invariants(events)
    assert canonical(fold(events)).candidates == canonical(answer).candidates
    parts = answer.candidates[0].message.parts
    assert official.output_text == "".join(part.text for part in parts)
    calls = [item for item in official.output if item.type in ("function_call", "custom_tool_call")]
    assert [call.name for call in calls] == [part.tool_call.name for part in parts if part.HasField("tool_call")]
    assert official.usage is not None
    assert official.usage.total_tokens == answer.usage.total_tokens


async def test_the_same_host_serves_both_wires(serve: Serve) -> None:
    """A provider's adapter chooses the wire; who issued opaque state remains the host."""

    async with Vendor(replaying(WIRE / "openai-reasoning-and-calls.json")) as vendor:
        provider = {"host": "xai", "adapter": "openai-responses", "base_url": vendor.base_url, "api_key": "key"}
        async with serve(providers={"grok": provider}) as headgate:
            answer = await headgate.stub.Generate(pb.GenerateRequest(model="grok/grok-4", messages=[user("Hi")]))
    assert {part.issuer for part in answer.candidates[0].message.parts} == {"xai"}
