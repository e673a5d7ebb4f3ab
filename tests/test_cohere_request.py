"""Requests as Cohere wants them: what is sent, what is warned of, what is refused."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from cohere import ClientV2
from headgate import v1 as pb

from headgate_server.errors import InvalidRequest, ProviderProtocolError, UnsupportedParameter
from headgate_server.providers import cohere
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.hosts import HOSTS
from tests.conftest import Serve
from tests.vendor import Exchange, Vendor

Json = dict[str, Any]

WIRE = Path(__file__).parent / "wire" / "cohere"
TARGET = Target(provider="cohere", model="command-inventio", host=HOSTS["cohere"], issuer="cohere")
SPOKEN = pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Hi")])
WEATHER = pb.FunctionTool(name="weather", description="Looks out", parameters_schema='{"type":"object", "b":1, "a":2}')
NOW = pb.FunctionTool(name="now")
REJECT = pb.RoutingPolicy(unsupported_policy=pb.UNSUPPORTED_POLICY_REJECT)


def call(*, stream: bool = False, **fields: Any) -> HttpCall:
    """The call for a request with these fields."""
    return cohere.encode(pb.GenerateRequest(model="m", **{"messages": [SPOKEN], **fields}), TARGET, stream=stream)


def sent(**fields: Any) -> Json:
    """The body for a request with these fields, of which nothing is lost."""
    made = call(**fields)
    assert not made.warnings
    body: Json = json.loads(made.body)
    return body


def warned(**fields: Any) -> tuple[Json, list[str]]:
    """The body for a request with these fields, and the fields warned of."""
    made = call(**fields)
    return json.loads(made.body), [warning.field for warning in made.warnings]


def turn(role: pb.Role.ValueType, *parts: pb.Part) -> pb.Message:
    return pb.Message(role=role, parts=parts)


def user(*parts: pb.Part) -> pb.Message:
    return turn(pb.ROLE_USER, *parts)


def assistant(*parts: pb.Part) -> pb.Message:
    return turn(pb.ROLE_ASSISTANT, *parts)


def document(text: str, mime_type: str = "text/plain", **fields: Any) -> pb.Part:
    """A document to cite from."""
    fields = {"citations_enabled": True, **fields}
    return pb.Part(media=pb.Media(kind=pb.MEDIA_KIND_DOCUMENT, mime_type=mime_type, data=text.encode(), **fields))


def test_a_plain_request_is_as_small_as_the_api_page_s() -> None:
    """Nothing that was not asked for is sent; the key is a bearer token, and a server without one gets none."""
    plain = {"model": "command-inventio", "messages": [{"role": "user", "content": "Hi"}], "stream": False}
    assert sent() == plain
    assert sent(stream=True) == {**plain, "stream": True}
    assert call().path == "/chat"
    assert cohere.headers("secret") == {"authorization": "Bearer secret"}
    assert cohere.headers(None) == {}


def test_sampling_and_limits_have_cohere_s_names() -> None:
    """Each of them, zero included."""
    config = pb.GenerationConfig(
        max_output_tokens=7,
        temperature=0,
        top_p=0.7,
        top_k=0,
        seed=-4,
        stop_sequences=["END"],
        frequency_penalty=0.25,
        presence_penalty=0,
        logprobs=True,
    )
    assert (
        sent(config=config).items()
        >= {
            "max_tokens": 7,
            "temperature": 0,
            "p": 0.7,
            "k": 0,
            "seed": -4,
            "frequency_penalty": 0.25,
            "presence_penalty": 0,
            "logprobs": True,
        }.items()
    )
    assert sent(config=config)["stop_sequences"] == ["END"]


def test_all_of_the_probability_mass_is_a_little_less_here() -> None:
    """Cohere's range ends at 0.99, and 1 is what others call everything."""
    body, fields = warned(config=pb.GenerationConfig(top_p=1))
    assert (body["p"], fields) == (0.99, ["config.top_p"])


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"config": pb.GenerationConfig(candidate_count=2)}, "config.candidate_count"),
        ({"config": pb.GenerationConfig(top_logprobs=2)}, "config.top_logprobs"),
        ({"config": pb.GenerationConfig(logit_bias={1: 2.0})}, "config.logit_bias"),
        ({"config": pb.GenerationConfig(output_modalities=["audio"])}, "config.output_modalities"),
        ({"config": pb.GenerationConfig(verbosity="low")}, "config.verbosity"),
        ({"end_user_id": "u"}, "end_user_id"),
        ({"prompt_cache_key": "k"}, "prompt_cache_key"),
        ({"reasoning": pb.ReasoningConfig(visibility=pb.REASONING_VISIBILITY_NONE)}, "reasoning.visibility"),
        ({"tool_choice": pb.ToolChoice(parallel_calls=False)}, "tool_choice.parallel_calls"),
        ({"messages": [pb.Message(role=pb.ROLE_USER, name="Ada", parts=SPOKEN.parts)]}, "messages[0].name"),
        (
            {"messages": [user(pb.Part(text="Hi", cache_breakpoint=pb.CacheBreakpoint()))]},
            "messages[0].parts[0].cache_breakpoint",
        ),
        (
            {"tools": [pb.Tool(function=NOW, cache_breakpoint=pb.CacheBreakpoint())]},
            "tools[0].cache_breakpoint",
        ),
    ],
)
def test_a_setting_without_a_place_is_warned_of_or_refused(fields: Json, path: str) -> None:
    """By the caller's policy; the field is named."""
    assert warned(**fields)[1] == [path]
    with pytest.raises(UnsupportedParameter) as raised:
        call(routing=REJECT, **fields)
    assert raised.value.violations[0].field == path


