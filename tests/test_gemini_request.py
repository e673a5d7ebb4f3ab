"""What of a request goes to Gemini, where it stands there, and what is told of the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from headgate import v1 as pb

from headgate_server.errors import InvalidRequest, UnsupportedParameter
from headgate_server.providers import gemini, vertex
from headgate_server.providers.base import HttpCall, Target
from headgate_server.providers.hosts import HOSTS

Json = dict[str, Any]

FIRST_CALL = "call_" + "1" * 24
SECOND_CALL = "call_" + "2" * 24


def target(model: str = "gemini-2.5-flash", host: str = "gemini") -> Target:
    """A model at Google."""
    return Target(provider=host, model=model, host=HOSTS[host], issuer=host)


def encoded(request: pb.GenerateRequest, to: Target | None = None) -> tuple[Json, list[str]]:
    """The body that goes out, and the fields that were warned of."""
    call = gemini.encode(request, to or target(), stream=False)
    body: Json = json.loads(call.body)
    return body, [warning.field for warning in call.warnings]


def turn(role: pb.Role.ValueType, *parts: pb.Part, **more: Any) -> pb.Message:
    """One message."""
    return pb.Message(role=role, parts=parts, **more)


def said(text: str) -> pb.Part:
    """A part of text."""
    return pb.Part(text=text)


def called(call_id: str, name: str = "f", arguments: str = "{}", **more: Any) -> pb.Part:
    """A call of a function."""
    return pb.Part(tool_call=pb.ToolCall(id=call_id, name=name, arguments=arguments), **more)


def result(call_id: str, *parts: pb.Part, **more: Any) -> pb.Part:
    """The result of a call."""
    return pb.Part(tool_result=pb.ToolResult(call_id=call_id, parts=parts, **more))


def sent_parts(*parts: pb.Part, role: pb.Role.ValueType = pb.ROLE_ASSISTANT, model: str = "") -> tuple[Any, list[str]]:
    """The parts of the content that these parts become."""
    to = target(model) if model else target()
    body, warned = encoded(pb.GenerateRequest(messages=[turn(role, *parts)]), to)
    (content,) = body["contents"] or [{"parts": []}]
    return content["parts"], warned


def test_the_model_stands_in_the_path() -> None:
    """Quoted, as a name of Google's or as it is."""
    request = pb.GenerateRequest(messages=[turn(pb.ROLE_USER, said("Hi"))])

    def path(adapter: Any, model: str, *, stream: bool = False) -> str:
        host = "vertex" if adapter is vertex else "gemini"
        call: HttpCall = adapter.encode(request, target(model, host), stream=stream)
        return call.path

    assert path(gemini, "gemini-9") == "/models/gemini-9:generateContent"
    assert path(gemini, "gemini-9", stream=True) == "/models/gemini-9:streamGenerateContent?alt=sse"
    assert path(gemini, "tunedModels/mine") == "/tunedModels/mine:generateContent"
    assert path(gemini, "odd ?#") == "/models/odd%20%3F%23:generateContent"
    assert path(vertex, "gemini-9") == "/publishers/google/models/gemini-9:generateContent"
    assert path(vertex, "endpoints/77", stream=True) == "/endpoints/77:streamGenerateContent?alt=sse"


def test_leading_instructions_are_the_system_instruction_and_later_ones_are_said_by_the_user() -> None:
    """Gemini knows no other place; a caller who minds is told."""
    request = pb.GenerateRequest(
        messages=[
            turn(pb.ROLE_SYSTEM, said("Be brief.")),
            turn(pb.ROLE_DEVELOPER, said("Speak Breton.")),
            turn(pb.ROLE_USER, said("Hi")),
            turn(pb.ROLE_SYSTEM, said("Now German.")),
        ]
    )
    body, warned = encoded(request)
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "Speak Breton."}]}
    assert [content["role"] for content in body["contents"]] == ["user", "user"]
    assert warned == ["messages[3].role"]
    request.routing.unsupported_policy = pb.UNSUPPORTED_POLICY_REJECT
    with pytest.raises(UnsupportedParameter):
        encoded(request)


