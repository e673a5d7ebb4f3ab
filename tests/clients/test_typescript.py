"""The TypeScript client's own suite, of node:test, against the scripted server."""

from __future__ import annotations

import pytest

from tests.tools import ROOT, program, run

CLIENT = ROOT / "clients" / "typescript"


@pytest.mark.xdist_group("typescript")
async def test_the_typescript_client_passes_its_suite() -> None:
    """Types by `tsc --strict`, then every rule of the client."""
    if not (CLIENT / "node_modules" / ".ready").exists():
        pytest.skip("the TypeScript client's packages are missing: run `make node`")
    finished = await run(program("npm", "npm"), "test", "--prefix", str(CLIENT))
    assert finished.code == 0, finished.stdout + finished.stderr