def test_what_happens_anyway_is_no_loss() -> None:
    """One candidate, text alone, parallel calls, thinking in full."""
    assert (
        sent(
            config=pb.GenerationConfig(candidate_count=1, output_modalities=["text"]),
            tool_choice=pb.ToolChoice(parallel_calls=True, mode=pb.TOOL_CHOICE_MODE_AUTO),
            reasoning=pb.ReasoningConfig(visibility=pb.REASONING_VISIBILITY_FULL),
        )
        == sent()
    )


@pytest.mark.parametrize(
    ("reasoning", "written", "lost"),
    [
        (pb.ReasoningConfig(), None, []),
        (pb.ReasoningConfig(enabled=True), {"type": "enabled"}, []),
        (pb.ReasoningConfig(enabled=False), {"type": "disabled"}, []),
        (pb.ReasoningConfig(effort="none"), {"type": "disabled"}, []),
        (pb.ReasoningConfig(budget_tokens=0), {"type": "disabled"}, []),
        (pb.ReasoningConfig(budget_tokens=-1), {"type": "enabled"}, []),
        (pb.ReasoningConfig(budget_tokens=50), {"type": "enabled", "token_budget": 50}, []),
        (pb.ReasoningConfig(effort="high"), {"type": "enabled"}, ["reasoning.effort"]),
    ],
)
def test_thinking_is_a_switch_and_a_budget(
    reasoning: pb.ReasoningConfig, written: Json | None, lost: list[str]
) -> None:
    """How hard cannot be said."""
    body, fields = warned(reasoning=reasoning)
    assert (body.get("thinking"), fields) == (written, lost)


def test_a_schema_goes_out_byte_for_byte() -> None:
    """That of the answer and those of tools; a function without one takes nothing."""
    schema = '{"type":  "object", "n": 12345678901234567890123}'
    form = pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, name="n", schema=schema, strict=True)
    tools = [pb.Tool(function=WEATHER), pb.Tool(function=NOW, provider_metadata={"cohere": '{"x":1}', "other": "{}"})]
    made = call(config=pb.GenerationConfig(response_format=form), tools=tools)
    assert not made.warnings
    assert f'"json_schema":{schema}'.encode() in made.body
    assert WEATHER.parameters_schema.encode() in made.body
    assert json.loads(made.body)["tools"][1] == {
        "type": "function",
        "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
        "x": 1,
    }


@pytest.mark.parametrize(
    ("form", "written", "lost"),
    [
        (pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_TEXT), {"type": "text"}, []),
        (pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON), {"type": "json_object"}, []),
        (
            pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, schema="{}", strict=False, description="d"),
            {"type": "json_object", "json_schema": {}},
            ["config.response_format.description", "config.response_format.strict"],
        ),
    ],
)
def test_forms_of_the_answer(form: pb.ResponseFormat, written: Json, lost: list[str]) -> None:
    """A schema is always enforced, and described only within."""
    body, fields = warned(config=pb.GenerationConfig(response_format=form))
    assert (body["response_format"], fields) == (written, lost)


