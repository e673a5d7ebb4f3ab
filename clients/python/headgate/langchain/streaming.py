"""Events of a stream as LangChain's chunks, which add up to the whole message."""

from __future__ import annotations

from typing import Any

from headgate import v1 as pb
from headgate.answer import Answer
from headgate.frameworks import keep
from headgate.langchain.messages import metadata, usage
from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk


class Chunks:
    """The state of one stream. Only the first candidate is streamed.

    Text comes as plain strings until there is content of another kind; from then on all content comes as blocks, by the
    index of their part.
    """

    def __init__(self) -> None:
        self._as_blocks = False

    def chunk(self, event: pb.StreamGenerateResponse) -> ChatGenerationChunk | None:
        """What an event adds; None when LangChain has no word for it."""
        if event.candidate_index:
            return None
        index = event.part_index
        match event.WhichOneof("event"):
            case "part_start":
                return self._start(event.part_start.part, index)
            case "text_delta":
                return self._text(event.text_delta, index)
            case "reasoning_delta":
                return self._block({"type": "reasoning", "reasoning": event.reasoning_delta, "index": index})
            case "refusal_delta":
                return self._block({"type": "refusal", "refusal": event.refusal_delta, "index": index})
            case "arguments_delta":
                return _calls(tool_call_chunk(args=event.arguments_delta, index=index))
        return None

    def last(self, answer: Answer) -> ChatGenerationChunk:
        """What is known at the end: usage, how it ended, and the message as it goes back."""
        response = answer.proto
        candidate = response.candidates[0] if response.candidates else pb.Candidate()
        message = AIMessageChunk(
            content="",
            additional_kwargs=dict(keep(answer.message)),
            response_metadata=metadata(candidate, response),
            usage_metadata=usage(response.usage) if response.HasField("usage") else None,
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message, generation_info=dict(message.response_metadata))

    def _start(self, part: pb.Part, index: int) -> ChatGenerationChunk | None:
        match part.WhichOneof("content"):
            case "text" if part.text:
                return self._text(part.text, index)
            case "reasoning" if part.reasoning.text:
                return self._block({"type": "reasoning", "reasoning": part.reasoning.text, "index": index})
            case "tool_call" if part.tool_call.kind != pb.TOOL_CALL_KIND_PROVIDER_EXECUTED:
                call = part.tool_call
                return _calls(tool_call_chunk(name=call.name, args=call.arguments, id=call.id, index=index))
        return None

    def _text(self, text: str, index: int) -> ChatGenerationChunk:
        if self._as_blocks:
            return self._block({"type": "text", "text": text, "index": index})
        return ChatGenerationChunk(message=AIMessageChunk(content=text))

    def _block(self, block: dict[str, Any]) -> ChatGenerationChunk:
        self._as_blocks = True
        return ChatGenerationChunk(message=AIMessageChunk(content=[block]))


def _calls(chunk: Any) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[chunk]))