def test_state_goes_back_to_its_issuer_and_to_nobody_else() -> None:
    """A foreign signature is dropped with a warning, the text it was on is kept."""
    own, foreign = (pb.Part(text="So.", signature=b"c2ln", issuer=issuer) for issuer in ("gemini", "anthropic"))
    assert sent_parts(own) == ([{"text": "So.", "thoughtSignature": "c2ln"}], [])
    assert sent_parts(foreign) == ([{"text": "So."}], ["messages[0].parts[0].signature"])


def test_a_part_that_was_cut_short_goes_back_without_its_signature() -> None:
    """The signature is of the whole."""
    cut = pb.Part(text="So", signature=b"c2ln", issuer="gemini", incomplete=True)
    assert sent_parts(cut) == ([{"text": "So"}], ["messages[0].parts[0].signature"])


def test_thoughts_go_back_as_thoughts() -> None:
    """Summaries with their text; what only the vendor can read only to the vendor."""
    summary = pb.Part(reasoning=pb.Reasoning(text="Hm.", kind=pb.REASONING_KIND_SUMMARY))
    opaque = pb.Part(reasoning=pb.Reasoning(kind=pb.REASONING_KIND_OPAQUE), signature=b"c2ln", issuer="gemini")
    assert sent_parts(summary, opaque) == (
        [{"text": "Hm.", "thought": True}, {"thought": True, "thoughtSignature": "c2ln"}],
        [],
    )
    opaque.issuer = "openai"
    assert sent_parts(said("a"), opaque) == ([{"text": "a"}], ["messages[0].parts[1].reasoning"])


def test_hosted_items_go_back_verbatim_to_their_issuer() -> None:
    """With the signature beside."""
    item = pb.ProviderItem(type="executableCode", json='{"executableCode":{"code":"1"}}')
    own = pb.Part(provider_item=item, issuer="gemini", signature=b"c2ln")
    assert sent_parts(own) == ([{"executableCode": {"code": "1"}, "thoughtSignature": "c2ln"}], [])
    foreign = pb.Part(provider_item=item, issuer="openai")
    assert sent_parts(said("a"), foreign) == ([{"text": "a"}], ["messages[0].parts[1].provider_item"])


@pytest.mark.parametrize(
    ("model", "signs"),
    [("gemini-2.5-pro", False), ("gemini-3-pro-preview", True), ("models/gemini-3.1-flash", True), ("gemma-3", False)],
)
def test_calls_of_other_models_get_the_stand_in_that_gemini_3_wants(model: str, *, signs: bool) -> None:
    """On the first call of a turn, and only where the vendor's own signature is not at hand."""
    found, _ = sent_parts(called("a"), called("b"), model=model)
    assert ["thoughtSignature" in part for part in found] == [signs, False]
    own = called("a", signature=b"c2ln", issuer="gemini")
    found, _ = sent_parts(own, called("b"), model=model)
    assert [part.get("thoughtSignature") for part in found] == ["c2ln", None]


def test_results_that_follow_each_other_are_one_content_in_the_order_of_their_calls() -> None:
    """Gemini wants as many results as calls, and tells calls of one name apart by their place."""
    request = pb.GenerateRequest(
        messages=[
            turn(pb.ROLE_ASSISTANT, called(FIRST_CALL), called(SECOND_CALL)),
            turn(pb.ROLE_TOOL, result(SECOND_CALL, said("two"))),
            turn(pb.ROLE_TOOL, result(FIRST_CALL, said("one"))),
            turn(pb.ROLE_USER, said("Go on.")),
        ]
    )
    body, warned = encoded(request)
    assert [content["role"] for content in body["contents"]] == ["model", "user", "user"]
    assert body["contents"][1]["parts"] == [
        {"functionResponse": {"name": "f", "response": {"output": "one"}}},
        {"functionResponse": {"name": "f", "response": {"output": "two"}}},
    ]
    assert not warned