def test_tool_choice_and_allowed_tools() -> None:
    """Two words and the default; which tools are allowed is said by sending only those."""
    tools = [pb.Tool(function=WEATHER), pb.Tool(function=NOW)]

    def chosen(mode: pb.ToolChoiceMode.ValueType, *allowed: str) -> tuple[str | None, list[str]]:
        body = sent(tools=tools, tool_choice=pb.ToolChoice(mode=mode, allowed_tools=allowed))
        return body.get("tool_choice"), [tool["function"]["name"] for tool in body["tools"]]

    assert chosen(pb.TOOL_CHOICE_MODE_AUTO) == (None, ["weather", "now"])
    assert chosen(pb.TOOL_CHOICE_MODE_REQUIRED) == ("REQUIRED", ["weather", "now"])
    assert chosen(pb.TOOL_CHOICE_MODE_REQUIRED, "now") == ("REQUIRED", ["now"])
    assert chosen(pb.TOOL_CHOICE_MODE_NONE, "now") == ("NONE", ["weather", "now"])


def test_strict_is_one_switch_for_all_tools() -> None:
    """It is thrown when any tool asks; the others are told."""
    strict = pb.Tool(function=pb.FunctionTool(name="a", strict=True))
    lax = pb.Tool(function=pb.FunctionTool(name="b", strict=False))
    assert sent(tools=[strict])["strict_tools"] is True
    assert "strict_tools" not in sent(tools=[lax])
    body, fields = warned(tools=[strict, lax])
    assert (body["strict_tools"], fields) == (True, ["tools[1].function.strict"])


@pytest.mark.parametrize(
    ("tool", "path"),
    [
        (pb.Tool(free_text=pb.FreeTextTool(name="t")), "tools[0].free_text"),
        (pb.Tool(provider=pb.ProviderTool(issuer="cohere", type="web")), "tools[0].provider"),
        (pb.Tool(), "tools[0]"),
    ],
)
def test_tools_of_other_kinds_are_refused(tool: pb.Tool, path: str) -> None:
    """Functions are all there is."""
    with pytest.raises(UnsupportedParameter) as raised:
        call(tools=[tool])
    assert raised.value.violations[0].field == path


def test_instructions_keep_their_place() -> None:
    """A developer speaks as system."""
    roles = (pb.ROLE_SYSTEM, pb.ROLE_USER, pb.ROLE_DEVELOPER, pb.ROLE_ASSISTANT)
    messages = sent(messages=[turn(role, pb.Part(text="x")) for role in roles])["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "system", "assistant"]


def test_images_go_by_address_or_data() -> None:
    """With the resolution that was asked for, and the vendor's own extras."""
    given = pb.Media(kind=pb.MEDIA_KIND_IMAGE, mime_type="image/png", data=b"png")
    linked = pb.Media(mime_type="image/png", uri="https://example.org/a.png", detail="low")
    linked.provider_json = '{"image_url":{"x":1}}'
    (message,) = sent(messages=[user(pb.Part(text="Look"), pb.Part(media=given), pb.Part(media=linked))])["messages"]
    assert message["content"] == [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(b'png').decode()}"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low", "x": 1}},
    ]


@pytest.mark.parametrize(
    "part",
    [
        pb.Part(media=pb.Media(mime_type="audio/wav", data=b"a")),
        pb.Part(media=pb.Media(data=b"a")),
        pb.Part(media=pb.Media(mime_type="image/png", file=pb.FileRef(issuer="cohere", id="f"))),
        pb.Part(media=pb.Media(mime_type="application/pdf", data=b"%PDF")),
        pb.Part(media=pb.Media(mime_type="text/plain", data=b"\xff")),
        pb.Part(media=pb.Media(mime_type="text/plain", uri="https://example.org/a.txt")),
        pb.Part(reasoning=pb.Reasoning(text="t")),
        pb.Part(tool_call=pb.ToolCall(id="c", name="f")),
        pb.Part(),
    ],
)
def test_content_without_a_place_in_a_user_turn_is_refused(part: pb.Part) -> None:
    """The path names the part."""
    with pytest.raises(UnsupportedParameter) as raised:
        call(messages=[user(part)])
    assert raised.value.violations[0].field.startswith("messages[0].parts[0]")


def test_documents_stand_beside_the_messages() -> None:
    """Text under its title, any JSON object as it is; a turn that held nothing else is gone."""
    raw = '{"text": "Fog",  "n": 1.0}'
    parts = [
        document("High water", title="Tides", context="A harbour", provider_json='{"id":"almanac"}'),
        document(raw, "application/json"),
        document('{"text": "Sun"}', "application/json", filename="sun.json"),
    ]
    made = call(messages=[user(*parts), SPOKEN])
    assert not made.warnings
    assert raw.encode() in made.body
    body = json.loads(made.body)
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    assert body["documents"] == [
        {"data": {"title": "Tides", "context": "A harbour", "text": "High water"}, "id": "almanac"},
        {"data": {"text": "Fog", "n": 1.0}},
        {"data": {"title": "sun.json", "text": "Sun"}},
    ]
    assert "citation_options" not in body


