"""Whatever a caller may ask for either goes out as the vendor describes it, or is refused with the field's path."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from headgate import v1 as pb
from hypothesis import HealthCheck, given, settings, strategies as st

from headgate_server.errors import InvalidRequest
from headgate_server.providers.base import HttpCall
from headgate_server.validation import check_generate
from tests.wires import WIRES

ISSUERS = ("openai", "azure-openai", "anthropic", "gemini", "vertex", "cohere", "someone")
FIELD_PATH = re.compile(
    r"[a-z_]+(\[\d+\]|\[\"[^\"]*\"\])?(\.[a-z_]+(\[-?\d+\]|\[\"[^\"]*\"\])?)*"
)  # REJECT is of settings: what the history loses on its way, and a default that a vendor demands, stay warnings.
NOT_OF_SETTINGS = {"dropped-content", "default-applied"}

few = st.integers(0, 2)
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8)
names = st.from_regex(r"[a-z][a-z_]{0,6}", fullmatch=True)
objects = st.sampled_from(
    ["{}", '{"type":"object","properties":{}}', '{"type": "object", "properties": {"a": {"type": "string"}}}']
)
arguments = st.sampled_from(["", "{}", '{"a":  1.50}', '{"city": "Z\\u00fcrich"}'])
opaque = st.sampled_from([b"", b"\xff", b"c2lnbmF0dXJl", "signé".encode()])


def messages_of(message: Any, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A strategy of messages with these fields; None leaves one out."""
    return st.builds(lambda **found: message(**{k: v for k, v in found.items() if v is not None}), **fields)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The same, or nothing."""
    return st.none() | strategy


durations = st.sampled_from([{"seconds": 300}, {"seconds": 3600}, {"seconds": 7}])
breakpoints = messages_of(pb.CacheBreakpoint, ttl=maybe(durations))
files = messages_of(pb.FileRef, issuer=st.sampled_from(ISSUERS), id=st.just("file-1"))
media_types = st.sampled_from(
    ["image/png", "audio/wav", "video/mp4", "application/pdf", "text/plain", "application/json"]
)
own_members = st.sampled_from([""] * 12 + ['{"a": 1}', '{"function": null, "type": "x", "image_url": 1}'])
described = {
    "provider_json": own_members,
    "filename": st.sampled_from(["", "a.pdf"]),
    "title": st.sampled_from(["", "Title"]),
    "context": st.sampled_from(["", "Context"]),
    "detail": st.sampled_from(["", "low", "high", "auto"]),
    "transcript": st.sampled_from(["", "Spoken"]),
    "citations_enabled": maybe(st.booleans()),
}
kinds_of_media = maybe(st.sampled_from(pb.MediaKind.values()))
media = st.one_of(
    messages_of(pb.Media, data=st.sampled_from([b"{}", b"\xff\xd8"]), mime_type=media_types, **described),
    messages_of(pb.Media, uri=st.just("https://example.com/a"), mime_type=media_types, **described),
    messages_of(pb.Media, uri=st.just("https://example.com/a"), kind=kinds_of_media, **described),
    messages_of(pb.Media, file=files, kind=kinds_of_media, **described),
)
citations = messages_of(
    pb.Citation,
    # What OpenAI demands back of its own.
    start_offset=few,
    end_offset=st.integers(2, 5),
    uri=st.just("https://example.com/"),
    cited_text=words,
    title=st.just("Title"),
    opaque=opaque,
)
logprobs = st.just(pb.LogProbs(tokens=[pb.TokenLogProb(token="a", logprob=-1.0)]))
# What a caller says in a vendor's own words goes out as it is, sense or nonsense.
extras = st.builds(
    lambda issuer, text: {issuer: text},
    st.sampled_from(ISSUERS),
    st.sampled_from(['{"content": 1}', '{"extra": {"a": null}}', '{"role": null, "parts": 2, "text": {"x": 1}}']),
)
few_extras = st.sampled_from([False] * 15 + [True]).flatmap(lambda has: extras if has else st.just({}))
state = {
    "provider_metadata": few_extras,
    "cache_breakpoint": maybe(breakpoints),
    "incomplete": maybe(st.booleans()),
    "citations": st.lists(citations, max_size=1),
    "logprobs": maybe(logprobs),
}


def stateful(content: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[pb.Part]:
    """Parts of that content, some with state of some issuer."""
    return st.one_of(
        messages_of(pb.Part, **{content: values}, **state),
        messages_of(
            pb.Part,
            **{content: values},
            **state,
            signature=opaque,
            item_id=st.sampled_from(["", "rs_1"]),
            issuer=st.sampled_from(ISSUERS),
        ),
    )


texts = stateful("text", words)
refusals = stateful("refusal", words)
thoughts = stateful(
    "reasoning", messages_of(pb.Reasoning, text=words, kind=maybe(st.sampled_from(pb.ReasoningKind.values())))
)
medias = stateful("media", media)
items = messages_of(
    pb.Part,
    provider_item=st.just(pb.ProviderItem(type="oracle_call", json='{"type":"oracle_call"}')),
    issuer=st.sampled_from(ISSUERS),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[pb.Message]:
    """Messages of all roles; each result answers an earlier call, as a vendor's client would have it."""
    found: list[pb.Message] = []
    open_calls: list[pb.ToolCall] = []
    for role in draw(st.lists(st.sampled_from(pb.Role.values()[1:]), min_size=1, max_size=5)):
        message = pb.Message(
            role=role, name=draw(st.sampled_from(["", "", "", "ann"])), provider_metadata=draw(few_extras)
        )
        match role:
            case pb.ROLE_ASSISTANT:
                kinds = st.sampled_from([texts, texts, refusals, thoughts, thoughts, items, medias]).flatmap(
                    lambda kind: kind
                )
                message.parts.extend(draw(st.lists(kinds, min_size=1, max_size=3)))
                for number in range(draw(few)):
                    call = draw(calls(f"call_{len(found)}_{number}"))
                    open_calls.append(call.tool_call)
                    message.parts.append(call)
            case pb.ROLE_TOOL if open_calls:
                answers = [draw(results(call)) for call in open_calls]
                open_calls.clear()
                if draw(st.booleans()):
                    found += [
                        pb.Message(role=role, parts=[part], provider_metadata=draw(few_extras)) for part in answers
                    ]
                    continue
                message.parts.extend(answers)
            case pb.ROLE_TOOL:
                continue
            case _:
                message.parts.extend(draw(st.lists(texts | texts | medias | items, min_size=1, max_size=2)))
        found.append(message)
    return found or [pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Hi")])]


def calls(call_id: str) -> st.SearchStrategy[pb.Part]:
    """A call with this id."""
    call = messages_of(
        pb.ToolCall,
        id=st.just(call_id),
        name=names,
        arguments=arguments,
        provider_json=own_members,
        kind=st.sampled_from([*[pb.TOOL_CALL_KIND_FUNCTION] * 9, *pb.ToolCallKind.values()]),
    )
    return stateful("tool_call", call)


def results(call: pb.ToolCall) -> st.SearchStrategy[pb.Part]:
    """The result of this call."""
    result = messages_of(
        pb.ToolResult,
        call_id=st.just(call.id),
        name=st.sampled_from(["", call.name]),
        parts=st.lists(texts | texts | medias | items, max_size=2),
        failed=maybe(st.booleans()),
        structured_json=st.sampled_from(["", "{}", "[1, 2]", '"said"']),
    )
    return messages_of(pb.Part, tool_result=result, cache_breakpoint=maybe(breakpoints), provider_metadata=few_extras)


functions = messages_of(
    pb.FunctionTool,
    name=names,
    description=words,
    parameters_schema=objects | st.just(""),
    strict=maybe(st.booleans()),
)
callable_tools = messages_of(
    pb.Tool, function=functions, cache_breakpoint=maybe(breakpoints), provider_metadata=few_extras
)
tools = st.one_of(
    callable_tools,
    callable_tools,
    callable_tools,
    messages_of(pb.Tool, free_text=messages_of(pb.FreeTextTool, name=names, description=words)),
    st.just(pb.Tool(provider=pb.ProviderTool(issuer="someone", type="oracle"))),
)
formats = st.one_of(
    messages_of(
        pb.ResponseFormat,
        type=st.just(pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA),
        name=maybe(names),
        description=words,
        schema=objects,
        strict=maybe(st.booleans()),
    ),
    messages_of(pb.ResponseFormat, type=st.sampled_from(pb.ResponseFormatType.values()[:3])),
)
configs = messages_of(
    pb.GenerationConfig,
    # 16 is the least of OpenAI's Responses; what is too little is the vendor's to say.
    max_output_tokens=maybe(st.integers(16, 9999)),
    temperature=maybe(st.floats(0, 2)),
    top_p=maybe(st.floats(0, 1)),
    top_k=maybe(st.integers(1, 500)),
    stop_sequences=st.lists(st.just("END"), max_size=2),
    seed=maybe(st.integers(0, 2**31 - 1)),
    presence_penalty=maybe(st.floats(-2, 2)),
    frequency_penalty=maybe(st.floats(-2, 2)),
    candidate_count=maybe(st.integers(1, 3)),
    response_format=maybe(formats),
    logprobs=maybe(st.booleans()),
    top_logprobs=maybe(st.integers(0, 5)),
    # OpenAI takes any number and describes whole ones.
    logit_bias=st.dictionaries(few, st.integers(-100, 100), max_size=2),
    output_modalities=st.lists(st.sampled_from(["text", "audio"]), max_size=2, unique=True),
    verbosity=st.sampled_from(["", "low", "medium", "high"]),
)
reasonings = messages_of(
    pb.ReasoningConfig,
    enabled=maybe(st.booleans()),
    effort=st.sampled_from(["", "none", "minimal", "low", "medium", "high", "xhigh"]),
    budget_tokens=maybe(st.sampled_from([-1, 0, 1024, 5000])),
    visibility=maybe(st.sampled_from(pb.ReasoningVisibility.values())),
)


@st.composite
def requests(draw: st.DrawFn) -> pb.GenerateRequest:
    """Any request that the gateway accepts."""
    request = pb.GenerateRequest(model="any/model", messages=draw(conversations()))
    request.tools.extend(draw(st.lists(tools, max_size=3)))
    known = [tool.function.name or tool.free_text.name or tool.provider.type for tool in request.tools]
    if draw(st.booleans()):
        request.tool_choice.mode = draw(st.sampled_from(pb.ToolChoiceMode.values()[: 4 if known else 3]))
        if known:
            request.tool_choice.allowed_tools.extend(draw(st.lists(st.sampled_from(known), max_size=2, unique=True)))
        if (parallel := draw(maybe(st.booleans()))) is not None:
            request.tool_choice.parallel_calls = parallel
    for field, strategy in (("config", configs), ("reasoning", reasonings)):
        if (found := draw(maybe(strategy))) is not None:
            getattr(request, field).CopyFrom(found)
    request.end_user_id = draw(st.sampled_from(["", "user-1"]))
    request.prompt_cache_key = draw(st.sampled_from(["", "key-1"]))
    for issuer, text in draw(few_extras).items():
        request.provider_options[issuer] = text
    request.routing.unsupported_policy = draw(st.sampled_from(pb.UnsupportedPolicy.values()))
    return request


def has_extras(request: pb.GenerateRequest, issuer: str) -> bool:
    """Whether the caller speaks to this vendor in its own words, which its description may not know."""
    parts = [part for message in request.messages for part in message.parts]
    parts += [piece for part in parts for piece in part.tool_result.parts]
    extras = [message.provider_metadata for message in request.messages]
    extras += [part.provider_metadata for part in parts] + [tool.provider_metadata for tool in request.tools]
    return (
        issuer in request.provider_options
        or any(issuer in metadata for metadata in extras)
        or any(part.HasField("provider_item") and part.issuer == issuer for part in parts)
        or any(part.media.provider_json or part.tool_call.provider_json for part in parts)
    )


@pytest.mark.parametrize("name", WIRES)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(request=requests())
def test_a_request_is_encoded_as_described_or_refused_by_field(name: str, request: pb.GenerateRequest) -> None:
    """Its JSON is valid by the vendor's description, or the error names a field; REJECT leaves no setting behind."""
    check_generate(request)
    wire = WIRES[name]
    call: HttpCall | None = None
    fields: list[str] = []
    try:
        call = wire.encode(request)
    except InvalidRequest as error:
        fields = [violation.field for violation in error.violations]
    if call is None:
        assert fields
        assert_paths(fields)
        return
    assert_paths([warning.field for warning in call.warnings])
    if request.routing.unsupported_policy == pb.UNSUPPORTED_POLICY_REJECT:
        assert {warning.code for warning in call.warnings} <= NOT_OF_SETTINGS
    if not has_extras(request, wire.target.issuer):
        assert list(wire.wrong(json.loads(call.body))) == []


def assert_paths(fields: list[str]) -> None:
    """Each is the path of a field."""
    assert [field for field in fields if not FIELD_PATH.fullmatch(field)] == []


@pytest.mark.parametrize("name", WIRES)
def test_results_in_several_messages_stay_together_whatever_their_extras_say(name: str) -> None:
    """A message that leaves nothing to send, and extras that replace the content, break nothing beside them."""
    wire = WIRES[name]
    call = pb.Part(tool_call=pb.ToolCall(id="call_1", name="look"))
    result = pb.Part(tool_result=pb.ToolResult(call_id="call_1", parts=[pb.Part(text="Sunny.")]))
    strange = pb.Part(provider_item=pb.ProviderItem(type="oracle_call", json="{}"), issuer="someone")
    nonsense = {wire.target.issuer: '{"content": 1, "parts": 1}'}
    messages = [
        pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Hi")]),
        pb.Message(role=pb.ROLE_ASSISTANT, parts=[call]),
        pb.Message(role=pb.ROLE_TOOL, parts=[strange]),
        pb.Message(role=pb.ROLE_TOOL, parts=[result]),
    ]
    body = json.loads(wire.encode(pb.GenerateRequest(messages=messages)).body)
    assert list(wire.wrong(body)) == []
    messages[3:] = [pb.Message(role=pb.ROLE_TOOL, parts=[result], provider_metadata=nonsense)] * 2
    assert wire.encode(pb.GenerateRequest(messages=messages)).body
