"""The README says what the tables of the code say."""

from __future__ import annotations

import re

from headgate_server.cli import EXIT_CODES
from headgate_server.providers.hosts import HOSTS, Host, Quirks
from tests.tools import ROOT

README = (ROOT / "README.md").read_text("utf-8")
HEADER = "| Host | Key variable | JSON schema | Thinking | Reads | Settings that it lacks: a warning each |"


def row(host: Host) -> str:
    """The host's line in the table."""
    quirks = host.quirks
    lacks = ", ".join(f"`{name}`" for name in sorted(quirks.lacks))
    cells = [
        f"`{host.name}`",
        f"`{host.key_variable}`" if host.key_variable else "",
        "yes" if quirks.json_schema else "",
        thinking(quirks),
        reads(quirks),
        lacks,
    ]
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def thinking(quirks: Quirks) -> str:
    """How much of ReasoningConfig goes out, and whether reasoning goes back as history."""
    known = {
        "effort": quirks.reasoning_effort or quirks.reasoning_object,
        "switch": bool(quirks.thinking_switch) or quirks.reasoning_object,
        "budget": bool(quirks.thinking_budget) or quirks.reasoning_object,
        "history": bool(quirks.reasoning_echo),
    }
    return ", ".join(name for name, carried in known.items() if carried)


def reads(quirks: Quirks) -> str:
    """What beside text, images, audio and files by value."""
    known = {
        "video": quirks.video_url,
        "documents by address": bool(quirks.document_url),
        "media in tool results": quirks.tool_media,
    }
    return ", ".join(name for name, carried in known.items() if carried)


def test_the_table_of_hosts_is_that_of_the_code() -> None:
    """Each host of OpenAI's wire stands in the README with what it carries, and no other does."""
    rows = [row(host) for host in HOSTS.values() if host.adapter == "openai"]
    expected = "\n".join([HEADER, "|---|---|---|---|---|---|", *rows])
    assert expected in README, f"the README's table should be:\n{expected}"


def test_every_reason_of_an_error_is_explained() -> None:
    """What a caller can be told is in the table of errors."""
    source = (ROOT / "server/headgate_server/errors.py").read_text("utf-8")
    reasons = set(re.findall(r'reason(?:: ClassVar\[str\])? = "([A-Z_]+)"', source)) - {"CANCELLED"}
    assert reasons
    assert {reason for reason in reasons if reason not in README} == set()


def test_exit_codes_are_those_of_the_command() -> None:
    """README and --help agree."""
    for code in re.findall(r"\d+", EXIT_CODES):
        assert re.search(rf"\b{code}\b", README.partition("Exit codes:")[2].partition("\n")[0])
