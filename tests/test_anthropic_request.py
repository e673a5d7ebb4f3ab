"""Requests as Messages want them: what is sent, what is warned of, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from headgate import v1 as pb

from headgate_server.errors import InvalidRequest, UnsupportedParameter
from headgate_server.providers import anthropic
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.hosts import HOSTS

Json = dict[str, Any]

MODEL = "claude-opus-5"
WIRE = Path(__file__).parent / "wire" / "anthropic"
LIMIT = pb.GenerationConfig(max_output_tokens=99)
SPOKEN = pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Hi")])
ANSWERED = pb.Message(role=pb.ROLE_ASSISTANT, parts=[pb.Part(text="Ho")])


def target(host: str = "anthropic", model: str = MODEL) -> Target:
    """A model at a known host."""
    return Target(provider=host, model=model, host=HOSTS[host], issuer=host)


def call(to: Target | None = None, *, stream: bool = False, **fields: Any) -> HttpCall:
    """The call for a request with these fields."""
    fields = {"messages": [SPOKEN], "config": LIMIT, **fields}
    return anthropic.encode(pb.GenerateRequest(model="m", **fields), to or target(), stream=stream)


def sent(to: Target | None = None, **fields: Any) -> Json:
    """The body for a request with these fields, of which nothing is lost."""
    made = call(to, **fields)
    assert not made.warnings
    body: Json = json.loads(made.body)
    return body


def warned(to: Target | None = None, **fields: Any) -> tuple[Json, list[str]]:
    """The body for a request with these fields, and the fields warned of."""
    made = call(to, **fields)
    return json.loads(made.body), [warning.field for warning in made.warnings]


def turn(role: pb.Role.ValueType, *parts: pb.Part, **fields: Any) -> pb.Message:
    return pb.Message(role=role, parts=parts, **fields)


def user(*parts: pb.Part) -> pb.Message:
    return turn(pb.ROLE_USER, *parts)


def assistant(*parts: pb.Part) -> pb.Message:
    return turn(pb.ROLE_ASSISTANT, *parts)


def content(*parts: pb.Part, role: pb.Role.ValueType = pb.ROLE_USER) -> Any:
    """The content that a turn of these parts is sent with."""
    return sent(messages=[turn(role, *parts)])["messages"][0]["content"]


def test_the_version_and_the_key_are_headers() -> None:
    """As the API page says; a server without a key gets none."""
    assert anthropic.headers("secret") == {"x-api-key": "secret", "anthropic-version": "2023-06-01"}
    assert anthropic.headers(None) == {"anthropic-version": "2023-06-01"}


def test_a_plain_request_is_as_small_as_the_api_page_s() -> None:
    """Nothing that was not asked for is sent."""
    assert sent() == {"model": MODEL, "max_tokens": 99, "messages": [{"role": "user", "content": "Hi"}]}
    assert sent(stream=True)["stream"] is True


def test_every_setting_of_the_contract_has_its_field() -> None:
    """Sampling, stops and the end user."""
    config = pb.GenerationConfig(max_output_tokens=9, temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["END"])
    body = sent(config=config, end_user_id="user-1")
    del body["messages"], body["model"]
    assert body == {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "user-1"},
    }


@pytest.mark.parametrize("policy", [pb.UNSUPPORTED_POLICY_WARN, pb.UNSUPPORTED_POLICY_REJECT])
def test_a_limit_that_the_caller_leaves_open_is_chosen_and_told(policy: pb.UnsupportedPolicy.ValueType) -> None:
    """This vendor demands one. It is no lost setting: REJECT does not refuse it; a budget still fits below it."""
    fields: Json = {"config": pb.GenerationConfig(), "routing": pb.RoutingPolicy(unsupported_policy=policy)}
    body, told = warned(**fields)
    assert (body["max_tokens"], told) == (32_000, ["config.max_output_tokens"])
    body, _ = warned(**fields, reasoning=pb.ReasoningConfig(budget_tokens=60_000))
    assert body["max_tokens"] > body["thinking"]["budget_tokens"]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"config": {"seed": 0}}, "config.seed"),
        ({"config": {"presence_penalty": 1}}, "config.presence_penalty"),
        ({"config": {"frequency_penalty": 1}}, "config.frequency_penalty"),
        ({"config": {"candidate_count": 2}}, "config.candidate_count"),
        ({"config": {"logprobs": True}}, "config.logprobs"),
        ({"config": {"top_logprobs": 2}}, "config.top_logprobs"),
        ({"config": {"logit_bias": {1: 2}}}, "config.logit_bias"),
        ({"config": {"output_modalities": ["audio"]}}, "config.output_modalities"),
        ({"config": {"verbosity": "low"}}, "config.verbosity"),
        ({"config": {"response_format": {"type": pb.RESPONSE_FORMAT_TYPE_JSON}}}, "config.response_format.type"),
        ({"config": {"temperature": 1.5}}, "config.temperature"),
        ({"prompt_cache_key": "k"}, "prompt_cache_key"),
        ({"reasoning": {"effort": "minimal"}}, "reasoning.effort"),
        ({"reasoning": {"visibility": pb.REASONING_VISIBILITY_FULL}}, "reasoning.visibility"),
        ({"messages": [turn(pb.ROLE_USER, pb.Part(text="Hi"), name="Ann")]}, "messages[0].name"),
    ],
)
def test_a_setting_that_this_vendor_does_not_have_is_told(fields: Json, path: str) -> None:
    """In a warning; under REJECT the call is refused, the field named."""
    if "config" in fields:
        fields = {**fields, "config": pb.GenerationConfig(max_output_tokens=99, **fields["config"])}
    _, told = warned(**fields)
    assert told == [path]
    reject = pb.RoutingPolicy(unsupported_policy=pb.UNSUPPORTED_POLICY_REJECT)
    with pytest.raises(UnsupportedParameter) as refused:
        call(**fields, routing=reject)
    assert [violation.field for violation in refused.value.violations] == [path]


def test_a_setting_that_asks_for_what_happens_anyway_is_no_loss() -> None:
    """One candidate, no log probabilities, text."""
    config = pb.GenerationConfig(max_output_tokens=9, candidate_count=1, logprobs=False, output_modalities=["text"])
    assert sent(config=config)["max_tokens"] == 9


@pytest.mark.parametrize(
    ("asked", "thinking", "output"),
    [
        ({}, None, None),
        ({"enabled": True}, {"type": "adaptive"}, None),
        ({"budget_tokens": -1}, {"type": "adaptive"}, None),
        ({"budget_tokens": 2048}, {"type": "enabled", "budget_tokens": 2048}, None),
        ({"enabled": False}, {"type": "disabled"}, None),
        ({"effort": "none"}, {"type": "disabled"}, None),
        ({"budget_tokens": 0}, {"type": "disabled"}, None),
        ({"effort": "xhigh"}, None, {"effort": "xhigh"}),
        ({"enabled": True, "effort": "low"}, {"type": "adaptive"}, {"effort": "low"}),
        (
            {"enabled": True, "visibility": pb.REASONING_VISIBILITY_NONE},
            {"type": "adaptive", "display": "omitted"},
            None,
        ),
        (
            {"budget_tokens": 2048, "visibility": pb.REASONING_VISIBILITY_SUMMARY},
            {"type": "enabled", "budget_tokens": 2048, "display": "summarized"},
            None,
        ),
    ],
)
def test_reasoning_is_asked_for_in_the_vendor_s_words(asked: Json, thinking: Json | None, output: Json | None) -> None:
    """Whether and how much in `thinking`, how hard in `output_config`."""
    body = sent(reasoning=pb.ReasoningConfig(**asked))
    assert (body.get("thinking"), body.get("output_config")) == (thinking, output)


@pytest.mark.parametrize("model", ["claude-sonnet-4-5-20250929", "claude-opus-4-1", "claude-3-7-sonnet-latest"])
def test_models_before_adaptive_thinking_get_a_budget(model: str) -> None:
    """They refuse adaptive thinking; the budget that was chosen is told."""
    body, told = warned(target(model=model), reasoning=pb.ReasoningConfig(enabled=True))
    assert (body["thinking"]["type"], told) == ("enabled", ["reasoning.budget_tokens"])
    limit = pb.GenerationConfig(max_output_tokens=3000)
    body, _ = warned(target(model=model), config=limit, reasoning=pb.ReasoningConfig(enabled=True))
    assert body["thinking"]["budget_tokens"] == 1500


def test_a_schema_goes_out_byte_for_byte() -> None:
    """Of the answer and of a tool's arguments: key order and number forms are the caller's."""
    schema = '{"type":"object", "x" : 1.50}'
    form = pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, name="n", schema=schema)
    tool = pb.Tool(function=pb.FunctionTool(name="f", parameters_schema=schema))
    made = call(config=pb.GenerationConfig(max_output_tokens=9, response_format=form), tools=[tool])
    assert made.body.count(schema.encode()) == 2
    assert json.loads(made.body)["output_config"]["format"]["type"] == "json_schema"


def test_leading_instructions_are_hoisted() -> None:
    """System and developer messages before the first turn become `system`: plain where that says it all."""
    body = sent(messages=[turn(pb.ROLE_SYSTEM, pb.Part(text="Be brief.")), SPOKEN])
    assert body["system"] == "Be brief."
    assert [message["role"] for message in body["messages"]] == ["user"]
    cached = pb.Part(text="Be kind.", cache_breakpoint=pb.CacheBreakpoint(ttl=Duration(seconds=3600)))
    body = sent(messages=[turn(pb.ROLE_SYSTEM, pb.Part(text="A")), turn(pb.ROLE_DEVELOPER, cached), SPOKEN])
    assert body["system"] == [
        {"type": "text", "text": "A"},
        {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ]


def test_later_instructions_stand_where_this_vendor_takes_them() -> None:
    """Between the user's turn and the answer, or last."""
    later = turn(pb.ROLE_DEVELOPER, pb.Part(text="Now in French."))
    body = sent(messages=[SPOKEN, later, ANSWERED, SPOKEN, later])
    assert [message["role"] for message in body["messages"]] == ["user", "system", "assistant", "user", "system"]


