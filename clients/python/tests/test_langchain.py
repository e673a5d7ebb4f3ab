"""ChatHeadgate and HeadgateEmbeddings pass LangChain's own suites, and keep what LangChain has no word for."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

import pytest
from headgate import v1 as pb
from headgate.langchain import ChatHeadgate, HeadgateEmbeddings
from headgate.testing import Reply, ScriptedServer
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests


def obliging(request: Any) -> Reply:
    """A model that does what LangChain's suite asks for: calls tools, fills in schemas, counts tokens."""
    if isinstance(request, pb.EmbedRequest):
        return Reply(dimensions=6)
    last = request.messages[-1]
    said = "".join(part.text for message in request.messages for part in message.parts if message.role == pb.ROLE_USER)
    if request.tools and last.role != pb.ROLE_TOOL and request.tool_choice.mode != pb.TOOL_CHOICE_MODE_NONE:
        wanted = request.tool_choice.allowed_tools[0] if request.tool_choice.allowed_tools else ""
        tool = next(t.function for t in request.tools if wanted in ("", t.function.name))
        arguments = json.dumps(example(json.loads(tool.parameters_schema or "{}"), said), ensure_ascii=False)
        call = pb.ToolCall(id="call_1", name=tool.name, arguments=arguments, kind=pb.TOOL_CALL_KIND_FUNCTION)
        return Reply(response=counted(Reply(tool_calls=[call]).unary(), request))
    form = request.config.response_format
    if form.schema:
        return Reply(text=json.dumps(example(json.loads(form.schema), said)))
    if form.type == pb.RESPONSE_FORMAT_TYPE_JSON:
        return Reply(text='{"setup": "Why?", "punchline": "Because."}')
    return Reply(response=counted(Reply(text="Hello there, my friend.").unary(), request))


def counted(response: pb.GenerateResponse, request: pb.GenerateRequest) -> pb.GenerateResponse:
    response.model = request.model
    response.usage.CopyFrom(pb.Usage(input_tokens=5, output_tokens=3, total_tokens=8, cache_read_tokens=2))
    return response


def example(schema: Any, said: str, root: Any = None) -> Any:
    """A value of the schema, with the numbers and quoted names that the user said."""
    root = root or schema
    if "$ref" in schema:
        return example(root["$defs"][schema["$ref"].rpartition("/")[2]], said, root)
    if "anyOf" in schema:
        return example(schema["anyOf"][0], said, root)
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {name: example(each, said, root) for name, each in schema.get("properties", {}).items()}
        case "array":
            return [example(schema.get("items", {}), said, root)]
        case "integer" | "number":
            return int(next(iter(re.findall(r"\d+", said)), 7))
        case "boolean":
            return True
    return next(iter(re.findall(r"'([^']+)'", said)), "你好啊集团")


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer({"*": obliging}) as server:
        yield server


@pytest.fixture(autouse=True)
def _address(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADGATE_ADDRESS", server.address)


class OfChatModels:
    """What both suites of chat models need to know."""

    @property
    def chat_model_class(self) -> type[ChatHeadgate]:
        return ChatHeadgate

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "fast"}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": 100, "timeout": 60, "stop": []}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "another"

    @property
    def has_tool_choice(self) -> bool:
        return True


class TestChatModelUnit(OfChatModels, ChatModelUnitTests):
    """LangChain's suite without calls."""

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment = {"HEADGATE_ADDRESS": "localhost:7", "HEADGATE_API_KEY": "hg_1"}
        return environment, {"model": "fast"}, {"address": "localhost:7", "api_key": "hg_1"}


class TestChatModel(OfChatModels, ChatModelIntegrationTests):
    """LangChain's suite with real calls. Its tests of media fetch files from the internet: ours are below."""


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    """LangChain's suite without calls."""

    @property
    def embeddings_class(self) -> type[HeadgateEmbeddings]:
        return HeadgateEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "embed"}


class TestEmbeddings(EmbeddingsIntegrationTests):
    """LangChain's suite with real calls."""

    @property
    def embeddings_class(self) -> type[HeadgateEmbeddings]:
        return HeadgateEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "embed"}


THINKING = pb.Message(
    role=pb.ROLE_ASSISTANT,
    parts=[
        pb.Part(reasoning=pb.Reasoning(text="Hm."), signature=b"sig\xff", issuer="anthropic"),
        pb.Part(text="Let me look."),
        pb.Part(tool_call=pb.ToolCall(id="1", name="look", arguments='{"a": 1.0}'), signature=b"s", issuer="gemini"),
    ],
)


@pytest.mark.parametrize("streamed", [False, True])
def test_what_langchain_has_no_word_for_goes_back_byte_for_byte(server: ScriptedServer, streamed: bool) -> None:
    """Signatures survive a round, also through LangChain's own JSON."""
    finish = pb.Finish(reason=pb.FINISH_REASON_TOOL_CALLS)
    server.script(
        "thinking", Reply(response=pb.GenerateResponse(candidates=[pb.Candidate(message=THINKING, finish=finish)]))
    )
    model = ChatHeadgate(model="thinking")
    if streamed:
        answer: AIMessage = reduce(add, model.stream("Hi"))
        assert isinstance(answer, AIMessageChunk)
    else:
        answer = model.invoke("Hi")
    assert [block["type"] for block in answer.content_blocks] == ["reasoning", "text", "tool_call"]
    stored = AIMessage.model_validate_json(AIMessage(**answer.model_dump(exclude={"type"})).model_dump_json())
    model.invoke([HumanMessage("Hi"), stored, ToolMessage("seen", tool_call_id="1", status="error")])
    sent = server.calls[-1].request.messages
    assert sent[1] == THINKING
    assert sent[2].parts[0].tool_result.failed


