"""What goes to the screen. Nothing that a model or a server sent reaches a terminal as a control character."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from headgate import v1 as pb

from headgate_server.printing import printable


def warn(text: str) -> None:
    """One line on standard error."""
    print(printable(text), file=sys.stderr)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text, each as wide as its widest cell."""
    cells = [list(header), *([printable(cell).replace("\n", " ") for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def enum_name(name: str, prefix: str) -> str:
    """`FINISH_REASON_STOP` as `stop`."""
    return name.removeprefix(prefix).lower().replace("_", " ")


class AnswerPrinter:
    """Prints the first candidate of an answer: text as it comes, and each call of a tool on a line of its own."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._safe = printable if out.isatty() else str
        self._calls: dict[int, pb.ToolCall] = {}
        self._line_is_open = False

    def answer(self, response: pb.GenerateResponse) -> None:
        """A whole answer."""
        self._warn(response.warnings)
        for candidate in response.candidates[:1]:
            for part in candidate.message.parts:
                self._part(part)
            self._finish(candidate.finish)

    def event(self, event: pb.StreamGenerateResponse) -> None:
        """The next event of a stream."""
        if event.candidate_index:
            return
        match event.WhichOneof("event"):
            case "text_delta":
                self._text(event.text_delta)
            case "refusal_delta":
                self._text(event.refusal_delta)
            case "arguments_delta":
                self._calls[event.part_index].arguments += event.arguments_delta
            case "part_start" if event.part_start.part.HasField("tool_call") and not event.part_start.complete:
                self._calls[event.part_index] = event.part_start.part.tool_call
            case "part_start":
                self._part(event.part_start.part)
            case "part_end" if event.part_index in self._calls:
                self._call(self._calls.pop(event.part_index))
            case "generation_start":
                self._warn(event.generation_start.warnings)
            case "candidate_end":
                self._finish(event.candidate_end.finish)
            case "generation_end":
                self._warn(event.generation_end.warnings)

    def end_line(self) -> None:
        """Ends the line that text has left open."""
        if self._line_is_open:
            self._text("\n")

    def _part(self, part: pb.Part) -> None:
        match part.WhichOneof("content"):
            case "text":
                self._text(part.text)
            case "refusal":
                self._text(part.refusal)
            case "tool_call":
                self._call(part.tool_call)
            case "media":
                self._line(f"[{part.media.mime_type or 'media'}]")

    def _call(self, call: pb.ToolCall) -> None:
        self._line(f"{call.name}({call.arguments})")

    def _line(self, text: str) -> None:
        self.end_line()
        self._text(text + "\n")

    def _text(self, text: str) -> None:
        if text:
            self._out.write(self._safe(text))
            self._out.flush()
            self._line_is_open = not text.endswith("\n")

    def _finish(self, finish: pb.Finish) -> None:
        self.end_line()
        if finish.reason not in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_TOOL_CALLS):
            warn(f"finish: {enum_name(pb.FinishReason.Name(finish.reason), 'FINISH_REASON_')}")

    def _warn(self, warnings: Iterable[pb.Warning]) -> None:
        for warning in warnings:
            if warning.field == "cost":  # nobody who reads the text asked what it costs
                continue
            self.end_line()
            warn(": ".join(filter(None, ("warning", warning.field, warning.message))))
