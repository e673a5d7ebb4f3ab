"""What was said in a call, where the configuration wants it kept: redacted by field, cut to a size."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message
from headgate import v1 as pb

from headgate_server.config import LedgerContent
from headgate_server.limits.estimate import Request
from headgate_server.telemetry.content import Transcript


class Content:
    """The transcript of one call, as far as `policy` keeps it."""

    def __init__(self, policy: LedgerContent, request: Request) -> None:
        redacted = frozenset(policy.redact)
        self._request = request
        self._prompt = Transcript(policy.limit, redacted) if policy.prompts else None
        self._answer = Transcript(policy.limit, redacted) if policy.answers else None

    def replied(self, message: Message) -> None:
        """A message goes to the caller: a whole answer, or an event of one."""
        if self._answer is None:
            return
        match message:
            case pb.StreamGenerateResponse():
                self._answer.feed(message)
            case pb.GenerateResponse():
                self._answer.add_answer(message)

    def row(self, call_id: str, time: str) -> tuple[Any, ...]:
        """As the table of contents has it."""
        if self._prompt and isinstance(self._request, pb.GenerateRequest):
            self._prompt.add(self._request.messages)
        elif self._prompt and isinstance(self._request, pb.EmbedRequest):
            self._prompt.add(_inputs(self._request))
        return (call_id, time, _json(self._prompt), _json(self._answer))


def _inputs(request: pb.EmbedRequest) -> list[pb.Message]:
    return [
        pb.Message(role=pb.ROLE_USER, parts=given.content.parts or [pb.Part(text=given.text)])
        for given in request.inputs
    ]


def _json(transcript: Transcript | None) -> str:
    return transcript.json() if transcript else ""