def test_ids_that_the_gateway_made_stay_here_and_others_go_out() -> None:
    """The vendor issued none of ours; another vendor's is as good as any."""
    request = pb.GenerateRequest(
        messages=[
            turn(pb.ROLE_ASSISTANT, called(FIRST_CALL), called("toolu_7", "g")),
            turn(pb.ROLE_USER, result(FIRST_CALL), result("toolu_7")),
        ]
    )
    calls, results = (content["parts"] for content in encoded(request)[0]["contents"])
    assert [part["functionCall"].get("id") for part in calls] == [None, "toolu_7"]
    assert [part["functionResponse"].get("id") for part in results] == [None, "toolu_7"]
    assert [part["functionResponse"]["name"] for part in results] == ["f", "g"]


@pytest.mark.parametrize(
    ("part", "response"),
    [
        (result("a", said("ok"), name="f"), {"output": "ok"}),
        (result("a", said("a"), said("b"), name="f"), {"output": ["a", "b"]}),
        (result("a", said("no"), name="f", failed=True), {"error": "no"}),
        (result("a", name="f"), {}),
        (result("a", name="f", structured_json='{"x": 1}'), {"x": 1}),
        (result("a", name="f", structured_json="[1]"), {"output": [1]}),
        (result("a", name="f", structured_json='{"x": 1}', failed=True), {"error": {"x": 1}}),
    ],
)
def test_a_tool_result_is_an_object(part: pb.Part, response: Json) -> None:
    """The caller's own where it is one, `output` or `error` around anything else."""
    (sent,), _ = sent_parts(part, role=pb.ROLE_USER)
    assert sent["functionResponse"] == {"name": "f", "id": "a", "response": response}


def test_media_in_a_tool_result_stand_beside_the_response() -> None:
    """As parts of the result."""
    image = pb.Part(media=pb.Media(mime_type="image/png", data=b"image"))
    (sent,), _ = sent_parts(result("a", said("ok"), image, name="f"), role=pb.ROLE_USER)
    assert sent["functionResponse"]["parts"] == [{"inlineData": {"mimeType": "image/png", "data": "aW1hZ2U="}}]
    assert sent["functionResponse"]["response"] == {"output": "ok"}


def test_a_result_of_a_tool_without_name_is_refused() -> None:
    """The vendor matches by name."""
    with pytest.raises(UnsupportedParameter):
        sent_parts(result("a"), role=pb.ROLE_USER)


@pytest.mark.parametrize(
    ("media", "sent"),
    [
        (pb.Media(mime_type="a/b", data=b"x"), {"inlineData": {"mimeType": "a/b", "data": "eA=="}}),
        (pb.Media(uri="gs://bucket/a"), {"fileData": {"fileUri": "gs://bucket/a"}}),
        (
            pb.Media(mime_type="a/b", file=pb.FileRef(issuer="gemini", id="files/7")),
            {
                "fileData": {
                    "mimeType": "a/b",
                    "fileUri": "https://generativelanguage.googleapis.com/v1beta/files/7",
                }
            },
        ),
        (
            pb.Media(uri="https://a.example", detail="high"),
            {"fileData": {"fileUri": "https://a.example"}, "mediaResolution": {"level": "MEDIA_RESOLUTION_HIGH"}},
        ),
    ],
)
def test_media_go_by_value_or_by_address(media: pb.Media, sent: Json) -> None:
    """And at the resolution that was asked for."""
    assert sent_parts(pb.Part(media=media), role=pb.ROLE_USER) == ([sent], [])


def test_a_file_of_another_vendor_is_refused() -> None:
    """Nobody but its issuer can read it."""
    media = pb.Media(file=pb.FileRef(issuer="openai", id="file-1"))
    with pytest.raises(UnsupportedParameter):
        sent_parts(pb.Part(media=media), role=pb.ROLE_USER)


