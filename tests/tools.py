"""Programs that tests run: grpcurl, grpc-health-probe, a real inference server, Headgate's own command."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
REAL_SERVER = Path(os.environ.get("HEADGATE_REAL_SERVER", ROOT.parent / "shared" / "real-server"))
STARTUP_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Finished:
    """What a program that has ended printed."""

    code: int
    stdout: str
    stderr: str


def tool(name: str) -> str:
    """The path of a tool; skips where it is missing, fails where CI=true."""
    path = TOOLS / name
    return str(path) if path.exists() else missing(f"{name} is missing: run `make tools`, which needs Go")


def program(name: str, package: str) -> str:
    """The path of a program of one of Debian's packages; skips where it is missing, fails where CI=true."""
    return shutil.which(name) or missing(f"{name} is missing: install Debian's package {package}")


def node_packages() -> None:
    """Skips where the TypeScript client's packages are missing, fails where CI=true."""
    if not (ROOT / "clients" / "typescript" / "node_modules" / ".ready").exists():
        missing("the TypeScript client's packages are missing: run `make node`")


def missing(reason: str) -> NoReturn:
    """Skips for lack of something that tests need; fails where CI=true, which has everything."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


async def run(*command: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Finished:
    """Runs a program to its end, for at most a minute."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    async with asyncio.timeout(60):
        stdout, stderr = await process.communicate(stdin.encode())
    return Finished(process.returncode or 0, stdout.decode(), stderr.decode())


async def grpcurl(
    address: str, method: str = "", request: Any = None, *options: str, plaintext: bool = True
) -> Finished:
    """Calls by grpcurl, with the schema by reflection; lists without a method, describes with `describe NAME`."""
    options = ("-plaintext", *options) if plaintext else options
    data = () if request is None else ("-d", json.dumps(request))
    words = method.split() if method else ["list"]
    return await run(tool("grpcurl"), *options, *data, address, *words)


def messages(output: str) -> list[Any]:
    """The JSON messages that grpcurl printed one after another."""
    decoder, found, position = json.JSONDecoder(), [], 0
    text = output.strip()
    while position < len(text):
        message, position = decoder.raw_decode(text, position)
        found.append(message)
        while position < len(text) and text[position].isspace():
            position += 1
    return found


@dataclass(slots=True)
class HeadgateCommand:
    """A running `headgate serve`, in a process of its own."""

    process: asyncio.subprocess.Process
    address: str
    welcome: list[str]

    async def stop(self, number: int = signal.SIGTERM) -> Finished:
        """Sends a signal and waits for the end."""
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self, seconds: float = 30) -> Finished:
        """Waits for the end."""
        async with asyncio.timeout(seconds):
            stdout, stderr = await self.process.communicate()
        return Finished(self.process.returncode or 0, stdout.decode(), (stderr or b"").decode())


@asynccontextmanager
async def headgate_serve(
    *arguments: str, env: Mapping[str, str] | None = None, log: Path | None = None
) -> AsyncIterator[HeadgateCommand]:
    """`headgate serve` on a free port, once it has said that it serves. What it logs is added to `log`, if given."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")},
        "PORT": "0",
        "HEADGATE_ADMIN_PORT": "0",
        **(env or {}),
    }
    command = (sys.executable, "-m", "headgate_server", "serve", *arguments)
    stdout = asyncio.subprocess.PIPE
    if log:
        with log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(*command, stdout=stdout, stderr=stderr, env=environment)
    else:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=stdout, stderr=asyncio.subprocess.PIPE, env=environment
        )
    try:
        async with asyncio.timeout(STARTUP_SECONDS):
            welcome = await _welcome(process)
        yield HeadgateCommand(process, welcome[0].split()[-1], welcome)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def _welcome(process: asyncio.subprocess.Process) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    while line := (await process.stdout.readline()).decode().rstrip():
        lines.append(line)
        if line.strip().startswith("headgate call"):
            return lines
    told = await process.stderr.read() if process.stderr else b"see its log"
    raise AssertionError(f"headgate did not start: {told.decode()}")


@asynccontextmanager
async def inference_server(directory: Path, *options: str) -> AsyncIterator[str]:
    """A real llama.cpp server with a tiny random model; its base URL. Skips where it cannot run."""
    if not (REAL_SERVER / "start_server.py").exists():
        pytest.skip(f"no {REAL_SERVER}: set HEADGATE_REAL_SERVER to a folder with the scripts that run llama.cpp")
    for package in ("xllamacpp", "gguf", "numpy"):
        if package not in sys.modules:
            pytest.importorskip(package, reason=f"{package} is not installed")
    model = directory / "tiny.gguf"
    made = await run(sys.executable, str(REAL_SERVER / "make_tiny_gguf.py"), str(model), "0.85")
    assert made.code == 0, made.stderr
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(REAL_SERVER / "start_server.py"),
        str(model),
        str(port),
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(STARTUP_SECONDS):
            assert await process.stdout.readline(), "the inference server did not start"
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        await process.wait()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def resident_bytes(pid: int) -> int:
    """Memory that a process holds, on Linux."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
