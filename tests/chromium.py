"""A headless Chromium, spoken to by its DevTools protocol over a pipe of websockets."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.tools import program

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-port=0",
)


class Page:
    """One tab. `problems` are what its console and its network had to complain of."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.problems: list[str] = []

    async def command(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol; its result."""
        number = next(self._numbers)
        answered = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(30):
            answer = await answered
        assert "error" not in answer, answer["error"]
        return answer["result"]

    async def listen(self) -> None:
        """Takes in what the browser says, until it is gone."""
        async for message in self._socket:
            said = json.loads(message.data)
            if (number := said.get("id")) in self._answers:
                self._answers.pop(number).set_result(said)
            elif said.get("method") in ("Runtime.exceptionThrown", "Network.loadingFailed"):
                self.problems.append(json.dumps(said["params"])[:500])
            elif said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] in ("warning", "error"):
                self.problems.append(said["params"]["entry"]["text"])
            elif said.get("method") == "Runtime.consoleAPICalled" and said["params"]["type"] in ("warning", "error"):
                self.problems.append(json.dumps(said["params"]["args"])[:500])

    async def open(self, url: str, *, width: int, height: int, dark: bool = False) -> None:
        """Shows an address in a window of that size."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.command(f"{domain}.enable")
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.command("Emulation.setEmulatedMedia", features=scheme)
        await self.command("Page.navigate", url=url)

    async def value(self, expression: str) -> Any:
        """What JavaScript says."""
        result = await self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str) -> None:
        """Waits until JavaScript says true."""
        async with asyncio.timeout(20):
            while not await self.value(expression):
                await asyncio.sleep(0.05)

    async def screenshot(self, file: Path) -> None:
        """The whole page as PNG."""
        picture = await self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        await asyncio.to_thread(file.write_bytes, base64.b64decode(picture["data"]))


@asynccontextmanager
async def browser_page(folder: Path) -> AsyncIterator[Page]:
    """A tab of a browser of its own."""
    process = await asyncio.create_subprocess_exec(
        program("chromium", "chromium"),
        *FLAGS,
        f"--user-data-dir={folder / 'chromium'}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            address = await _debugging_address(process)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{address}/json/list") as answer:
                tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
            async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                yield page
                listening.cancel()
    finally:
        process.kill()
        await process.communicate()


async def _debugging_address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    while line := (await process.stderr.readline()).decode(errors="replace"):
        if found := re.search(r"DevTools listening on ws://([^/]+)/", line):
            return found[1]
    raise AssertionError("Chromium did not start")