def test_documents_that_may_not_be_cited_turn_citations_off() -> None:
    """Unless another one may be: then it is told that all can be."""
    silent = document("a", citations_enabled=False)
    assert sent(messages=[user(silent, pb.Part(text="Hi"))])["citation_options"] == {"mode": "OFF"}
    body, fields = warned(messages=[user(document("b"), silent)])
    assert "citation_options" not in body
    assert fields == ["messages[0].parts[1].media.citations_enabled"]


def test_a_json_document_must_be_an_object() -> None:
    """As the vendor wants it."""
    with pytest.raises(InvalidRequest) as raised:
        call(messages=[user(document("[1]", "application/json"))])
    assert raised.value.violations[0].field == "messages[0].parts[0].media.data"


def test_results_are_messages_of_their_own() -> None:
    """Wherever they stood; structure as a document to cite, text as text, and what else was said comes after."""
    structured = pb.ToolResult(call_id="a", structured_json='{"t": 1.0}', parts=[pb.Part(text="one")])
    mixed = pb.ToolResult(call_id="b", parts=[pb.Part(text="two"), document("three", title="T")])
    listed = pb.ToolResult(call_id="c", structured_json="[3]")
    parts = [pb.Part(text="So?"), *(pb.Part(tool_result=result) for result in (structured, mixed, listed))]
    assert sent(messages=[user(*parts)])["messages"] == [
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "document", "document": {"data": {"t": 1.0}}}]},
        {
            "role": "tool",
            "tool_call_id": "b",
            "content": [
                {"type": "text", "text": "two"},
                {"type": "document", "document": {"data": {"title": "T", "text": "three"}}},
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "[3]"},
        {"role": "user", "content": "So?"},
    ]


def test_results_lose_that_they_failed_and_cannot_hold_images() -> None:
    """The first is told, the second refused."""
    failed = pb.Part(tool_result=pb.ToolResult(call_id="a", failed=True, parts=[pb.Part(text="no")]))
    assert warned(messages=[turn(pb.ROLE_TOOL, failed)])[1] == ["messages[0].parts[0].tool_result.failed"]
    image = pb.Part(media=pb.Media(mime_type="image/png", data=b"png"))
    with pytest.raises(UnsupportedParameter) as raised:
        call(messages=[turn(pb.ROLE_TOOL, pb.Part(tool_result=pb.ToolResult(call_id="a", parts=[image])))])
    assert raised.value.violations[0].field == "messages[0].parts[0].tool_result.parts[0]"


@pytest.mark.parametrize("name", ["plan-and-calls", "thinking-and-citations"])
def test_an_answer_goes_back_as_it_came(name: str) -> None:
    """Thinking, plan, calls and citations of our own reading make the vendor's message again."""
    body = (WIRE / name).with_suffix(".json").read_bytes()
    ours = cohere.decode(body, TARGET).candidates[0].message
    (message,) = sent(messages=[ours])["messages"]
    theirs = json.loads(body)["message"]
    returned, given = (sorted(found.pop("citations"), key=lambda one: one["start"]) for found in (message, theirs))
    assert returned == given
    if isinstance(message.get("content"), str):
        message["content"] = [{"type": "text", "text": message["content"]}]
    assert message == theirs


def test_history_of_another_vendor_keeps_what_can_be_read() -> None:
    """Thinking goes as Cohere's own; signatures, ids, sources and vendor items are left out, and told."""
    parts = [
        pb.Part(reasoning=pb.Reasoning(text="Hm"), signature=b"s", issuer="anthropic", item_id="i"),
        pb.Part(reasoning=pb.Reasoning(kind=pb.REASONING_KIND_OPAQUE), signature=b"s", issuer="anthropic"),
        pb.Part(text="Ho", citations=[pb.Citation(cited_text="x", provider_json="{}")], issuer="anthropic"),
        pb.Part(refusal="No"),
        pb.Part(provider_item=pb.ProviderItem(type="x", json="{}"), issuer="openai"),
        pb.Part(media=pb.Media(mime_type="audio/wav", data=b"a", transcript="spoken")),
        pb.Part(tool_call=pb.ToolCall(id="w", kind=pb.TOOL_CALL_KIND_PROVIDER_EXECUTED)),
    ]
    body, fields = warned(messages=[assistant(*parts)], routing=REJECT)
    assert body["messages"] == [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm"},
                {"type": "text", "text": "Ho"},
                {"type": "text", "text": "No"},
                {"type": "text", "text": "spoken"},
            ],
        }
    ]
    assert set(fields) == {
        "messages[0].parts[0].signature",
        "messages[0].parts[0].item_id",
        "messages[0].parts[1].signature",
        "messages[0].parts[1].reasoning",
        "messages[0].parts[2].citations",
        "messages[0].parts[4].provider_item",
        "messages[0].parts[5].media",
        "messages[0].parts[6].tool_call",
    }


