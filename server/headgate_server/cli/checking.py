"""What the command says without a server: configurations and versions."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from headgate_server import __version__
from headgate_server.cli.exits import OK, USAGE
from headgate_server.config import ConfigError, load


def check(file: Path | None, environment: Mapping[str, str], *, as_json: bool) -> int:
    """Prints every problem of a configuration, or what it serves."""
    try:
        config = load(file, environment)
    except ConfigError as error:
        if as_json:
            print(json.dumps({"ok": False, "problems": [asdict(problem) for problem in error.problems]}))
        else:
            print(error, file=sys.stderr)
        return USAGE
    if as_json:
        served = {"listen": config.server.listen, "providers": [*config.providers], "models": [*config.models]}
        print(json.dumps({"ok": True, "problems": [], **served}))
    else:
        aliases = ", ".join(config.models) or "none"
        print(f"ok: {', '.join(config.providers)} on {config.server.listen}; aliases: {aliases}")
    return OK


def versions(*, as_json: bool) -> int:
    """Prints the version of Headgate and of what it runs on."""
    found = {
        "headgate": __version__,
        "contract": "headgate.v1",
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
        "python": platform.python_version(),
    }
    print(json.dumps(found) if as_json else "\n".join(f"{name} {number}" for name, number in found.items()))
    return OK
