"""`make bench`: what a call costs in CPU, time and memory. See README.md."""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from os import sched_getaffinity, sched_setaffinity
from pathlib import Path
from statistics import median
from typing import Any

from bench import report
from bench.figures import Figures
from bench.modes import MODES, Mode, configuration, embed_request, generate_request
from bench.programs import BENCH, BUILT, Load, Running, Seen, Skipped, Spoiled, build, redis_server, running

RESULTS = BENCH / "results.json"
SERVICE = "/headgate.v1.InferenceService"
FLOOR = "floor"
MB = 1e6
STREAMS = 10_000
STREAMS_IN_FLIGHT = 1000
ROUNDS = 3
PACED_EVENTS = 69
"""Messages of a paced stream: 64 of text, and those around them."""
PACED_SECONDS = 0.005
CACHEGRIND = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
COUNTED_CALLS = (200, 700)
COUNTED_CALLERS = 16
"""Enough that ended calls are told of together, as they are at 500 calls a second."""
WATCHED = ("unary", "unary_saturated", "burst", "paced", "embed")
PACKAGES = ("grpcio", "protobuf", "aiohttp", "uvloop", "msgspec", "structlog")


Starts = Callable[..., AbstractContextManager[Running]]


class Bench:
    """One round after another: each mode in a new server process, then the floor."""

    def __init__(self, vendor: Running, core: int, directory: Path, *, quick: bool, seconds: float | None) -> None:
        self.load = (
            Load(vendor, seconds=seconds or 1.5, warmup=0.4, tries=1)
            if quick
            else Load(vendor, seconds=seconds or 3, warmup=1, tries=2)
        )
        self._core = core
        self._directory = directory
        self._quick = quick
        self._requests = {"generate": directory / "generate.bin", "embed": directory / "embed.bin"}
        self._requests["generate"].write_bytes(generate_request())
        self._requests["embed"].write_bytes(embed_request())

    def round(self, modes: Iterable[Mode], *, lasting: bool) -> dict[str, Figures]:
        """The figures of each mode and of the floor; `lasting` adds those that take many streams."""
        direct, direct_stream = self._direct()
        found = {mode.name: self._mode(mode, direct, direct_stream, lasting=lasting) for mode in modes}
        found[FLOOR] = self._floor(next(iter(found.values())))
        return found

    def watch(self, mode: Mode, kind: str) -> Seen:
        """One kind of load on one server for a while, so that a profiler can be attached."""
        with self._server(mode) as server:
            print(f"{mode.name}: {kind} for {self.load.seconds:g} s, server process {server.pid}", flush=True)
            return self._loads(mode, server)[kind]()

    def added(self, modes: Sequence[Mode], rounds: int, rate: int, *, streams: bool) -> dict[str, list[float]]:
        """CPU-µs of a unary call, or of an event of paced streams, in each mode and of the floor, round by round.

        All servers run at once and are asked by turns: what else happens on the machine happens to all of them.
        """
        found: dict[str, list[float]] = {}
        kind, model = ("stream", "paced") if streams else ("unary", "plain")
        with ExitStack() as stack:
            servers = {mode.name: stack.enter_context(self._server(mode)) for mode in modes}
            calls = {mode.name: self._call(mode, "StreamGenerate" if streams else "Generate", model) for mode in modes}
            servers[FLOOR] = stack.enter_context(self._echo())
            calls[FLOOR] = (
                self._echoed("Stream", self._wish(PACED_EVENTS, PACED_SECONDS)) if streams else self._echo_unary
            )
            for name, server in servers.items():
                self._warm(partial(self.load.once, server, kind, rate=rate, **calls[name]))
            for number in range(rounds):
                print(f"round {number + 1} of {rounds} ...", file=sys.stderr, flush=True)
                for name, server in servers.items():
                    seen = self.load.once(server, kind, rate=rate, **calls[name])
                    cost = seen.cpu_per_call / (seen.messages_per_call if streams else 1)
                    found.setdefault(name, []).append(cost)
        return found

    def instructions(self, modes: Sequence[Mode]) -> dict[str, float]:
        """Instructions that a unary call in each mode takes outside of the kernel, in thousands, and the floor's.

        They are the difference of two runs, so that the start is in neither.
        """
        starts: dict[str, Starts] = {FLOOR: self._echo, **{mode.name: partial(self._server, mode) for mode in modes}}
        calls = {FLOOR: self._echo_unary, **{mode.name: self._call(mode, "Generate", "plain") for mode in modes}}
        found: dict[str, float] = {}
        for name, start in starts.items():
            few, many = (self._instructions(start, count, calls[name]) for count in COUNTED_CALLS)
            found[name] = (many - few) / (COUNTED_CALLS[1] - COUNTED_CALLS[0]) / 1000
            print(f"{name:<10}{found[name]:>8.0f}", flush=True)
        return found

    def _instructions(self, start: Starts, count: int, call: Mapping[str, Any]) -> int:
        log = self._directory / "cachegrind.log"
        with start(under=(*CACHEGRIND, f"--log-file={log}")) as server:
            self.load.once(server, "unary", count=count, callers=COUNTED_CALLERS, **call)
        counted = re.search(r"I\s+refs:\s+([\d,]+)", log.read_text())
        if not counted:
            raise Spoiled(f"valgrind did not count:\n{log.read_text()[-2000:]}")
        return int(counted[1].replace(",", ""))

    def _direct(self) -> tuple[Seen, Seen]:
        """The vendor without a gateway, asked by the same client over HTTP."""
        url = f"http://{self.load.vendor.address}/v1/chat/completions"
        seen = []
        for kind, model, rate in (("http", "plain", 500), ("http-stream", "paced", 100)):
            body = self._directory / f"{model}.json"
            messages = [{"role": "user", "content": "Say what a call costs. " * 30}]
            body.write_text(json.dumps({"model": model, "messages": messages}, separators=(",", ":")))
            seen.append(self.load(None, kind, target=url, request=body, rate=rate))
        return seen[0], seen[1]

    def _mode(self, mode: Mode, direct: Seen, direct_stream: Seen, *, lasting: bool) -> Figures:
        figures: Figures = {}
        with self._server(mode) as server:
            loads = self._loads(mode, server)
            figures["start"] = server.started
            figures["memory_idle"] = server.resident / MB
            self._warm(loads["unary_saturated"])
            unary = loads["unary"]()
            figures["cpu_unary"] = unary.cpu_per_call
            figures["added_p50"] = unary.p50 - direct.p50
            figures["added_p99"] = unary.p99 - direct.p99
            saturated = loads["unary_saturated"]()
            figures["cpu_unary_saturated"] = saturated.cpu_per_call
            figures["rate_saturated"] = saturated.per_second
            burst = loads["burst"]()
            figures["cpu_burst"] = burst.cpu_per_call
            figures["messages_burst"] = burst.messages_per_call
            paced = loads["paced"]()
            figures["cpu_paced"] = paced.cpu_per_call
            figures["messages_paced"] = paced.messages_per_call
            figures["added_first_p50"] = paced.first_p50 - direct_stream.first_p50
            figures["added_first_p99"] = paced.first_p99 - direct_stream.first_p99
            figures["memory_loaded"] = server.resident / MB
            figures["cpu_embed"] = loads["embed"]().cpu_per_call
            self._cancels(mode, server, figures)
        with self._server(mode) as server:
            self._memory(mode, server, figures, lasting=lasting)
        return figures

    def _cancels(self, mode: Mode, server: Running, figures: Figures) -> None:
        with self.load.beside(server, "unary", rate=300, **self._call(mode, "Generate", "plain")):
            for name, model in (("cancel", "endless"), ("cancel_waiting", "silent")):
                call = self._call(mode, "StreamGenerate", model)
                seen = self.load.once(server, "cancel", count=20 if self._quick else 100, **call)
                figures[f"{name}_p50"] = seen.p50 / 1000
                figures[f"{name}_p99"] = seen.p99 / 1000

    def _memory(self, mode: Mode, server: Running, figures: Figures, *, lasting: bool) -> None:
        call = self._call(mode, "StreamGenerate", "idle")
        self._warm(self._loads(mode, server)["burst"])
        held = self.load.once(server, "hold", count=STREAMS_IN_FLIGHT, **call)
        figures["memory_stream"] = held.memory_per_call / 1000
        if lasting:
            self.load.once(server, "stream", count=STREAMS, **self._call(mode, "StreamGenerate", "burst"))
            figures["memory_streams"] = server.resident / MB

    def _floor(self, like: Figures) -> Figures:
        """grpc.aio alone, with as many messages a stream as a mode of ours sent."""
        figures: Figures = {}
        with self._echo() as server:
            figures["start"] = server.started
            figures["memory_idle"] = server.resident / MB
            unary = self._echo_unary
            self._warm(lambda: self.load(server, "unary", **unary))
            figures["cpu_unary"] = self.load(server, "unary", rate=500, **unary).cpu_per_call
            saturated = self.load(server, "unary", **unary)
            figures["cpu_unary_saturated"] = saturated.cpu_per_call
            figures["rate_saturated"] = saturated.per_second
            for name, pause, rate in (("burst", 0.0, 300), ("paced", PACED_SECONDS, 100)):
                wish = self._wish(round(like[f"messages_{name}"]), pause)
                seen = self.load(server, "stream", rate=rate, **self._echoed("Stream", wish))
                figures[f"cpu_{name}"] = seen.cpu_per_call
            figures["memory_loaded"] = server.resident / MB
        return figures

    def _echo(self, under: Sequence[str] = ()) -> AbstractContextManager[Running]:
        return running(*under, sys.executable, str(BENCH / "echo.py"), core=self._core)

    @property
    def _echo_unary(self) -> dict[str, Any]:
        return {**self._echoed("Unary", self._requests["generate"]), "model": "vendor/plain"}

    def _echoed(self, method: str, request: Path) -> dict[str, Any]:
        return {"method": f"/bench.Echo/{method}", "request": request}

    def _wish(self, messages: int, pause: float) -> Path:
        """A request for a stream of so many messages with so many seconds between them."""
        wish = self._directory / f"{messages}-{pause}.json"
        wish.write_text(json.dumps({"messages": messages, "pause": pause}))
        return wish

    @contextmanager
    def _server(self, mode: Mode, under: Sequence[str] = ()) -> Iterator[Running]:
        with redis_server() if mode.redis else nullcontext("") as redis:
            folder = Path(tempfile.mkdtemp(prefix=f"{mode.name}-", dir=self._directory))
            config = folder / "headgate.yaml"
            config.write_text(json.dumps(configuration(mode, self.load.vendor.address, redis)))
            command = (*under, sys.executable, "-m", "headgate_server", "serve", "--config", str(config))
            errors = folder / "log"
            with running(*command, core=self._core, errors=errors, environment=mode.environment) as server:
                yield server

    def _loads(self, mode: Mode, server: Running) -> dict[str, Callable[[], Seen]]:
        unary = self._call(mode, "Generate", "plain")
        return {
            "unary": lambda: self.load(server, "unary", rate=500, **unary),
            "unary_saturated": lambda: self.load(server, "unary", **unary),
            "burst": lambda: self.load(server, "stream", rate=300, **self._call(mode, "StreamGenerate", "burst")),
            "paced": lambda: self.load(server, "stream", rate=100, **self._call(mode, "StreamGenerate", "paced")),
            "embed": lambda: self.load(server, "unary", rate=50, **self._call(mode, "Embed", "embed")),
        }

    def _call(self, mode: Mode, method: str, model: str) -> dict[str, Any]:
        return {
            "method": f"{SERVICE}/{method}",
            "request": self._requests["embed" if method == "Embed" else "generate"],
            "model": f"{mode.prefix}{model}",
            "metadata": mode.metadata,
        }

    def _warm(self, load: Callable[[], Seen]) -> None:
        seconds, self.load.seconds = self.load.seconds, 0.5
        load()
        self.load.seconds = seconds