@pytest.mark.parametrize(
    ("model", "messages"),
    [
        ("claude-sonnet-4-5", [SPOKEN, turn(pb.ROLE_SYSTEM, pb.Part(text="S"))]),
        (MODEL, [SPOKEN, ANSWERED, turn(pb.ROLE_SYSTEM, pb.Part(text="S"))]),
        (MODEL, [SPOKEN, turn(pb.ROLE_SYSTEM, pb.Part(text="S")), SPOKEN]),
    ],
    ids=["model", "after the answer", "before the user"],
)
def test_later_instructions_that_cannot_stand_there_become_a_user_turn(model: str, messages: list[pb.Message]) -> None:
    """With a warning: older models and other places are refused by the vendor."""
    body, told = warned(target(model=model), messages=messages)
    place = next(index for index, message in enumerate(messages) if message.role == pb.ROLE_SYSTEM)
    assert body["messages"][place] == {"role": "user", "content": "S"}
    assert told == [f"messages[{place}].role"]


def test_results_of_parallel_calls_share_one_turn() -> None:
    """However many messages they came in, and before what the user says."""
    calls = [pb.Part(tool_call=pb.ToolCall(id=f"c{n}", name="f", arguments="{}")) for n in (1, 2)]
    results = [
        pb.Part(tool_result=pb.ToolResult(call_id=f"c{n}", parts=[pb.Part(text=f"r{n}")], failed=n == 2))
        for n in (1, 2)
    ]
    tools = [turn(pb.ROLE_TOOL, result) for result in results]
    blocks = [
        {"type": "tool_result", "tool_use_id": "c1", "content": "r1"},
        {"type": "tool_result", "tool_use_id": "c2", "content": "r2", "is_error": True},
    ]
    body = sent(messages=[SPOKEN, assistant(*calls), *tools, SPOKEN])
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user", "user"]
    assert body["messages"][2]["content"] == blocks
    mixed = user(pb.Part(text="And?"), *results)
    body = sent(messages=[SPOKEN, assistant(*calls), mixed])
    assert body["messages"][2]["content"] == [*blocks, {"type": "text", "text": "And?"}]


