"""Both type checkers know the package to the last field."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).with_name("typed_project")
MYPY = ["mypy", "--strict", "--no-error-summary", "--hide-error-context"]
PYRIGHT = ["basedpyright", "--level", "error", "--pythonpath", sys.executable]


def checked(command: list[str], *files: str) -> str:
    """What a checker prints of these files of the project."""
    program = Path(sys.executable).with_name(command[0])
    assert program.exists(), f"{program} is missing: run `make ecosystem`"
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "VIRTUAL_ENV": sys.prefix}
    run = subprocess.run([program, *command[1:], *files], cwd=PROJECT, env=environment, capture_output=True, text=True)
    return run.stdout + run.stderr


@pytest.mark.parametrize("command", [MYPY, PYRIGHT], ids=["mypy", "pyright"])
def test_what_is_right_is_accepted_and_misuse_is_refused(command: list[str]) -> None:
    """Every call, property and field has the type that it should have; a misspelt or mistyped argument has none."""
    lines = (PROJECT / "misuse.py").read_text("utf-8").splitlines()
    marked = {("misuse.py", number) for number, line in enumerate(lines, 1) if line.endswith("# refused")}
    output = checked(command, "app.py", "misuse.py")
    found = re.findall(r"(\w+\.py):(\d+).*error", output)
    assert {(file, int(number)) for file, number in found} == marked, output


def test_every_public_symbol_has_a_complete_type() -> None:
    """By the checker's own count; what it finds unknown is in grpcio's generated stubs alone."""
    command = ["basedpyright", "--verifytypes", "headgate", "--ignoreexternal"]
    output = checked(command)
    exported = re.search(r'exported by "headgate": (\d+)', output)
    assert exported, output
    assert int(exported[1]) > 1000, output
    places = set(re.findall(r"\S*/headgate/(\S+?):\d+:\d+ - error", output))
    assert places <= {"v1/inference_service_pb2_grpc.pyi"}, output
