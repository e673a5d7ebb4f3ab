"""The status page as a person sees it, in a real browser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import browser_page
from tests.conftest import Serve
from tests.headgate_process import Headgate, ask, failing

PROVIDERS: dict[str, Any] = {
    "openai-eu": {
        "adapter": "mock",
        "models": ["echo"],
        "catalog": {"echo": {"prices": {"input": "3", "output": "15"}}},
    },
    "azure-fallback": {"adapter": "mock", "mock": {"failures": [{"status": 500, "times": 1000}]}, "models": ["lorem"]},
    "rack": {"adapter": "openai", "base_url": "http://127.0.0.1:1/v1", "models": ["llama-4-scout"]},
}
ATTACK = "<img src=x onerror=\"document.title='attacked'\">"


async def traffic(headgate: Headgate) -> None:
    """Answers, failures enough to open a circuit, and names that try to be markup."""
    for _ in range(12):
        await headgate.stub.Generate(ask("openai-eu/echo", "How is the gateway doing today?"), timeout=10)
    for _ in range(6):
        await failing(headgate.stub.Generate(ask("azure-fallback/lorem"), timeout=10))
    await failing(headgate.stub.Generate(ask("rack/llama-4-scout"), timeout=10))
    await failing(headgate.stub.Generate(ask(ATTACK), timeout=10))


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (400, False)], ids=["wide", "dark", "narrow"])
async def test_the_page_shows_how_the_server_does(serve: Serve, tmp_path: Path, width: int, dark: bool) -> None:
    """Providers, circuits, cost, errors; refreshed by itself; no complaint in the console; nothing wider than it."""
    ledger = {"url": f"sqlite:///{tmp_path}/ledger.db"}
    async with serve(providers=PROVIDERS, ledger=ledger) as headgate, browser_page(tmp_path) as page:
        await traffic(headgate)
        await page.open(f"http://{headgate.application.admin_address}/", width=width, height=900, dark=dark)
        await page.until("document.querySelectorAll('#providers tr').length === 3")
        text: str = await page.value("document.body.innerText")
        for shown in (
            "openai-eu",
            "serving",
            "not-serving",
            "open",
            "PROVIDER_UNREACHABLE",
            "MODEL_NOT_FOUND",
            "USD",
            "ledger: well",
        ):
            assert shown in text
        assert "How is the gateway" not in text
        assert await page.value("document.title") == "Headgate", "what callers send is text, never markup"
        assert await page.value("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"
        before = await page.value("document.querySelector('#models td.number').textContent")
        await headgate.stub.Generate(ask("openai-eu/echo"), timeout=10)
        await page.until(f"document.querySelector('#models td.number').textContent !== '{before}'")
        await page.screenshot(Path(os.environ.get("HEADGATE_SCREENSHOTS", tmp_path)) / f"status-{width}-{dark}.png")
        assert page.problems == []


async def test_the_page_says_when_its_server_is_gone(serve: Serve, tmp_path: Path) -> None:
    """Old figures must not look like new ones."""
    async with browser_page(tmp_path) as page:
        async with serve(providers=PROVIDERS) as headgate:
            await page.open(f"http://{headgate.application.admin_address}/", width=1000, height=700)
            await page.until("document.querySelectorAll('#providers tr').length === 3")
            assert not await page.value("document.body.classList.contains('offline')")
        await page.until("document.body.classList.contains('offline')")
        assert await page.value("getComputedStyle(document.getElementById('stale')).display !== 'none'")