def test_a_tool_result_holds_media_structure_or_nothing() -> None:
    """Parts before structure; both may miss."""

    def block(**fields: Any) -> Json:
        made: Json = content(pb.Part(tool_result=pb.ToolResult(call_id="c", **fields)))[0]
        return made

    png = pb.Part(media=pb.Media(mime_type="image/png", data=b"\x89PNG"))
    assert block(parts=[pb.Part(text="see"), png])["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw=="}},
    ]
    assert block(structured_json='{"a":1}')["content"] == '{"a":1}'
    assert "content" not in block()


@pytest.mark.parametrize(
    ("media", "block"),
    [
        (
            pb.Media(kind=pb.MEDIA_KIND_IMAGE, uri="https://x/y.png"),
            {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        ),
        (
            pb.Media(kind=pb.MEDIA_KIND_IMAGE, file=pb.FileRef(issuer="anthropic", id="file_1")),
            {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
        ),
        (
            pb.Media(mime_type="application/pdf", data=b"%PDF", filename="a.pdf"),
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
                "title": "a.pdf",
            },
        ),
        (
            pb.Media(mime_type="text/plain", data="Grüße".encode(), title="T", context="C", citations_enabled=True),
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "Grüße"},
                "title": "T",
                "context": "C",
                "citations": {"enabled": True},
            },
        ),
        (
            pb.Media(kind=pb.MEDIA_KIND_DOCUMENT, uri="https://x/y.pdf", provider_json='{"new": 1}'),
            {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}, "new": 1},
        ),
    ],
)
def test_media_go_out_as_images_and_documents(media: pb.Media, block: Json) -> None:
    """By value, by address and by the vendor's own file id."""
    assert content(pb.Part(media=media)) == [block]