def test_extras_are_merged_into_the_vendor_s_own_objects() -> None:
    """Those of an answer's candidate, which a caller may hand back with its message, are not a content's."""
    part = pb.Part(text="a", provider_metadata={"gemini": '{"videoMetadata":{"fps":2}}', "openai": '{"x":1}'})
    message = turn(pb.ROLE_USER, part, provider_metadata={"gemini": '{"groundingMetadata":{},"extra":1}'})
    tool = pb.Tool(function=pb.FunctionTool(name="f"), provider_metadata={"gemini": '{"behavior":"BLOCKING"}'})
    body, _ = encoded(pb.GenerateRequest(messages=[message], tools=[tool]))
    assert body["contents"] == [{"role": "user", "parts": [{"text": "a", "videoMetadata": {"fps": 2}}], "extra": 1}]
    assert body["tools"] == [{"functionDeclarations": [{"name": "f", "behavior": "BLOCKING"}]}]


def test_provider_options_have_the_last_word() -> None:
    """As JSON Merge Patch; those of other issuers do not reach this one."""
    request = pb.GenerateRequest(
        messages=[turn(pb.ROLE_USER, said("Hi"))],
        config=pb.GenerationConfig(temperature=0.5, seed=7),
        provider_options={
            "gemini": '{"safetySettings":[{"category":"C"}],"generationConfig":{"seed":null,"topP":0.1}}',
            "vertex": '{"labels":{}}',
        },
    )
    body, _ = encoded(request)
    assert body["generationConfig"] == {"temperature": 0.5, "topP": 0.1}
    assert body["safetySettings"] == [{"category": "C"}]
    assert "labels" not in body


def choice(**fields: Any) -> Any:
    """The function calling mode for a tool choice among two functions."""
    strict = fields.pop("strict", None)
    request = pb.GenerateRequest(
        messages=[turn(pb.ROLE_USER, said("Hi"))],
        tools=[pb.Tool(function=pb.FunctionTool(name=name, strict=strict)) for name in ("f", "g")],
        tool_choice=pb.ToolChoice(**fields),
    )
    return encoded(request)[0].get("toolConfig", {}).get("functionCallingConfig")


def test_tool_choice_is_the_function_calling_mode() -> None:
    """Allowed names and strict schemas need VALIDATED where AUTO would not keep them."""
    auto, none, required = pb.TOOL_CHOICE_MODE_AUTO, pb.TOOL_CHOICE_MODE_NONE, pb.TOOL_CHOICE_MODE_REQUIRED
    assert choice() is None
    assert choice(mode=auto) == {"mode": "AUTO"}
    assert choice(mode=none, allowed_tools=["f"]) == {"mode": "NONE"}
    assert choice(mode=required, allowed_tools=["f"]) == {"mode": "ANY", "allowedFunctionNames": ["f"]}
    assert choice(mode=auto, allowed_tools=["f"]) == {"mode": "VALIDATED", "allowedFunctionNames": ["f"]}
    assert choice(strict=True) == {"mode": "VALIDATED"}
    assert choice(mode=required, strict=True) == {"mode": "ANY"}


def test_schemas_in_google_s_dialect_go_where_google_reads_it() -> None:
    """Known by the upper case of the type; every other schema is JSON Schema."""

    def members(schema: str) -> tuple[set[str], set[str]]:
        request = pb.GenerateRequest(
            messages=[turn(pb.ROLE_USER, said("Hi"))],
            tools=[pb.Tool(function=pb.FunctionTool(name="f", parameters_schema=schema))],
            config=pb.GenerationConfig(
                response_format=pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, schema=schema)
            ),
        )
        body, _ = encoded(request)
        return body["tools"][0]["functionDeclarations"][0].keys(), body["generationConfig"].keys()

    assert members('{"type":"OBJECT"}') == ({"name", "parameters"}, {"responseMimeType", "responseSchema"})
    for schema in ('{"type":"object"}', '{"$ref":"#/$defs/a"}', '{"type":["object","null"]}'):
        assert members(schema) == ({"name", "parametersJsonSchema"}, {"responseMimeType", "responseJsonSchema"})


