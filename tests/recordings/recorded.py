"""Recorded exchanges with vendors, found by HEADGATE_RECORDINGS; by default ../shared/recordings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from headgate_server.providers.base import Target
from headgate_server.providers.hosts import HOSTS, Host

ROOT = Path(__file__).parents[2]
RECORDINGS = Path(os.environ.get("HEADGATE_RECORDINGS", ROOT.parent / "shared" / "recordings"))
SPECS = Path(os.environ.get("HEADGATE_SPECS", ROOT.parent / "shared" / "specs"))
OPENAI_HOSTED = ("azure",)


@dataclass(frozen=True)
class Recording:
    """One exchange. `request` is the parsed JSON body, None where only the answer was kept; `path` has the query."""

    id: str
    vendor: str
    api: str
    is_stream: bool
    fidelity: str
    features: tuple[str, ...]
    path: str
    request: Any
    status: int
    headers: Mapping[str, str]
    body: bytes
    request_headers: Mapping[str, str]
    conversation: str
    """Turns of one conversation share it, and stand in order."""

    @property
    def target(self) -> Target:
        """The target that the request was sent to."""
        host = HOSTS.get(self.vendor)
        if host is None:
            row = HOSTS["openai"] if self.vendor in OPENAI_HOSTED else Host(self.vendor, "openai", "")
            host = Host(self.vendor, "openai", "https://recorded.invalid", quirks=row.quirks)
        model = self.request.get("model", "") if isinstance(self.request, dict) else ""
        return Target(provider=self.vendor, model=model, host=host, issuer=self.vendor)


@cache
def recordings(api: str) -> tuple[Recording, ...]:
    """All exchanges of one API, whatever the vendor; skips the test where there are none on this machine."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no recordings in {RECORDINGS}; set HEADGATE_RECORDINGS")
    found = []
    for file in sorted(RECORDINGS.glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            found += [_recording(entry) for line in lines if (entry := json.loads(line))["api"] == api]
    return tuple(found)


def _recording(entry: dict[str, Any]) -> Recording:
    response = entry["response"]
    return Recording(
        id=entry["id"],
        vendor=entry["vendor"],
        api=entry["api"],
        is_stream=entry["stream"],
        fidelity=entry["fidelity"],
        features=tuple(entry["features"]),
        path=entry["request"]["path"] if entry["request"] else "",
        request=entry["request"] and entry["request"]["body"],
        status=response["status"],
        headers=response["headers"] or {},
        body=response["body"].encode(),
        request_headers=(entry["request"] or {}).get("headers") or {},
        conversation=f"{entry['source_repo']}/{entry['source_path']}",
    )