def test_unknown_content_goes_back_to_its_issuer() -> None:
    """The vendor's own block, verbatim."""
    ours = cohere.decode((WIRE / "newer-than-we-are.json").read_bytes(), TARGET).candidates[0].message
    (message,) = sent(messages=[ours])["messages"]
    assert message["content"] == [
        {"type": "chart", "chart": "line", "points": [1, 2]},
        {"type": "text", "text": "Done", "tone": "dry"},
    ]


def test_calls_without_a_place_are_refused() -> None:
    """Free text is no JSON."""
    free = pb.ToolCall(id="c", name="f", kind=pb.TOOL_CALL_KIND_FREE_TEXT)
    with pytest.raises(UnsupportedParameter):
        call(messages=[assistant(pb.Part(tool_call=free))])


def test_extras_and_options_are_merged_last() -> None:
    """Those of this issuer, into the message and into the body; null takes a member away."""
    message = pb.Message(role=pb.ROLE_USER, parts=SPOKEN.parts, provider_metadata={"cohere": '{"x":1}'})
    options = {"cohere": '{"safety_mode":"STRICT","temperature":null,"priority":3}', "openai": '{"user":"u"}'}
    body = sent(messages=[message], config=pb.GenerationConfig(temperature=1), provider_options=options)
    assert body == {
        "model": "command-inventio",
        "messages": [{"role": "user", "content": "Hi", "x": 1}],
        "safety_mode": "STRICT",
        "priority": 3,
        "stream": False,
    }


def embed_call(*inputs: pb.EmbedInput, **fields: Any) -> HttpCall:
    """The call for embeddings of these inputs."""
    request = pb.EmbedRequest(model="m", inputs=inputs, **fields)
    return cohere.encode_embed(request, request.inputs, TARGET)


def test_embeddings_of_texts_are_asked_for_by_task() -> None:
    """With the dimensions wanted; what Cohere alone knows comes by options."""
    options = {"cohere": '{"truncate":"END"}'}
    made = embed_call(pb.EmbedInput(text="a"), task_type="retrieval-query", dimensions=256, provider_options=options)
    assert (made.path, list(made.warnings)) == ("/embed", [])
    assert json.loads(made.body) == {
        "model": "command-inventio",
        "texts": ["a"],
        "input_type": "search_query",
        "embedding_types": ["float"],
        "output_dimension": 256,
        "truncate": "END",
    }


@pytest.mark.parametrize(
    ("task", "input_type", "code"),
    [
        ("retrieval-document", "search_document", None),
        ("classification", "classification", None),
        ("clustering", "clustering", None),
        ("image", "image", None),
        ("", "search_document", "default-applied"),
        ("similarity", "clustering", "unsupported-parameter"),
    ],
)
def test_every_embedding_has_a_task(task: str, input_type: str, code: str | None) -> None:
    """The vendor demands one: what was chosen for the caller is told."""
    made = embed_call(pb.EmbedInput(text="a"), task_type=task)
    assert json.loads(made.body)["input_type"] == input_type
    assert [warning.code for warning in made.warnings] == ([code] if code else [])


def test_images_and_text_are_embedded_together() -> None:
    """As soon as one input is more than text, each is a list of its content."""
    image = pb.Part(media=pb.Media(mime_type="image/png", data=b"png"))
    made = embed_call(
        pb.EmbedInput(text="a"),
        pb.EmbedInput(content=pb.EmbedContent(parts=[pb.Part(text="b"), image])),
        task_type="clustering",
    )
    body = json.loads(made.body)
    assert "texts" not in body
    assert body["inputs"] == [
        {"content": [{"type": "text", "text": "a"}]},
        {
            "content": [
                {"type": "text", "text": "b"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(b'png').decode()}"}},
            ]
        },
    ]