@pytest.mark.parametrize(
    ("model", "reasoning", "sent", "warned"),
    [
        ("gemini-3-pro", {"effort": "low"}, {"thinkingLevel": "LOW"}, False),
        ("gemini-3-pro", {"effort": "max"}, {"thinkingLevel": "XHIGH"}, True),
        ("gemini-2.5-pro", {"effort": "medium"}, {"thinkingBudget": 8192}, False),
        ("gemini-2.5-pro", {"effort": "xhigh"}, {"thinkingBudget": 24576}, True),
        ("gemini-2.5-pro", {"budget_tokens": -1}, {"thinkingBudget": -1}, False),
        ("gemini-3-pro", {"budget_tokens": 9, "effort": "low"}, {"thinkingBudget": 9}, True),
        ("gemini-2.5-flash", {"enabled": False}, {"thinkingBudget": 0}, False),
        ("gemini-2.5-flash", {"enabled": True}, {"thinkingBudget": -1}, False),
        ("gemini-3-flash", {"effort": "none"}, {"thinkingBudget": 0}, False),
        ("gemini-3-pro", {"visibility": pb.REASONING_VISIBILITY_FULL}, {"includeThoughts": True}, False),
        ("gemini-3-pro", {"visibility": pb.REASONING_VISIBILITY_NONE}, {"includeThoughts": False}, False),
    ],
)
def test_reasoning_is_a_level_or_a_budget(model: str, reasoning: Json, sent: Json, *, warned: bool) -> None:
    """As the model's family wants it; never both."""
    request = pb.GenerateRequest(messages=[turn(pb.ROLE_USER, said("Hi"))], reasoning=pb.ReasoningConfig(**reasoning))
    body, fields = encoded(request, target(model))
    assert body["generationConfig"]["thinkingConfig"] == sent
    assert fields == (["reasoning.effort"] if warned else [])


LOST = {
    "end_user_id": pb.GenerateRequest(end_user_id="u"),
    "prompt_cache_key": pb.GenerateRequest(prompt_cache_key="k"),
    "config.logit_bias": pb.GenerateRequest(config=pb.GenerationConfig(logit_bias={1: 1.0})),
    "config.verbosity": pb.GenerateRequest(config=pb.GenerationConfig(verbosity="low")),
    "tool_choice.parallel_calls": pb.GenerateRequest(tool_choice=pb.ToolChoice(parallel_calls=False)),
    "config.response_format.strict": pb.GenerateRequest(
        config=pb.GenerationConfig(
            response_format=pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, schema="{}", strict=False)
        )
    ),
    "messages[0].name": pb.GenerateRequest(messages=[turn(pb.ROLE_USER, said("a"), name="Ann")]),
    "messages[0].parts[0].cache_breakpoint": pb.GenerateRequest(
        messages=[turn(pb.ROLE_USER, pb.Part(text="a", cache_breakpoint=pb.CacheBreakpoint(ttl=Duration(seconds=300))))]
    ),
    "messages[0].parts[0].media": pb.GenerateRequest(
        messages=[turn(pb.ROLE_USER, pb.Part(media=pb.Media(uri="https://a.example", title="A")))]
    ),
}


@pytest.mark.parametrize("field", LOST)
def test_a_setting_that_gemini_does_not_have_is_told_or_refused(field: str) -> None:
    """Never dropped silently."""
    request = pb.GenerateRequest()
    request.CopyFrom(LOST[field])
    assert encoded(request)[1] == [field]
    request.routing.unsupported_policy = pb.UNSUPPORTED_POLICY_REJECT
    with pytest.raises(UnsupportedParameter) as refused:
        encoded(request)
    assert refused.value.violations[0].field == field


@pytest.mark.parametrize(
    "tool",
    [
        pb.Tool(free_text=pb.FreeTextTool(name="f")),
        pb.Tool(provider=pb.ProviderTool(issuer="openai", type="web_search")),
    ],
)
def test_tools_that_gemini_does_not_have_are_refused(tool: pb.Tool) -> None:
    """Another target may have them."""
    with pytest.raises(UnsupportedParameter):
        encoded(pb.GenerateRequest(messages=[turn(pb.ROLE_USER, said("Hi"))], tools=[tool]))


