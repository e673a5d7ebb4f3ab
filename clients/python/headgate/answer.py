"""An answer, and what is mostly asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from headgate import v1 as pb
from headgate.errors import InvalidOutput

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered: `proto` is all of it, the properties read the first candidate.

    Put it back into `messages` as it is: it goes as `message`, with reasoning and signatures byte for byte.
    """

    proto: pb.GenerateResponse
    request_id: str = ""

    @property
    def message(self) -> pb.Message:
        """The turn of the model, ready to go back as history; empty when there is no candidate."""
        return self._candidate.message

    @property
    def text(self) -> str:
        """All text, without reasoning; empty when the model only calls tools."""
        return "".join(part.text for part in self.message.parts)

    @property
    def reasoning(self) -> str:
        """The readable thinking."""
        return "".join(part.reasoning.text for part in self.message.parts)

    @property
    def refusal(self) -> str:
        """The words in which the model refuses; mostly empty."""
        return "".join(part.refusal for part in self.message.parts)

    @property
    def tool_calls(self) -> list[pb.ToolCall]:
        """The calls that the model makes, those of hosted tools included; arguments are JSON text."""
        return [part.tool_call for part in self.message.parts if part.HasField("tool_call")]

    @property
    def finish_reason(self) -> pb.FinishReason.ValueType:
        """Why the model stopped: `pb.FINISH_REASON_STOP`, a limit, a refusal, a content filter, …"""
        return self._candidate.finish.reason

    @property
    def usage(self) -> pb.Usage:
        """Tokens. `input_tokens` and `output_tokens` are wholes of which all others are parts; absent is unknown."""
        return self.proto.usage

    @property
    def cost(self) -> pb.Cost | None:
        """The price in 1e-9 of a currency unit; None when it is not known."""
        return self.proto.cost if self.proto.HasField("cost") else None

    @property
    def model(self) -> str:
        """The model that answered, as the vendor names it."""
        return self.proto.model

    @property
    def provider(self) -> str:
        """The configured provider that answered."""
        return self.proto.provider

    @property
    def warnings(self) -> Sequence[pb.Warning]:
        """Settings that were dropped or changed."""
        return self.proto.warnings

    def parse(self, kind: type[T]) -> T:
        """The text as JSON of this type: a pydantic model, dataclass, TypedDict, or any type `response_format` takes.

        Raises:
            InvalidOutput: the text is not that, because it was cut off, refused, or is against the schema.
        """
        from headgate.schemas import parsed

        if self.finish_reason not in _WHOLE:
            reason = pb.FinishReason.Name(self.finish_reason).removeprefix("FINISH_REASON_")
            raise InvalidOutput(f"the answer ended by {reason}", self)
        try:
            return parsed(kind, self.text)
        except ValueError as error:
            raise InvalidOutput(f"the answer is no {getattr(kind, '__name__', kind)}: {error}", self) from error

    @property
    def _candidate(self) -> pb.Candidate:
        return self.proto.candidates[0] if self.proto.candidates else pb.Candidate()


_WHOLE = {pb.FINISH_REASON_UNSPECIFIED, pb.FINISH_REASON_STOP, pb.FINISH_REASON_OTHER, pb.FINISH_REASON_TOOL_CALLS}
