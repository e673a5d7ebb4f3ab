"""The programs of a run: the server on a core of its own; load client and fake vendor on the others."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
BUILT = BENCH.parent / ".tools" / "bench"
MAX_OTHER_CORES = 0.15
ENDING_SECONDS = 60
"""Until a program that was told to end is killed; under valgrind all takes long."""
HASH_SEED = "0"
"""Of Python. By chance texts collide in a server's dictionaries or do not, which alone moved a call by 16 thousand
instructions."""


class Skipped(Exception):
    """This machine cannot measure; the message says what is missing."""


class Spoiled(Exception):
    """What was measured is no measurement: a program or a call failed."""


def build() -> None:
    """Builds fake vendor and load client.

    Raises:
        Skipped: Go or a second core is missing, or this is not Linux.
    """
    if sys.platform != "linux":
        raise Skipped("bench needs Linux, where it pins processes and reads their CPU clocks: skipped")
    if shutil.which("go") is None:
        raise Skipped("bench needs Go for its fake vendor and load client: skipped")
    if len(os.sched_getaffinity(0)) < 2:
        raise Skipped("bench needs two cores, one of them for the server: skipped")
    BUILT.mkdir(parents=True, exist_ok=True)
    subprocess.run(["go", "build", "-o", f"{BUILT}/", "./fakevendor", "./load"], cwd=BENCH, check=True)


@dataclass(frozen=True, slots=True)
class Running:
    """A program that listens. `started` is the seconds from exec until it said so."""

    pid: int
    address: str
    started: float

    @property
    def resident(self) -> int:
        """Resident memory in bytes."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def running(
    *command: str, core: int | None = None, errors: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """A program that prints its address as the last word of its first line, pinned to `core` if one is given."""
    home = os.sched_getaffinity(0)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOG_", "PORT", "OTEL_"))}
    kept |= {"PYTHONHASHSEED": HASH_SEED, **(environment or {})}
    with open(errors or os.devnull, "ab") as stderr:
        os.sched_setaffinity(0, home if core is None else {core})
        try:
            began = time.monotonic()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=kept, text=True)
        finally:
            os.sched_setaffinity(0, home)
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            started = time.monotonic() - began
            if not words:
                said = errors.read_text()[-2000:] if errors else ""
                raise Spoiled(f"{' '.join(command)} did not start\n{said}")
            yield Running(process.pid, words[-1], started)
        finally:
            process.terminate()
            try:
                process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass(frozen=True, slots=True)
class Seen:
    """What the load client saw; times are microseconds."""

    calls: int
    errors: int
    first_error: str
    per_second: float
    cpu_per_call: float
    messages_per_call: float
    p50: float
    p99: float
    first_p50: float
    first_p99: float
    memory_per_call: float
    server_cores: float
    client_cores: float
    vendor_cores: float
    other_cores: float


@dataclass(slots=True)
class Load:
    """Runs the load client, up to `tries` times where other programs disturb it; `disturbed` counts what stayed so."""

    vendor: Running
    seconds: float
    warmup: float
    tries: int
    disturbed: int = 0

    def __call__(self, server: Running | None, kind: str, **options: Any) -> Seen:
        """One run, or the last of several.

        Raises:
            Spoiled: calls failed.
        """
        for _ in range(self.tries):
            seen = self.once(server, kind, **options)
            if seen.other_cores < MAX_OTHER_CORES:
                return seen
        self.disturbed += 1
        return seen

    @contextmanager
    def beside(self, server: Running, kind: str, **options: Any) -> Iterator[None]:
        """Load that goes on within the block."""
        process = subprocess.Popen(
            self._command(server, kind, {"duration": "1h", **options}), stdout=subprocess.DEVNULL
        )
        try:
            time.sleep(self.warmup)
            yield
        finally:
            process.terminate()
            process.wait()

    def once(self, server: Running | None, kind: str, **options: Any) -> Seen:
        """One run, disturbed or not.

        Raises:
            Spoiled: calls failed.
        """
        done = subprocess.run(self._command(server, kind, options), capture_output=True, text=True, check=False)
        if done.returncode:
            raise Spoiled(f"the load client failed ({kind} {options}): {done.stderr.strip()}")
        seen = Seen(**json.loads(done.stdout))
        if seen.errors or not seen.calls:
            raise Spoiled(f"{seen.errors} calls failed, {seen.calls} did not ({kind} {options}): {seen.first_error}")
        return seen

    def _command(self, server: Running | None, kind: str, options: dict[str, Any]) -> list[str]:
        chosen = {
            "kind": kind,
            "vendor": f"http://{self.vendor.address}",
            "vendor-process": self.vendor.pid,
            "warmup": f"{self.warmup}s",
            "duration": f"{self.seconds}s",
            **options,
        }
        if server is not None:
            chosen |= {"target": server.address, "server": server.pid}
        return [str(BUILT / "load"), *(f"-{name}={value}" for name, value in chosen.items())]


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis of its own that keeps nothing; its address.

    Raises:
        Skipped: redis-server is not installed.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise Skipped("redis-server is missing: the mode `shared` needs it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
    )
    try:
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.01)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