def main() -> int:
    """Measures, prints the table, and saves it when asked to."""
    options = _options()
    modes = [mode for mode in MODES if options.mode in (None, mode.name)]
    try:
        build()
        cores = sorted(sched_getaffinity(0))
        sched_setaffinity(0, cores[:-1])
        with tempfile.TemporaryDirectory() as directory, running(str(BUILT / "fakevendor")) as vendor:
            bench = Bench(vendor, cores[-1], Path(directory), quick=options.quick, seconds=options.seconds)
            if options.instructions:
                if shutil.which(CACHEGRIND[0]) is None:
                    raise Skipped("--instructions needs valgrind: skipped")
                print(report.instructions(bench.instructions(MODES), MODES))
                return 0
            if options.added:
                rate = options.rate or (100 if options.streams else 500)
                by_turns = bench.added(MODES, options.added, rate, streams=options.streams)
                print(report.added(by_turns, MODES, streams=options.streams))
                return 0
            if options.watch:
                print(report.watched(bench.watch(modes[-1], options.watch)))
                return 0
            rounds = []
            for number in range(1 if options.quick else ROUNDS):
                print(f"round {number + 1} ...", file=sys.stderr, flush=True)
                rounds.append(bench.round(modes, lasting=not options.quick and not number))
    except Skipped as reason:
        print(reason)
        return 0
    except Spoiled as reason:
        print(reason, file=sys.stderr)
        return 1
    found = {column: _medians([columns[column] for columns in rounds]) for column in rounds[0]}
    saved = json.loads(RESULTS.read_text())["figures"] if RESULTS.exists() else {}
    print(report.table(found, saved))
    if bench.load.disturbed:
        print(
            f"\n{bench.load.disturbed} runs were disturbed by other programs: measure again when the machine is idle."
        )
    if options.save:
        RESULTS.write_text(json.dumps({"machine": _machine(), "figures": found}, indent=2) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description="What a call costs. See bench/README.md.")
    parser.add_argument("--quick", action="store_true", help="one short round, in under a minute")
    parser.add_argument("--save", action="store_true", help="make this the result that later ones are compared with")
    parser.add_argument("--mode", choices=[mode.name for mode in MODES], help="measure this one only")
    parser.add_argument("--seconds", type=float, help="length of one measurement")
    parser.add_argument(
        "--added", type=int, metavar="ROUNDS", help="only what each mode adds to a unary call, by turns"
    )
    parser.add_argument("--streams", action="store_true", help="what --added tells of are the events of paced streams")
    parser.add_argument("--rate", type=int, help="calls a second of --added (500, or 100 streams)")
    parser.add_argument("--instructions", action="store_true", help="only count instructions, by valgrind's cachegrind")
    parser.add_argument("--watch", choices=WATCHED, help="only put this load on one server, for a profiler")
    options = parser.parse_args()
    if options.save and (options.quick or options.mode or options.watch or options.added or options.instructions):
        parser.error("only a whole run can be saved")
    if options.added is not None and (options.added < 2 or options.mode):
        parser.error("--added takes two rounds or more, and every mode")
    return options


def _medians(rounds: list[Figures]) -> Figures:
    return {name: round(median(figures[name] for figures in rounds if name in figures), 3) for name in rounds[0]}


def _machine() -> dict[str, str]:
    """What the figures depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


if __name__ == "__main__":
    sys.exit(main())
