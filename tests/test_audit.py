"""`make audit` refuses what may not be shipped, and never calls well what it could not check."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tools import ROOT, run

PERMISSIVE, REFUSED = 2, 1
"""Exit codes; pip-audit is not beside this interpreter, so that vulnerabilities are never known here."""


@pytest.mark.parametrize(
    ("licences", "code"),
    [
        ([{"license": {"id": "MIT"}}], PERMISSIVE),
        ([{"expression": "Apache-2.0 OR GPL-3.0-only"}], PERMISSIVE),
        ([{"license": {"name": "License :: OSI Approved :: BSD License"}}], PERMISSIVE),
        ([{"expression": "MIT AND GPL-3.0-only"}], REFUSED),
        ([{"license": {"id": "AGPL-3.0-only"}}], REFUSED),
        ([], REFUSED),
    ],
)
async def test_a_licence_is_permissive_in_all_parts_of_one_choice(
    tmp_path: Path, licences: list[dict[str, Any]], code: int
) -> None:
    """Or it is named, and fails; a package without one is named as well."""
    sbom = tmp_path / "sbom.json"
    sbom.write_text(json.dumps({"components": [{"name": "some-package", "version": "1.0", "licenses": licences}]}))
    audited = await run(sys.executable, str(ROOT / "tools" / "audit.py"), str(sbom), str(tmp_path / "none.txt"))
    assert (audited.code, "LICENCE some-package 1.0" in audited.stdout) == (code, code == REFUSED)
    assert "NOT CHECKED for known vulnerabilities" in audited.stderr
