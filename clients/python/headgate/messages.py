"""What a conversation may be given as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from headgate import v1 as pb
from headgate.answer import Answer
from headgate.content import user

MessageLike: TypeAlias = str | pb.Message | Answer | Mapping[str, Any]
"""Text is a user's turn, an answer goes back as it came, a dict is in the shape of OpenAI's Chat Completions."""

Messages: TypeAlias = MessageLike | Sequence[MessageLike]
"""One message or a list of them, of any kind, mixed."""


def read_messages(messages: Messages) -> list[pb.Message]:
    """The messages of the contract.

    Raises:
        TypeError: something is no message.
        ValueError: a dict has what OpenAI's shape has not, or what the contract cannot say; the text names its place.
    """
    if isinstance(messages, str):
        return [user(messages)]
    if isinstance(messages, pb.Message | Answer | Mapping):
        messages = [messages]
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: MessageLike, place: str) -> pb.Message:
    match message:
        case str():
            return user(message)
        case pb.Message():
            return message
        case Answer():
            return message.message
        case Mapping():
            from headgate.openai_messages import read_message

            return read_message(message, place)
    hint = ": put parts into user(...)" if isinstance(message, pb.Part) else ""
    raise TypeError(f"{place}: {type(message).__name__} is no message{hint}")