def test_an_answer_that_was_edited_goes_as_edited(server: ScriptedServer) -> None:
    """The kept original is used only while it says the same."""
    model = ChatHeadgate(model="fast")
    answer = model.invoke("Hi")
    edited = answer.model_copy(update={"content": "Something else."})
    model.invoke([HumanMessage("Hi"), edited])
    assert server.calls[-1].request.messages[1].parts[0].text == "Something else."


def test_settings_options_and_single_calls_go_out(server: ScriptedServer) -> None:
    """The call's own before the options, before the model's."""
    model = ChatHeadgate(
        model="fast", temperature=0.1, max_tokens=5, stop=["x"], options={"labels": {"a": "b"}, "top_k": 3}
    )
    model.invoke([SystemMessage("Be brief."), HumanMessage("Hi")], temperature=0.9)
    request = server.calls[-1].request
    config = pb.GenerationConfig(temperature=0.9, max_output_tokens=5, stop_sequences=["x"], top_k=3)
    assert request.config == config
    assert request.labels == {"a": "b"}
    assert request.messages[0].role == pb.ROLE_SYSTEM


def test_usage_has_its_parts() -> None:
    """Cached and reasoning tokens are parts of the wholes."""
    usage = ChatHeadgate(model="fast").invoke("Hi").usage_metadata
    assert usage == {
        "input_tokens": 5,
        "output_tokens": 3,
        "total_tokens": 8,
        "input_token_details": {"cache_read": 2},
    }


def test_leaving_a_stream_ends_the_call(server: ScriptedServer) -> None:
    """LangChain's own streams, too, are ended by leaving them."""
    server.script("slow", Reply(text=["a", "b"], hang=True))
    for chunk in ChatHeadgate(model="slow").stream("Hi"):
        if chunk.text:
            break
    del chunk
    assert server.calls[-1].wait() == "CANCELLED"


PNG = b"\x89PNG\r\n\x1a\n"
PNG_BASE64 = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "base64": PNG_BASE64, "mime_type": "image/png"},
        {"type": "image", "source_type": "base64", "data": PNG_BASE64, "mime_type": "image/png"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG_BASE64}"}},
    ],
)
def test_images_of_every_shape_that_langchain_knows_are_sent(server: ScriptedServer, block: dict[str, Any]) -> None:
    """From users and from tools."""
    call = AIMessage("", tool_calls=[{"id": "1", "name": "look", "args": {}}])
    ChatHeadgate(model="fast").invoke([HumanMessage(["See:", block]), call, ToolMessage([block], tool_call_id="1")])
    sent = server.calls[-1].request.messages
    image = pb.Part(media=pb.Media(kind=pb.MEDIA_KIND_IMAGE, mime_type="image/png", data=PNG))
    assert list(sent[0].parts) == [pb.Part(text="See:"), image]
    assert list(sent[2].parts[0].tool_result.parts) == [image]


def test_files_and_addresses_are_sent(server: ScriptedServer) -> None:
    """A PDF by value, a file at a vendor, an image by address."""
    pdf = {"type": "file", "base64": PNG_BASE64, "mime_type": "application/pdf", "extras": {"filename": "a.pdf"}}
    stored = {"type": "file", "file_id": "file-1"}
    ChatHeadgate(model="fast").invoke(
        [HumanMessage([pdf, stored, {"type": "image", "url": "https://example.com/a.png"}])]
    )
    document, reference, address = (part.media for part in server.calls[-1].request.messages[0].parts)
    assert (document.mime_type, document.filename, document.data) == ("application/pdf", "a.pdf", PNG)
    assert reference.file.id == "file-1"
    assert address.uri == "https://example.com/a.png"


def test_content_without_a_place_is_refused() -> None:
    """Nothing is dropped in silence."""
    with pytest.raises(ValueError, match="hologram"):
        ChatHeadgate(model="fast").invoke([HumanMessage([{"type": "hologram"}])])


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "url": __file__, "mime_type": "image/png"},
        {"type": "file", "url": __file__, "mime_type": "text/plain"},
        {"type": "image_url", "image_url": {"url": f"file://{__file__}"}},
    ],
)
def test_an_address_never_names_a_local_file(block: dict[str, Any]) -> None:
    """Messages come from users of the program, too: none of them may read its files."""
    with pytest.raises(ValueError, match="is no address"):
        ChatHeadgate(model="fast").invoke([HumanMessage([block])])


def test_a_key_does_not_print() -> None:
    """Nor do other secrets of the connection."""
    assert "hg_1" not in repr(ChatHeadgate(model="fast", api_key="hg_1", connection={"token": "hg_1"}))