@pytest.mark.parametrize(
    ("media", "path"),
    [
        (pb.Media(mime_type="audio/wav", data=b"x"), "media"),
        (pb.Media(uri="https://x/y"), "media"),
        (pb.Media(kind=pb.MEDIA_KIND_IMAGE, file=pb.FileRef(issuer="openai", id="file-1")), "media.file"),
        (pb.Media(mime_type="text/plain", data=b"\xff"), "media.data"),
    ],
)
def test_media_that_this_vendor_cannot_read_are_refused(media: pb.Media, path: str) -> None:
    """With the path of the part."""
    with pytest.raises(UnsupportedParameter) as refused:
        call(messages=[user(pb.Part(media=media))])
    assert refused.value.violations[0].field == f"messages[0].parts[0].{path}"


def test_cache_breakpoints_mark_parts_results_and_tools() -> None:
    """For five minutes or an hour; another time is changed to the nearest below, and told."""
    hour, odd = Duration(seconds=3600), Duration(seconds=700)
    tool = pb.Tool(function=pb.FunctionTool(name="f"), cache_breakpoint=pb.CacheBreakpoint())
    marked = pb.Part(text="Hi", cache_breakpoint=pb.CacheBreakpoint(ttl=hour))
    result = pb.Part(tool_result=pb.ToolResult(call_id="c"), cache_breakpoint=pb.CacheBreakpoint())
    body = sent(messages=[user(marked, result)], tools=[tool])
    assert body["tools"][0]["cache_control"] == {"type": "ephemeral"}
    controls = [block["cache_control"] for block in body["messages"][0]["content"]]
    assert controls == [{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}]
    marked.cache_breakpoint.ttl.CopyFrom(odd)
    body, told = warned(messages=[user(marked)])
    assert body["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral", "ttl": "5m"}
    assert told == ["messages[0].parts[0].cache_breakpoint.ttl"]
    _, told = warned(target("llamacpp"), messages=[user(marked)])
    assert told == ["messages[0].parts[0].cache_breakpoint"]


def signed(**fields: Any) -> pb.Part:
    """Thinking with a signature."""
    fields = {"issuer": "anthropic", "signature": b"sig", **fields}
    return pb.Part(reasoning=pb.Reasoning(text="Hm."), **fields)


