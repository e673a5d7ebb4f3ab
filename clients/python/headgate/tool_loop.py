"""Rounds of asking a model and answering its tool calls: every decision, and no I/O."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from headgate import v1 as pb
from headgate.answer import Answer
from headgate.errors import TooManyRounds
from headgate.tools import Tool, failed_result, is_async, result_of

MAX_ROUNDS = 10
_READY = {pb.FINISH_REASON_TOOL_CALLS, pb.FINISH_REASON_STOP, pb.FINISH_REASON_OTHER, pb.FINISH_REASON_UNSPECIFIED}


@dataclass(frozen=True, slots=True)
class ToolRun:
    """A conversation that has come to its last answer: `answers` are those of all rounds, each with its usage."""

    messages: Sequence[pb.Message]
    answers: Sequence[Answer]

    @property
    def answer(self) -> Answer:
        """The last answer."""
        return self.answers[-1]

    @property
    def text(self) -> str:
        """The text of the last answer."""
        return self.answer.text


class ToolLoop:
    """The state of a tool loop; for loops of your own, such as over streams:

        loop = ToolLoop(request, tools)
        while not loop.done:
            with client.stream(loop.request) as stream:
                loop.add_answer(stream.final())
            loop.add_results([result_of(call, ...) for call in loop.calls])

    `request` is what to send next, `calls` are those to be answered before it. Answers go into the history as they
    came, so that signatures and reasoning go back byte for byte.
    """

    def __init__(self, request: pb.GenerateRequest, tools: Sequence[Tool], max_rounds: int = MAX_ROUNDS) -> None:
        self.request: pb.GenerateRequest = pb.GenerateRequest()
        self.request.CopyFrom(request)
        self.calls: list[pb.ToolCall] = []
        self.done: bool = False
        self._tools = {tool.name: tool for tool in tools}
        self._answers: list[Answer] = []
        self._max_rounds = max_rounds

    @property
    def run(self) -> ToolRun:
        """What there is so far."""
        return ToolRun(list(self.request.messages), list(self._answers))

    def add_answer(self, answer: Answer) -> None:
        """Takes a round's answer.

        Raises:
            TooManyRounds: it needs another round, and this was the last.
        """
        self._answers.append(answer)
        self.request.messages.append(answer.message)
        self.calls = self._runnable(answer)
        self.done = not self.calls and answer.finish_reason != pb.FINISH_REASON_PAUSE
        if not self.done and len(self._answers) >= self._max_rounds:
            raise TooManyRounds(f"the model still calls tools after {self._max_rounds} rounds", self.request.messages)

    def add_results(self, results: Sequence[pb.Part]) -> None:
        """Takes the results of `calls`; none after a pause of the vendor."""
        if results:
            self.request.messages.append(pb.Message(role=pb.ROLE_TOOL, parts=results))
            if self.request.tool_choice.mode == pb.TOOL_CHOICE_MODE_REQUIRED:
                self.request.tool_choice.mode = pb.TOOL_CHOICE_MODE_AUTO  # or the model could never answer
        self.calls = []

    def _runnable(self, answer: Answer) -> list[pb.ToolCall]:
        """The calls to answer: all or none, because a vendor wants a result for each."""
        if answer.finish_reason not in _READY or any(part.incomplete for part in answer.message.parts):
            return []
        calls = [call for call in answer.tool_calls if call.kind != pb.TOOL_CALL_KIND_PROVIDER_EXECUTED]
        return calls if all(self._is_ours(call) for call in calls) else []

    def _is_ours(self, call: pb.ToolCall) -> bool:
        """Whether the loop answers a call: by the tool's function, or that there is no tool of the name."""
        tool = self._tools.get(call.name)
        return tool is None or tool.function is not None

    def answer_all(self) -> None:
        """Runs `calls` at the same time, each in a thread."""
        with ThreadPoolExecutor(max(1, len(self.calls))) as threads:
            runs = [threads.submit(contextvars.copy_context().run, self._answer, call) for call in self.calls]
            self.add_results([run.result() for run in runs])

    async def answer_all_async(self) -> None:
        """Runs `calls` at the same time, sync functions in threads."""
        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(self._answer_async(call)) for call in self.calls]
        self.add_results([run.result() for run in runs])

    def _answer(self, call: pb.ToolCall) -> pb.Part:
        tool = self._tools.get(call.name)
        if tool is None or tool.function is None:
            return failed_result(call, f"there is no tool {call.name!r}")
        try:
            return result_of(call, tool.call(call))
        except Exception as error:
            return failed_result(call, f"{type(error).__name__}: {error}")

    async def _answer_async(self, call: pb.ToolCall) -> pb.Part:
        tool = self._tools.get(call.name)
        if tool is None or tool.function is None or not is_async(tool.function):
            return await asyncio.to_thread(self._answer, call)
        try:
            return result_of(call, await tool.call(call))
        except Exception as error:
            return failed_result(call, f"{type(error).__name__}: {error}")
