"""What the Python client offers to LangChain, LlamaIndex and type checkers, in an environment that has all of them."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.tools import ROOT, missing

PYTHON = ROOT / ".venv-ecosystem" / "bin" / "python"


@pytest.mark.timeout(300)
async def test_the_clients_own_suite_passes() -> None:
    """The frameworks' standard suites, retrieval on real embeddings, mypy and pyright: clients/python/tests."""
    if not PYTHON.exists():
        missing("no .venv-ecosystem: run `make ecosystem`")
    suite = await asyncio.create_subprocess_exec(
        *(PYTHON, "-m", "pytest", "--quiet", "-p", "no:cacheprovider"),
        cwd=ROOT / "clients" / "python",
        # That of pytest-xdist would tell the frameworks' plugins that they are one of its workers.
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await suite.communicate()
    assert suite.returncode == 0, output.decode()[-6000:]
