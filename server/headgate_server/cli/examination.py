"""`headgate doctor`: what is wrong with a configuration and its surroundings, and what to do."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from headgate_server import logs
from headgate_server.cli.exits import FAILED, OK, USAGE
from headgate_server.cli.terminal import table
from headgate_server.config import Config, ConfigError, Telemetry, load
from headgate_server.doctor import examine
from headgate_server.doctor.finding import Finding, State
from headgate_server.printing import printable


def doctor(file: Path | None, environment: Mapping[str, str], *, as_json: bool) -> int:
    """Prints what was found; 0 if nothing has failed, 2 if the configuration cannot be used."""
    try:
        config = load(file, environment)
    except ConfigError as error:
        if as_json:
            print(
                json.dumps({"ok": False, "problems": [asdict(problem) for problem in error.problems], "findings": []})
            )
        else:
            print(error, file=sys.stderr)
        return USAGE
    logs.configure(Telemetry(log_level="error"))
    findings = [_configuration(config), *asyncio.run(examine(config))]
    failed = any(finding.state is State.FAILED for finding in findings)
    if as_json:
        print(json.dumps({"ok": not failed, "problems": [], "findings": [asdict(finding) for finding in findings]}))
    else:
        print(_shown(findings))
    return FAILED if failed else OK


def _configuration(config: Config) -> Finding:
    detail = f"{len(config.providers)} providers, {len(config.models)} aliases, on {config.server.listen}"
    return Finding("configuration", "", State.OK, detail)


def _shown(findings: Sequence[Finding]) -> str:
    rows = [(finding.state, finding.check, finding.subject, finding.detail) for finding in findings]
    lines = [table(("STATE", "CHECK", "OF", "FOUND"), rows)]
    advised = [finding for finding in findings if finding.advice]
    if advised:
        lines += ["", "What to do:"]
        lines += [printable(f"- {finding.check}, {finding.subject}: {finding.advice}") for finding in advised]
    return "\n".join(lines)
