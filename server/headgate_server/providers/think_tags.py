"""Thinking that a host writes into the text, between <think> and </think> at its start."""

from __future__ import annotations

from enum import Enum, auto

OPENING = "<think>"
CLOSING = "</think>"


class _Where(Enum):
    BEFORE = auto()
    INSIDE = auto()
    AFTER = auto()


class ThinkTags:
    """Splits one candidate's text, however it is cut into chunks. Tags later in the text are text."""

    def __init__(self) -> None:
        self._where = _Where.BEFORE
        self._held = ""
        self._text_began = False

    def feed(self, chunk: str) -> list[tuple[bool, str]]:
        """The pieces that are settled, in order; True marks thinking."""
        if self._where is _Where.AFTER:
            return self._text(chunk)
        self._held += chunk
        if self._where is _Where.BEFORE:
            start = self._held.lstrip()
            if OPENING.startswith(start[: len(OPENING)]) and len(start) < len(OPENING):
                return []
            if not start.startswith(OPENING):
                self._where = _Where.AFTER
                self._text_began = True
                return self.end()
            self._where = _Where.INSIDE
            self._held = start.removeprefix(OPENING)
        thought, closing, rest = self._held.partition(CLOSING)
        if closing:
            self._where = _Where.AFTER
            self._held = ""
            return [*_piece(True, thought), *self._text(rest)]
        keep = _beginning_of_tag(self._held)
        thought, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return _piece(True, thought)

    def end(self) -> list[tuple[bool, str]]:
        """What was held back, now that no more comes."""
        held, self._held = self._held, ""
        return _piece(self._where is _Where.INSIDE, held)

    def _text(self, chunk: str) -> list[tuple[bool, str]]:
        """Text after the thinking, without the blank lines between them."""
        if not self._text_began:
            chunk = chunk.lstrip("\n")
            self._text_began = bool(chunk)
        return _piece(False, chunk)


def _piece(is_thought: bool, text: str) -> list[tuple[bool, str]]:
    return [(is_thought, text)] if text else []


def _beginning_of_tag(text: str) -> int:
    """How many characters at the end may be the beginning of the closing tag."""
    for length in range(min(len(CLOSING) - 1, len(text)), 0, -1):
        if CLOSING.startswith(text[-length:]):
            return length
    return 0
