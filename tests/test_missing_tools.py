"""What tests lack is a failure where CI=true, and a skip elsewhere."""

from __future__ import annotations

import pytest

from tests.tools import missing


def test_a_missing_tool_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """There everything is installed, so a skip would hide a test for good."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no such tool"):
        missing("no such tool")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no such tool"):
        missing("no such tool")
