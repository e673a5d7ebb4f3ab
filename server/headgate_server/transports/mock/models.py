"""The mock's models: pure functions of what is asked, with the same answer every time."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import msgspec

from headgate_server.transports.mock.schemas import example

MAX_WORDS = 10_000
LOREM = (
    "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore "
    "magna aliqua enim ad minim veniam quis nostrud exercitation ullamco laboris nisi aliquip ex ea commodo consequat"
)

_TOKEN = re.compile(r"\s*\S+|\s+")


class ContentPart(msgspec.Struct):
    """A part of a message; only text is read."""

    type: str
    text: str = ""


class Message(msgspec.Struct):
    """One message of the conversation."""

    role: str
    content: str | list[ContentPart] | None = None

    def text(self) -> str:
        """What it says, without media."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ToolDefinition(msgspec.Struct):
    """What a tool is called and takes."""

    name: str
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct):
    """A tool that is offered, or named in a choice: of type `function`, or `custom` with free text."""

    type: str
    function: ToolDefinition | None = None
    custom: ToolDefinition | None = None
    allowed_tools: AllowedTools | None = None

    @property
    def name(self) -> str:
        definition = self.function or self.custom
        return definition.name if definition else ""


class AllowedTools(msgspec.Struct):
    """The tools that a choice leaves."""

    tools: list[Tool]


class StreamOptions(msgspec.Struct):
    """What a stream holds besides content."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct):
    """The fields of a chat completion request that the mock reads."""

    model: str
    messages: list[Message]
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: list[Tool] = []
    tool_choice: str | Tool | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens of the answer, by either of OpenAI's names."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stop_sequences(self) -> list[str]:
        """Texts before which the answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def last_user_text(self) -> str:
        """What the user said last."""
        return next((message.text() for message in reversed(self.messages) if message.role == "user"), "")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool: `arguments` are JSON text, or any text when `free_text`."""

    name: str
    arguments: str
    free_text: bool = False


Reply = str | ToolCall


def echo(request: ChatRequest, words: int) -> Reply:
    """The text of the user's last message."""
    return request.last_user_text()


def lorem(request: ChatRequest, words: int) -> Reply:
    """So many words; or, if the request has a limit, one more than that, so that it is met."""
    wanted = words if request.token_limit is None else min(request.token_limit + 1, MAX_WORDS)
    return " ".join(islice(cycle(LOREM.split()), wanted))


def tools(request: ChatRequest, words: int) -> Reply:
    """A call of the first tool that may be called; once a tool has answered, a text that quotes its result."""
    last = request.messages[-1]
    if last.role == "tool":
        return f"The tool answered: {last.text()}"
    tool = _tool_to_call(request)
    if tool and tool.custom:
        return ToolCall(tool.name, request.last_user_text(), free_text=True)
    if tool and tool.function:
        arguments = example(tool.function.parameters or {"type": "object"})
        return ToolCall(tool.name, json.dumps(arguments, separators=(",", ":")))
    return "There is no tool to call."


CHAT_MODELS: Mapping[str, Callable[[ChatRequest, int], Reply]] = {"echo": echo, "lorem": lorem, "tools": tools}
EMBEDDING_MODELS = frozenset({"embed"})


def tokens(text: str) -> list[str]:
    """The text in pieces of about a word, which joined give it again."""
    return _TOKEN.findall(text)


def unit_vector(content: bytes, dimensions: int) -> list[float]:
    """A vector of length 1 that depends on every byte of `content`."""
    digest = hashlib.shake_256(content).digest(4 * dimensions)
    numbers = struct.unpack(f"<{dimensions}i", digest)
    length = math.hypot(*numbers)
    return [number / length for number in numbers]


def _tool_to_call(request: ChatRequest) -> Tool | None:
    choice = request.tool_choice
    if choice == "none":
        return None
    if not isinstance(choice, Tool):
        return next(iter(request.tools), None)
    allowed = choice.allowed_tools.tools if choice.allowed_tools else [choice]
    names = {tool.name for tool in allowed}
    return next((tool for tool in request.tools if tool.name in names), None)