@pytest.mark.parametrize(
    "item",
    [
        pb.EmbedInput(token_ids=pb.TokenIds(values=[1])),
        pb.EmbedInput(content=pb.EmbedContent(parts=[pb.Part(media=pb.Media(mime_type="audio/wav", data=b"a"))])),
        pb.EmbedInput(content=pb.EmbedContent(parts=[pb.Part(refusal="no")])),
    ],
)
def test_other_inputs_are_not_embedded(item: pb.EmbedInput) -> None:
    """Refused with their path."""
    with pytest.raises(UnsupportedParameter) as raised:
        embed_call(item, task_type="clustering")
    assert raised.value.violations[0].field.startswith("inputs[0]")


def test_embeddings_may_come_as_base64() -> None:
    """By the host's quirk; the bytes are those of the floats."""
    quirks = replace(TARGET.host.quirks, embed_format="base64")
    target = replace(TARGET, host=replace(TARGET.host, quirks=quirks))
    request = pb.EmbedRequest(model="m", inputs=[pb.EmbedInput(text="a")], task_type="clustering")
    assert json.loads(cohere.encode_embed(request, request.inputs, target).body)["embedding_types"] == ["base64"]
    data = struct.pack("<2f", 0.5, -1.25)
    body = json.dumps({"embeddings": {"base64": [b64encode(data).decode()]}}).encode()
    answer = cohere.decode_embed(body, 1, target)
    assert (answer.data, answer.dimensions, answer.HasField("usage")) == (data, 2, False)


async def test_embeddings_are_asked_for_in_batches_of_96(serve: Serve) -> None:
    """Through the front door: order in is order out, and what is billed adds up."""

    async def answers(exchange: Exchange) -> None:
        rows = [[float(text)] for text in exchange.json["texts"]]
        billed = {"billed_units": {"input_tokens": len(rows)}}
        await exchange.answer(200, {"id": "x", "embeddings": {"float": rows}, "meta": billed})

    async with Vendor(answers) as vendor:
        async with serve(providers={"cohere": {"base_url": vendor.base_url, "api_key": "k"}}) as headgate:
            inputs = [pb.EmbedInput(text=str(number)) for number in range(100)]
            request = pb.EmbedRequest(model="cohere/m", inputs=inputs, task_type="clustering")
            answer = await headgate.stub.Embed(request)
    assert sorted(len(exchange.json["texts"]) for exchange in vendor.exchanges) == [4, 96]
    assert struct.unpack("<100f", answer.data) == tuple(range(100))
    assert answer.usage.input_tokens == 100


@pytest.mark.parametrize(
    "embeddings",
    [{}, {"float": [[1.0]]}, {"float": [[1.0], [1.0, 2.0]]}, {"float": [[], []]}, {"float": [["x"], ["y"]]}],
)
def test_a_matrix_that_is_not_whole_is_refused(embeddings: Json) -> None:
    """Rows missing, uneven, empty or no numbers."""
    with pytest.raises(ProviderProtocolError):
        cohere.decode_embed(json.dumps({"embeddings": embeddings}).encode(), 2, TARGET)


def test_the_vendor_s_own_package_takes_all_that_we_can_send() -> None:
    """Every member of a request with everything in it is an argument of the official client."""
    config = pb.GenerationConfig(
        max_output_tokens=7, temperature=0.5, top_p=0.7, top_k=9, seed=4, stop_sequences=["END"], logprobs=True
    )
    config.frequency_penalty = config.presence_penalty = 0.25
    config.response_format.type = pb.RESPONSE_FORMAT_TYPE_JSON
    tool = pb.Tool(function=pb.FunctionTool(name="f", parameters_schema="{}", strict=True))
    answer = cohere.decode((WIRE / "thinking-and-citations.json").read_bytes(), TARGET).candidates[0].message
    body = sent(
        messages=[SPOKEN, answer, user(document("a"), pb.Part(text="And?"))],
        config=config,
        tools=[tool],
        tool_choice=pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED),
        reasoning=pb.ReasoningConfig(budget_tokens=50),
    )
    received: list[Json] = []

    def receive(request: httpx.Request) -> httpx.Response:
        received.append(json.loads(request.content))
        return httpx.Response(200, json={"id": "x", "finish_reason": "COMPLETE", "message": {"role": "assistant"}})

    with httpx.Client(transport=httpx.MockTransport(receive)) as http:
        arguments = {name: value for name, value in body.items() if name != "stream"}
        ClientV2(api_key="k", httpx_client=http).chat(**arguments)
    assert received == [body]
