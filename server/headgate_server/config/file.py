"""A configuration file: YAML text in, plain values out, each with the line it stands on.

Scalars stay text, and the configuration's own types give them meaning: `model: no` and `api_key: 0123` are what they
look like. `${NAME}` and `${NAME:-default}` are replaced inside parsed scalars, so that a value cannot inject YAML;
`$$` is a literal dollar sign.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

Key: TypeAlias = tuple[str | int, ...]

_REFERENCE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?:(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\})?)", re.ASCII)
_CORE = "tag:yaml.org,2002:"
_TAGS = {_CORE + name for name in ["bool", "float", "int", "map", "merge", "null", "seq", "str", "timestamp", "value"]}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: `file` says where it was read, `line` is counted from 1 (0: none), `key` is a dotted path."""

    file: str
    line: int
    key: str
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.key, self.reason) if part)


class ConfigError(Exception):
    """The configuration cannot be used. `problems` are all of them, and the text has one a line."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(slots=True)
class Document:
    """What was read: `values` are mappings, lists, text and None; `lines` are those of every key in them."""

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Key, int] = field(default_factory=dict)
    variables: dict[Key, str] = field(default_factory=dict)
    problems: dict[Key, Problem] = field(default_factory=dict)

    def section(self, name: str) -> dict[str, Any]:
        """The values under a root; empty when they are not a mapping, which the tree then reports."""
        values = self.values.get(name)
        return values if isinstance(values, dict) else {}

    def override(self, section: str, name: str, value: str, variable: str) -> None:
        """Puts the value of an environment variable in the place of what the file says."""
        if isinstance(self.values.get(section) or {}, dict):
            self.values[section] = {**self.section(section), name: value}
            self.variables[(section, name)] = variable

    def report(self, key: Key, reason: str) -> None:
        """Records what is wrong at `key`; the first problem of a key is the one that counts."""
        if key in self.problems:
            return
        if variable := self.variables.get(key):
            self.problems[key] = Problem("environment", 0, variable, reason)
        else:
            self.problems[key] = Problem(self.file, self.line(key), dotted(key), reason)

    def line(self, key: Key) -> int:
        """The line of `key`, or of the nearest thing around it that the file has."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 0)

    def faulty(self, key: Key) -> bool:
        """Something at `key`, inside it or around it is already reported."""
        return any(known[: len(key)] == key[: len(known)] for known in self.problems)


def dotted(key: Key) -> str:
    """`("models", "chat", "targets", 0)` as `models.chat.targets[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


def read(path: Path, environment: Mapping[str, str]) -> Document:
    """The file at `path`.

    Raises:
        ConfigError: the file cannot be read, or is not YAML.
    """
    document = Document(str(path))
    try:
        root = _compose(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError([Problem(document.file, 0, "", f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(document.file, 0, "", "is not UTF-8 text")]) from error
    except yaml.YAMLError as error:
        raise ConfigError([_syntax_problem(document.file, error)]) from error
    if root is None:
        return document
    values = _Reader(document, environment).value(root, ())
    if isinstance(values, dict):
        document.values = values
    elif values is not None:
        document.report((), "must hold a mapping of sections")
    return document


class _Loader(yaml.SafeLoader):
    """Composes nodes. Aliases are refused: a few of them can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # types-PyYAML leaves it untyped
            raise yaml.MarkedYAMLError(problem="aliases are not supported, write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    except RecursionError:
        raise yaml.YAMLError("is nested too deeply") from None
    finally:
        loader.dispose()


def _syntax_problem(file: str, error: yaml.YAMLError) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError):
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        return Problem(file, line, "", "; ".join(filter(None, (error.context, error.problem))))
    return Problem(file, 0, "", " ".join(str(error).split()))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns nodes into values, and notes lines and problems in the document."""

    document: Document
    environment: Mapping[str, str]

    def value(self, node: yaml.Node, key: Key) -> Any:
        if node.tag not in _TAGS:
            self.document.report(key, f"the tag {node.tag} is not supported")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return self._sequence(node, key)
        return None if node.tag == _CORE + "null" else self._expand(node.value, key)

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.document.report(key, "a key must be plain text")
                continue
            inner = (*key, key_node.value)
            line = key_node.start_mark.line + 1
            if inner in self.document.lines:
                self.document.report(inner, f"stands here and again in line {line}")
                continue
            self.document.lines[inner] = line
            values[key_node.value] = self.value(value_node, inner)
        return values

    def _sequence(self, node: yaml.SequenceNode, key: Key) -> list[Any]:
        values = []
        for index, item in enumerate(node.value):
            self.document.lines[(*key, index)] = item.start_mark.line + 1
            values.append(self.value(item, (*key, index)))
        return values

    def _expand(self, text: str, key: Key) -> str:
        def replacement(match: re.Match[str]) -> str:
            if match["dollar"]:
                return "$"
            if match["name"] is None:
                self.document.report(key, "a variable is written ${NAME} or ${NAME:-default}")
                return ""
            value = self.environment.get(match["name"])
            if match["default"] is not None:
                return value or str(match["default"])
            if value is None:
                self.document.report(key, f"variable {match['name']} is not set")
            return value or ""

        return _REFERENCE.sub(replacement, text)
