"""The README says what the tables of the code say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from headgate import v1 as pb

from headgate_server.cli import EXIT_CODES
from headgate_server.config import load
from headgate_server.errors import UnsupportedParameter
from headgate_server.providers.hosts import HOSTS, Host, Quirks
from tests.tools import ROOT
from tests.wires import WIRES, Wire

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


WIRE_ROWS_HEADER = "| | " + " | ".join(f"`{name}`" for name in WIRES) + " |"
HELLO = pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Hi")])
FUNCTION = pb.Tool(function=pb.FunctionTool(name="f", parameters_schema='{"type":"object","properties":{}}'))
OTHER_FUNCTION = pb.Tool(function=pb.FunctionTool(name="g", parameters_schema='{"type":"object","properties":{}}'))


def of_user(**content: Any) -> pb.GenerateRequest:
    """A request of a text and one other part."""
    return pb.GenerateRequest(messages=[pb.Message(role=pb.ROLE_USER, parts=[HELLO.parts[0], pb.Part(**content)])])


def with_settings(**fields: Any) -> pb.GenerateRequest:
    """A request of a text, with these fields."""
    return pb.GenerateRequest(messages=[HELLO], **fields)


def with_tools(*tools: pb.Tool, **choice: Any) -> pb.GenerateRequest:
    """A request with tools, and a choice among them."""
    return with_settings(tools=tools, tool_choice=pb.ToolChoice(**choice) if choice else None)


def of_history(issuer: str, **fields: Any) -> pb.GenerateRequest:
    """A request whose history holds a part of this issuer."""
    said = pb.Message(role=pb.ROLE_ASSISTANT, parts=[pb.Part(issuer=issuer, **fields)])
    return pb.GenerateRequest(messages=[HELLO, said, HELLO])


# What a row asks for, of the wire's own issuer where that matters, and the texts by which it is seen to have gone out.
ROWS: dict[str, tuple[Callable[[str], pb.GenerateRequest], str]] = {
    "text": (lambda _: with_settings(), "Hi"),
    "images": (lambda _: of_user(media=pb.Media(data=b"I", mime_type="image/png")), "SQ=="),
    "audio": (lambda _: of_user(media=pb.Media(data=b"I", mime_type="audio/wav")), "SQ=="),
    "video": (lambda _: of_user(media=pb.Media(data=b"I", mime_type="video/mp4")), "SQ=="),
    "PDF documents": (lambda _: of_user(media=pb.Media(data=b"\xff", mime_type="application/pdf")), "/w=="),
    "text documents": (lambda _: of_user(media=pb.Media(data=b"I", mime_type="text/plain")), r"SQ==|\"I\""),
    "tools": (lambda _: with_tools(FUNCTION), '"f"'),
    "parallel calls off": (lambda _: with_tools(FUNCTION, parallel_calls=False), "parallel"),
    "a forced tool": (
        lambda _: with_tools(FUNCTION, mode=pb.TOOL_CHOICE_MODE_REQUIRED, allowed_tools=["f"]),
        "(?i)choice|functionCallingConfig",
    ),
    "allowed tools": (lambda _: with_tools(FUNCTION, OTHER_FUNCTION, allowed_tools=["f"]), '(?i)allowed|^(?!.*"g")'),
    "free-text tools": (lambda _: with_tools(pb.Tool(free_text=pb.FreeTextTool(name="f"))), '"f"'),
    "hosted tools": (
        lambda issuer: with_tools(pb.Tool(provider=pb.ProviderTool(issuer=issuer, type="web_search"))),
        "web_search",
    ),
    "JSON schema": (
        lambda _: with_settings(
            config=pb.GenerationConfig(
                response_format=pb.ResponseFormat(type=pb.RESPONSE_FORMAT_TYPE_JSON_SCHEMA, schema='{"type":"object"}')
            )
        ),
        '{"type":"object"}',
    ),
    "thinking: effort": (lambda _: with_settings(reasoning=pb.ReasoningConfig(effort="low")), "(?i)low"),
    "thinking: budget": (lambda _: with_settings(reasoning=pb.ReasoningConfig(budget_tokens=2048)), "2048"),
    "thinking: what is shown": (
        lambda _: with_settings(reasoning=pb.ReasoningConfig(enabled=True, visibility=pb.REASONING_VISIBILITY_SUMMARY)),
        "summar|includeThoughts",
    ),
    "signatures go back": (
        lambda issuer: of_history(issuer, reasoning=pb.Reasoning(text="Hm"), signature=b"signed", item_id="rs_1"),
        "signed",
    ),
    "citations from documents": (
        lambda _: of_user(media=pb.Media(data=b"I", mime_type="text/plain", citations_enabled=True)),
        'citations|"documents"',
    ),
    "logprobs": (lambda _: with_settings(config=pb.GenerationConfig(logprobs=True)), "(?i)logprobs"),
    "several candidates": (lambda _: with_settings(config=pb.GenerationConfig(candidate_count=2)), ":2"),
    "cache breakpoints": (
        lambda _: pb.GenerateRequest(
            messages=[pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Hi", cache_breakpoint=pb.CacheBreakpoint())])]
        ),
        "cache",
    ),
}
DROPPED_BESIDE = {"signatures go back": ".item_id"}


def carried(wire: Wire, row: str) -> str:
    """Whether what the row asks for goes out: yes, warned or refused."""
    build, trace = ROWS[row]
    try:
        call = wire.encode(build(wire.target.issuer))
    except UnsupportedParameter:
        return "refused"
    losses = [w for w in call.warnings if w.code != "default-applied"]
    if row in DROPPED_BESIDE:
        losses = [loss for loss in losses if not loss.field.endswith(DROPPED_BESIDE[row])]
    is_sent = re.search(trace, call.body.decode()) is not None
    assert is_sent or losses, f"{wire.name} drops {row} silently"
    return "warned" if losses else "yes"


def embeds(wire: Wire) -> str:
    """Whether the wire has embeddings."""
    inputs = [pb.EmbedInput(text="Hi")]
    try:
        wire.adapter.encode_embed(pb.EmbedRequest(inputs=inputs), inputs, wire.target)
    except UnsupportedParameter:
        return "refused"
    return "yes"


def test_the_table_of_wires_is_what_they_do() -> None:
    """Each row is asked of each wire: it goes out, or a warning tells of it, or it is refused."""
    rows = [f"| {row} | {' | '.join(carried(wire, row) for wire in WIRES.values())} |" for row in ROWS]
    rows.append(f"| embeddings | {' | '.join(embeds(wire) for wire in WIRES.values())} |")
    expected = "\n".join([WIRE_ROWS_HEADER, "|---" * (len(WIRES) + 1) + "|", *rows])
    assert expected in README, f"the README's table should be:\n{expected}"


def test_the_examples_of_routing_are_good_configurations(tmp_path: Path) -> None:
    """Every key in them exists; what they refer to stands elsewhere in the README."""
    section = README.partition("### Routing\n")[2].partition("### Vendors\n")[0]
    blocks = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2
    elsewhere: dict[str, dict[str, Any]] = {
        "providers": {"openai": {"api_key": "k"}, "azure": {"base_url": "https://n.openai.azure.com", "api_key": "k"}},
        "models": {"smart": {"targets": [{"provider": "openai", "model": "m"}]}},
    }
    for block in blocks:
        values = yaml.load(block, yaml.BaseLoader)
        for root, known in elsewhere.items():
            said = values.get(root, {})
            values[root] = {name: {**known.get(name, {}), **said.get(name, {})} for name in [*known, *said]}
        file = tmp_path / "headgate.yaml"
        file.write_text(yaml.safe_dump(values))
        assert load(file, {}).models["smart"]
