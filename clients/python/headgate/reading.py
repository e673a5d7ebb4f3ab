"""How far a stream has been read: what both clients' streams decide, and no I/O."""

from __future__ import annotations

from grpc import RpcError
from headgate import v1 as pb
from headgate.answer import Answer
from headgate.errors import CallCancelled, CallFailed, StreamInterrupted, failure
from headgate.fold import fold, is_complete


class Reading:
    """The events of a stream so far, and how it ended: in full, by a failure, or because it was left."""

    def __init__(self, request_id: str) -> None:
        self.events: list[pb.StreamGenerateResponse] = []
        self.request_id = request_id
        self._ended = False
        self._left = False
        self._failure: CallFailed | None = None
        self._answer: Answer | None = None

    def ended(self) -> bool:
        """Whether everything has come; raises what the stream failed with, if it did."""
        if self._left and not self._failure:
            self._failure = CallCancelled("the stream was left", request_id=self.request_id, partial=self._partial())
        if self._failure:
            raise self._failure
        return self._ended

    def end(self) -> None:
        """Takes the end of the stream with status OK; raises StreamInterrupted if the answer is not whole."""
        if not is_complete(self.events):
            self._failure = StreamInterrupted(
                "the stream ended before its answer", request_id=self.request_id, partial=self._partial()
            )
            raise self._failure
        self._ended = True

    def fail(self, error: RpcError) -> CallFailed:
        """The failure that gRPC's error stands for, with what had come."""
        self._failure = failure(error, self.request_id, self._partial())
        return self._failure

    def leave(self) -> bool:
        """Takes that nobody reads on; whether there was more to read."""
        self._left = not (self._ended or self._failure)
        return self._left

    def answer(self) -> Answer:
        """The answer, once the stream has ended."""
        if self._answer is None:
            self._answer = Answer(fold(self.events), self.request_id)
        return self._answer

    def _partial(self) -> Answer | None:
        return Answer(fold(self.events), self.request_id) if self.events else None
