"""The sizing table of the operations page says what `make bench` measured."""

from __future__ import annotations

import json
import re

import pytest

from tests.tools import ROOT

FIGURES = json.loads((ROOT / "bench" / "results.json").read_text())["figures"]["full"]
PAGE = (ROOT / "docs" / "operations.md").read_text()
ROWS = {
    "CPU of a unary call": {"cpu_unary": 1000},
    "CPU of a paced stream of 64 chunks": {"cpu_paced": 1000},
    "CPU of an embedding of 100 texts": {"cpu_embed": 1000},
    "memory at rest, under load": {"memory_idle": 1, "memory_loaded": 1},
    "memory of a stream in flight": {"memory_stream": 1},
    "time that Headgate adds: p50, p99": {"added_p50": 1000, "added_p99": 1000},
}


@pytest.mark.parametrize("row", ROWS)
def test_each_figure_is_the_measured_one(row: str) -> None:
    """Within a tenth: whoever saves another result of the bench writes it there, too."""
    (written,) = re.findall(rf"^\| {re.escape(row)} \| ([^|]+) \|", PAGE, re.MULTILINE)
    for text, (figure, unit) in zip(written.split(","), ROWS[row].items(), strict=True):
        assert float(text.split()[0]) == pytest.approx(FIGURES[figure] / unit, rel=0.1), (
            f"{figure} of bench/results.json"
        )
