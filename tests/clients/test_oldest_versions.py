"""The Python client works with the oldest packages that it allows, in an environment of its own."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tools import ROOT, missing, run

CLIENT = ROOT / "clients" / "python"
CORE = ("test_calls.py", "test_errors.py", "test_retries.py", "test_tool_loop.py", "test_messages.py")


@pytest.fixture(scope="module")
async def oldest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the lower bounds of the client's dependencies."""
    uv = shutil.which("uv")
    if uv is None:
        missing("uv is missing: pip install uv")
    dependencies = tomllib.loads((CLIENT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    bounds = [re.sub(r">=([\d.]+).*", r"==\1", dependency) for dependency in dependencies]
    environment = tmp_path_factory.mktemp("oldest")
    python = environment / "bin" / "python"
    for command in (
        ["venv", "--quiet", "--allow-existing", "--python", sys.executable, str(environment)],
        ["pip", "install", "--quiet", "--python", str(python), *bounds, "pytest", "pytest-asyncio", "pytest-timeout"],
        ["pip", "install", "--quiet", "--python", str(python), "--no-deps", "--editable", str(CLIENT)],
    ):
        finished = await run(str(uv), *command)
        if finished.code:
            missing(f"the oldest versions cannot be installed: {finished.stderr[-500:]}")
    return python


async def test_the_core_of_the_suite_passes(oldest: Path) -> None:
    """Calls, streams, errors, retries, tools and messages by grpcio and protobuf at their lower bounds."""
    files = [str(ROOT / "tests" / "clients" / name) for name in CORE]
    command = [
        str(oldest),
        "-m",
        "pytest",
        "--quiet",
        "-p",
        "no:cacheprovider",
        "--confcutdir",
        str(ROOT / "tests/clients"),
    ]
    finished = await run(*command, *files)
    assert finished.code == 0, finished.stdout[-4000:]
    assert re.search(r"\d{3} passed", finished.stdout)