def test_arguments_that_are_no_object_are_refused() -> None:
    """The vendor would refuse the whole conversation."""
    with pytest.raises(InvalidRequest):
        sent_parts(called("a", arguments="[1]"))


def test_hosted_tools_stand_beside_functions() -> None:
    """Each in an object of its own, in the caller's order; one that is not allowed cannot be taken away."""
    request = pb.GenerateRequest(
        messages=[turn(pb.ROLE_USER, said("Hi"))],
        tools=[
            pb.Tool(function=pb.FunctionTool(name="f")),
            pb.Tool(provider=pb.ProviderTool(issuer="gemini", type="googleSearch")),
            pb.Tool(provider=pb.ProviderTool(issuer="gemini", type="googleMaps", config_json='{"enableWidget":true}')),
            pb.Tool(function=pb.FunctionTool(name="g")),
        ],
        tool_choice=pb.ToolChoice(allowed_tools=["g", "googleSearch"]),
    )
    body, warned = encoded(request)
    assert body["tools"] == [
        {"functionDeclarations": [{"name": "f"}]},
        {"googleSearch": {}},
        {"googleMaps": {"enableWidget": True}},
        {"functionDeclarations": [{"name": "g"}]},
    ]
    assert body["toolConfig"]["functionCallingConfig"]["allowedFunctionNames"] == ["g"]
    assert warned == ["tool_choice.allowed_tools[1]"]


def test_embeddings_are_a_batch_at_gemini_and_by_the_model_at_vertex() -> None:
    """With task and dimensions in the words of each call, and media where the model reads them."""
    image = pb.Part(media=pb.Media(mime_type="image/png", data=b"image"))
    request = pb.EmbedRequest(
        inputs=[pb.EmbedInput(text="a"), pb.EmbedInput(content=pb.EmbedContent(parts=[said("b"), image]))],
        dimensions=8,
        task_type="retrieval-query",
        provider_options={"gemini": '{"title":"T"}', "vertex": '{"autoTruncate":false}'},
    )
    batch = json.loads(gemini.encode_embed(request, request.inputs, target("embedding-9")).body)
    assert batch["requests"][0] == {
        "model": "models/embedding-9",
        "content": {"parts": [{"text": "a"}]},
        "taskType": "RETRIEVAL_QUERY",
        "outputDimensionality": 8,
        "title": "T",
    }
    inline = {"inlineData": {"mimeType": "image/png", "data": "aW1hZ2U="}}
    assert batch["requests"][1]["content"] == {"parts": [{"text": "b"}, inline]}
    text_model = target("text-embedding-005", "vertex")
    predict = vertex.encode_embed(request, request.inputs[:1], text_model)
    assert predict.path == "/publishers/google/models/text-embedding-005:predict"
    assert json.loads(predict.body) == {
        "instances": [{"content": "a", "task_type": "RETRIEVAL_QUERY"}],
        "parameters": {"outputDimensionality": 8},
        "autoTruncate": False,
    }
    with pytest.raises(UnsupportedParameter):
        vertex.encode_embed(request, request.inputs, text_model)
    with pytest.raises(UnsupportedParameter):
        vertex.encode_embed(request, request.inputs, target("gemini-embedding-2", "vertex"))


def test_an_end_user_is_told_of_once_whatever_the_number_of_inputs() -> None:
    """Google has no field for it."""
    request = pb.EmbedRequest(inputs=[pb.EmbedInput(text="a"), pb.EmbedInput(text="b")], end_user_id="u")
    call = gemini.encode_embed(request, request.inputs, target())
    assert [warning.field for warning in call.warnings] == ["end_user_id"]


def test_token_ids_are_refused() -> None:
    """Google embeds text and media."""
    request = pb.EmbedRequest(inputs=[pb.EmbedInput(token_ids=pb.TokenIds(values=[1]))])
    with pytest.raises(UnsupportedParameter):
        gemini.encode_embed(request, request.inputs, target())