def test_thinking_goes_back_under_its_own_signature() -> None:
    """Readable or redacted, byte for byte."""
    redacted = pb.Part(reasoning=pb.Reasoning(kind=pb.REASONING_KIND_OPAQUE), signature=b"cipher", issuer="anthropic")
    omitted = pb.Part(reasoning=pb.Reasoning(), signature=b"sig", issuer="anthropic")
    assert content(signed(), redacted, omitted, role=pb.ROLE_ASSISTANT) == [
        {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
        {"type": "redacted_thinking", "data": "cipher"},
        {"type": "thinking", "thinking": "", "signature": "sig"},
    ]


@pytest.mark.parametrize("part", [signed(issuer="openai"), signed(incomplete=True)], ids=["foreign", "incomplete"])
def test_thinking_without_a_valid_signature_keeps_its_text_only(part: pb.Part) -> None:
    """Another vendor's signature, or one of a part that was cut short, never goes out, and that is told."""
    body, told = warned(messages=[SPOKEN, assistant(part)])
    assert body["messages"][1]["content"] == "<thinking>\nHm.\n</thinking>"
    assert told == ["messages[1].parts[0].signature", "messages[1].parts[0].reasoning"]
    body, _ = warned(target("llamacpp"), messages=[SPOKEN, assistant(part)])
    assert body["messages"][1]["content"] == [{"type": "thinking", "thinking": "Hm."}]


def test_state_of_other_vendors_is_left_out_and_told() -> None:
    """Items, signatures and ids that only their issuer can read; the text beside them stays."""
    item = pb.Part(provider_item=pb.ProviderItem(type="web_search_call", json="{}"), issuer="openai")
    text = pb.Part(text="Ho", signature=b"s", item_id="i", issuer="gemini")
    cited = pb.Part(text="He", citations=[pb.Citation(uri="https://x", provider_json='{"a":1}')], issuer="openai")
    hosted = pb.Part(tool_call=pb.ToolCall(id="c", name="search", kind=pb.TOOL_CALL_KIND_PROVIDER_EXECUTED))
    extras = pb.Part(text="Hu", provider_metadata={"openai": '{"x":1}'})
    body, told = warned(messages=[SPOKEN, assistant(item, text, cited, hosted, extras)])
    assert [block["text"] for block in body["messages"][1]["content"]] == ["Ho", "He", "Hu"]
    assert all(block.keys() == {"type", "text"} for block in body["messages"][1]["content"])
    path = "messages[1].parts"
    assert told == [
        f"{path}[0].provider_item",
        f"{path}[1].signature",
        f"{path}[1].item_id",
        f"{path}[2].citations[0]",
        f"{path}[3].tool_call",
    ]


@pytest.mark.parametrize("name", ["thinking-and-calls", "hosted-search", "interleaved-blocks", "newer-than-we-are"])
def test_an_answer_goes_back_as_the_vendor_gave_it(name: str) -> None:
    """Signatures, encrypted indices, unmodelled blocks and members: a whole message round-trips."""
    body = (WIRE / f"{name}.json").read_bytes()
    answer = anthropic.decode(body, target()).candidates[0].message
    went_back = sent(messages=[SPOKEN, answer])["messages"][1]
    given = [{k: v for k, v in block.items() if v is not None} for block in json.loads(body)["content"]]
    assert went_back == {"role": "assistant", "content": given}


def test_a_turn_of_which_nothing_is_left_is_left_out() -> None:
    """This vendor refuses empty turns and empty texts; a cache breakpoint that is lost so is told."""
    marked = pb.Part(text="", cache_breakpoint=pb.CacheBreakpoint())
    body, told = warned(messages=[SPOKEN, assistant(marked), SPOKEN])
    assert body["messages"] == [{"role": "user", "content": "Hi"}] * 2
    assert told == ["messages[1].parts[0].cache_breakpoint"]


def test_arguments_that_are_no_object_are_wrapped_and_told() -> None:
    """A call that was cut short, or another vendor's: this vendor takes objects only."""
    call_part = pb.Part(tool_call=pb.ToolCall(id="c", name="f", arguments='{"a": '), incomplete=True)
    body, told = warned(messages=[SPOKEN, assistant(call_part)])
    assert body["messages"][1]["content"][0]["input"] == {"INVALID_JSON": '{"a": '}
    assert told == ["messages[1].parts[0].tool_call.arguments"]


def test_call_ids_that_this_vendor_refuses_are_replaced_alike() -> None:
    """In the call and in its result."""
    called = pb.Part(tool_call=pb.ToolCall(id="functions.f:0", name="f", arguments=""))
    result = pb.Part(tool_result=pb.ToolResult(call_id="functions.f:0"))
    body = sent(messages=[SPOKEN, assistant(called), user(result)])
    (use,), (answer,) = body["messages"][1]["content"], body["messages"][2]["content"]
    assert use["id"] == answer["tool_use_id"] != "functions.f:0"
    assert use["input"] == {}


def test_parts_without_a_place_are_refused() -> None:
    """A picture in an assistant turn, free-text calls and tools."""
    png = pb.Part(media=pb.Media(mime_type="image/png", data=b"x"))
    free = pb.Part(tool_call=pb.ToolCall(id="c", name="f", kind=pb.TOOL_CALL_KIND_FREE_TEXT))
    for part in (png, free):
        with pytest.raises(UnsupportedParameter):
            call(messages=[SPOKEN, assistant(part)])
    for choice in (pb.ToolChoice(), pb.ToolChoice(allowed_tools=["f"])):
        with pytest.raises(UnsupportedParameter):
            call(tools=[pb.Tool(free_text=pb.FreeTextTool(name="f"))], tool_choice=choice)
    with pytest.raises(UnsupportedParameter):
        call(tools=[pb.Tool(provider=pb.ProviderTool(issuer="openai", type="web_search"))])


SEARCH = pb.Tool(
    provider=pb.ProviderTool(
        issuer="anthropic", type="web_search_20250305", name="web_search", config_json='{"max_uses":2}'
    )
)
TOOLS = [pb.Tool(function=pb.FunctionTool(name=name, description=name.upper())) for name in ("f", "g")]


def test_tools_go_out_with_their_extras() -> None:
    """Functions, hosted tools, and members that the contract does not have."""
    f = pb.Tool(
        function=pb.FunctionTool(name="f", strict=True), provider_metadata={"anthropic": '{"defer_loading":true}'}
    )
    assert sent(tools=[f, SEARCH])["tools"] == [
        {"name": "f", "input_schema": {"type": "object", "properties": {}}, "strict": True, "defer_loading": True},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 2},
    ]


