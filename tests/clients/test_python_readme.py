"""The READMEs' Python runs as it stands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.headgate_process import running
from tests.identity.callers import MOCK
from tests.tools import ROOT, run

READMES = {"README.md": 1, "clients/python/README.md": 3}
MODELS = {name: {"targets": [{"provider": "demo", "model": "lorem"}]} for name in ("fast", "lorem")}


def snippets() -> list[tuple[str, str]]:
    """Every snippet, and where it stands."""
    found = []
    for readme, count in READMES.items():
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text("utf-8"), re.DOTALL)
        assert len(blocks) == count, f"{readme} has {len(blocks)} snippets"
        found += [(readme, block) for block in blocks]
    return found


@pytest.mark.parametrize(("readme", "snippet"), snippets())
async def test_a_snippet_runs(readme: str, snippet: str, tmp_path: Path) -> None:
    """Against a real Headgate whose models are the mock's, with the address that it happens to have."""
    async with running(providers=MOCK, models=MODELS) as headgate:
        program = tmp_path / "snippet.py"
        program.write_text(snippet.replace("localhost:50051", headgate.address))
        finished = await run(sys.executable, "-W", "error", str(program), env={"HEADGATE_ADDRESS": headgate.address})
    assert (finished.code, finished.stderr) == (0, ""), f"{readme}: {finished.stderr}"
    assert ("print" not in snippet.split("try:")[0]) or finished.stdout