@pytest.mark.parametrize(
    ("choice", "written", "names"),
    [
        ({}, None, ["f", "g", "web_search"]),
        ({"mode": pb.TOOL_CHOICE_MODE_AUTO}, {"type": "auto"}, ["f", "g", "web_search"]),
        ({"mode": pb.TOOL_CHOICE_MODE_NONE, "parallel_calls": False}, {"type": "none"}, ["f", "g", "web_search"]),
        (
            {"mode": pb.TOOL_CHOICE_MODE_REQUIRED, "parallel_calls": False},
            {"type": "any", "disable_parallel_tool_use": True},
            ["f", "g", "web_search"],
        ),
        ({"parallel_calls": True}, {"type": "auto", "disable_parallel_tool_use": False}, ["f", "g", "web_search"]),
        (
            {"mode": pb.TOOL_CHOICE_MODE_REQUIRED, "allowed_tools": ["g"]},
            {"type": "tool", "name": "g"},
            ["f", "g", "web_search"],
        ),
        (
            {"mode": pb.TOOL_CHOICE_MODE_REQUIRED, "allowed_tools": ["web_search_20250305"]},
            {"type": "tool", "name": "web_search"},
            ["f", "g", "web_search"],
        ),
        (
            {"mode": pb.TOOL_CHOICE_MODE_REQUIRED, "allowed_tools": ["f", "web_search_20250305"]},
            {"type": "any"},
            ["f", "web_search"],
        ),
        ({"allowed_tools": ["g"]}, None, ["g"]),
    ],
)
def test_tool_choice_is_said_in_the_vendor_s_words(choice: Json, written: Json | None, names: list[str]) -> None:
    """One forced tool is named; of several allowed ones only those are sent."""
    body = sent(tools=[*TOOLS, SEARCH], tool_choice=pb.ToolChoice(**choice))
    assert body.get("tool_choice") == written
    assert [tool["name"] for tool in body["tools"]] == names


def test_provider_options_are_merged_last_and_betas_become_a_header() -> None:
    """Only this issuer's; null removes, as RFC 7396 says."""
    options = '{"betas":["a-1","b-2"],"container":"c","max_tokens":null,"metadata":{"x":1}}'
    made = call(end_user_id="u", provider_options={"anthropic": options, "openai": '{"y":1}'})
    body = json.loads(made.body)
    assert made.headers == {"anthropic-beta": "a-1,b-2"}
    assert (body["container"], body["metadata"]) == ("c", {"user_id": "u", "x": 1})
    assert "max_tokens" not in body
    assert "betas" not in body
    assert "y" not in body


@pytest.mark.parametrize("betas", ['"a\\r\\nx-api-key: b"', "[1]", "{}", '["a b"]', "7"])
def test_betas_that_are_no_names_never_reach_a_header(betas: str) -> None:
    """A header must not be forged."""
    with pytest.raises(InvalidRequest) as refused:
        call(provider_options={"anthropic": f'{{"betas": {betas}}}'})
    assert refused.value.violations[0].field == 'provider_options["anthropic"].betas'


def test_anthropic_has_no_embeddings() -> None:
    """The call is refused, and another target may take it."""
    with pytest.raises(UnsupportedParameter):
        anthropic.encode_embed(pb.EmbedRequest(model="m"), [], target())
