"""The wiring: what a running Headgate consists of, and how it starts and stops."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio
import structlog
from google.rpc import error_details_pb2  # noqa: F401  # known to reflection, so that grpcurl shows error details
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as grpc_health
from grpc_reflection.v1alpha import reflection
from headgate import v1 as pb

import headgate_server
from headgate_server import logs
from headgate_server.admin.listener import AdminListener
from headgate_server.admin.status import configuration, pools, status as status_page, targets, tasks
from headgate_server.call import CallRegistry
from headgate_server.config import Config, Ledger as LedgerConfig
from headgate_server.config.tree import Server as ServerConfig
from headgate_server.interceptors.access_log import log_call
from headgate_server.interceptors.admission import admission
from headgate_server.interceptors.auth import authenticate, permit
from headgate_server.interceptors.chain import Chain
from headgate_server.interceptors.ended_calls import EndedCalls
from headgate_server.interceptors.ledger import conclude, enter
from headgate_server.interceptors.limits import reserve, settle
from headgate_server.interceptors.metrics import metrics
from headgate_server.interceptors.tracing import begin_trace, end_trace
from headgate_server.interceptors.validation import validate
from headgate_server.ledger.ledger import Ledger
from headgate_server.listeners import Listeners, ProbeServer, channel_options, raise_open_file_limit
from headgate_server.memory import MemoryWatch
from headgate_server.receiving import Reception
from headgate_server.reload import Reloader
from headgate_server.runtime import Runtime
from headgate_server.servicers.inference import InferenceServicer
from headgate_server.telemetry.event_loop import watch_lag
from headgate_server.telemetry.gauges import RunningServer
from headgate_server.telemetry.metrics import Metrics
from headgate_server.telemetry.recent import Recent

if TYPE_CHECKING:
    from headgate_server.telemetry.tracing import CallTracer

SERVICE = "headgate.v1.InferenceService"
READINESS = ("", SERVICE, "readiness")
LIVENESS = "liveness"
STOPPING = (signal.SIGTERM, signal.SIGINT)
CLEANUP_SECONDS = 5.0
FAREWELL_SECONDS = 0.2
RELOAD_PATIENCE_SECONDS = 2.0
"""So long a reload waits for new tokens and signing keys: what else it changes must not wait long."""
RELOADABLE = {"receive_timeout", "max_concurrent_calls", "max_reply_bytes", "drain_delay", "drain_grace"}

log = structlog.get_logger(component="server")


class Application:
    """One server with everything in it. Made inside the running event loop, started and stopped once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.admin_address = ""
        """HOST:PORT of the admin listener, once it listens."""
        self._calls = CallRegistry()
        self._runtime = Runtime(config)
        self._retiring: set[asyncio.Task[None]] = set()
        self._tracer = _call_tracer(config)
        self._ledger = Ledger(config.ledger) if config.ledger else None
        self._servicer = InferenceServicer(self._calls, self._ledger)
        self._metrics = Metrics()
        self._listeners = Listeners(config.server)
        self._metrics.registry.register(
            RunningServer(
                self._calls, lambda: self._runtime, self._listeners.certificates, self._ledger, time.monotonic
            )
        )
        self._recent = Recent()
        counting = [metrics(self._metrics, self._recent)] if config.admin.enabled else []
        entering = [conclude(self._ledger)] if self._ledger else []
        self._ended = EndedCalls([*entering, log_call, *counting])
        self._admin = self._admin_listener(config) if config.admin.enabled else None
        self._reception = Reception()
        self._memory = MemoryWatch(int(config.server.max_memory_bytes), self._reception.give_up_slow)
        self._watching: list[asyncio.Task[None]] = []
        self._health = grpc_health.HealthServicer()
        listen = config.server.probe_listen
        self._probes = ProbeServer(listen, self._health) if listen else None
        self._server = grpc.aio.server(
            interceptors=[
                Chain(
                    SERVICE,
                    self._calls,
                    lambda: self._runtime,
                    begin=[logs.bind, begin_trace(self._tracer)],
                    before_parse=[admission(self._calls, lambda: self._memory.short), authenticate],
                    after_parse=[*([enter(self._ledger)] if self._ledger else []), validate, permit, reserve],
                    end=[settle, end_trace, self._ended.add],
                    reception=self._reception,
                )
            ],
            options=channel_options(config.server),
            maximum_concurrent_rpcs=config.server.max_concurrent_rpcs or None,
        )
        # The chain hands every method a Call where the generated base class has gRPC's context.
        pb.add_InferenceServiceServicer_to_server(cast(pb.InferenceServiceServicer, self._servicer), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if config.server.reflection:
            reflection.enable_server_reflection(
                [
                    SERVICE,
                    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
                    reflection.SERVICE_NAME,
                ],
                self._server,
            )

    @property
    def calls(self) -> CallRegistry:
        """The calls in flight."""
        return self._calls

    @property
    def ended(self) -> EndedCalls:
        """The calls that are over and not told of yet."""
        return self._ended

    @property
    def other_ports(self) -> dict[str, int]:
        """Those of `server.probe_listen` and `server.tls.mtls_listen`, once they are bound; 0 without one."""
        return {"probe_port": self._probes.port if self._probes else 0, "mtls_port": self._listeners.mtls_port}

    @property
    def runtime(self) -> Runtime:
        """What new calls begin with."""
        return self._runtime

    def _admin_listener(self, config: Config) -> AdminListener:
        started = time.time()
        debug: dict[str, Callable[[], dict[str, Any]]] = {
            "tasks": tasks,
            "targets": lambda: targets(self._runtime),
            "pools": lambda: pools(self._runtime),
            "configuration": lambda: configuration(self._runtime.config),
        }
        return AdminListener(
            self._metrics.registry,
            lambda: self._servicer.state == pb.SERVING_STATE_SERVING,
            lambda: status_page(self._runtime, self._calls, self._recent, self._ledger, self._servicer.state, started),
            debug if config.admin.debug else {},
            self._ended.tell,
        )

    async def start(self) -> int:
        """Listens and serves; the port that was bound.

        Raises:
            OSError: an address cannot be bound. What had begun is ended.
        """
        try:
            return await self._start()
        except BaseException:
            await self._server.stop(0)
            await self._close()
            raise

    async def _start(self) -> int:
        if self._ledger:
            await self._ledger.start()
        await self._runtime.start()
        self._watching = [
            asyncio.create_task(watch_lag(self._metrics.record_lag)),
            asyncio.create_task(self._memory.run()),
            asyncio.create_task(self._reception.run()),
        ]
        if self._admin:
            self.admin_address = await self._start_admin(self._admin)
        port = self._listeners.bind(self._server)
        await self._server.start()
        for name in (*READINESS, LIVENESS):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        if self._probes:
            await self._probes.start()
        return port

    async def _start_admin(self, admin: AdminListener) -> str:
        try:
            return await admin.start(self._config.admin.listen)
        except OSError as error:
            raise OSError(f"cannot listen on {self._config.admin.listen} (admin)") from error

    async def reload(self, config: Config) -> None:
        """Serves by another configuration from the next call on; calls in flight finish as they began.

        Raises:
            OSError: a file that it names cannot be read any more; nothing has changed.
        """
        successor = await self._started(Runtime(config, self._runtime))
        retired, self._runtime = self._runtime, successor
        self._metrics.record_reload(applied=True)
        retiring = asyncio.create_task(self._retire(retired, successor, tuple(self._retiring)))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        unchanged = sorted(_needing_restart(self._config, config))
        log.info("configuration_reloaded", providers=list(config.providers), models=list(config.models))
        successor.identity.events.configuration_changed(roots=_roots_changed(retired.config, config))
        if unchanged:
            log.warning("restart_needed", keys=unchanged)

    async def _started(self, successor: Runtime) -> Runtime:
        try:
            await successor.start(RELOAD_PATIENCE_SECONDS)
        except BaseException:
            await successor.close(self._runtime)
            self._runtime.identity.keep_events()
            raise
        return successor

    def reload_refused(self) -> None:
        """A configuration was read that cannot be used."""
        self._metrics.record_reload(applied=False)

    async def _retire(self, retired: Runtime, successor: Runtime, earlier: Collection[asyncio.Task[None]]) -> None:
        """Closes it after the last call of its own, and of those that it took providers over from."""
        await retired.retire()
        await self._calls.left(retired)
        if earlier:
            await asyncio.wait(earlier)
        await retired.close(successor)

    async def stop(self, *, delay: float, grace: float, hurry: asyncio.Event | None = None) -> None:
        """Drains: not ready, `delay` seconds of serving on, no new calls, at most `grace` seconds for those in flight.

        `hurry` cuts delay and grace short. Returns after every call's own cleanup.
        """
        hurry = hurry or asyncio.Event()
        self._servicer.state = pb.SERVING_STATE_DRAINING
        self._metrics.draining.set(1)
        for name in READINESS:
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        await _sleep(delay, hurry)
        # Not the server's own stop is waited for: a health Watch that stays open would take all of its grace.
        stopping = asyncio.create_task(self._server.stop(grace + 2 * CLEANUP_SECONDS))
        drained = asyncio.create_task(self._calls.drained(grace))
        hurrying = asyncio.create_task(hurry.wait())
        await asyncio.wait((drained, hurrying), return_when=asyncio.FIRST_COMPLETED)
        self._calls.cut()
        if not await self._calls.drained(CLEANUP_SECONDS):
            log.error("calls_left_at_stop", calls=len(self._calls))
        hurrying.cancel()
        # What ended calls were told is on its way: closing their connections under it would take it from them.
        await asyncio.wait((stopping,), timeout=FAREWELL_SECONDS)
        await self._server.stop(0)
        await stopping
        await drained
        if self._retiring:
            await asyncio.wait(self._retiring, timeout=CLEANUP_SECONDS)
        await self._close()

    async def _close(self) -> None:
        for task in self._watching:
            task.cancel()
        async with AsyncExitStack() as closing:  # from the last to the first, each whatever another raises
            for part in (self._tracer, self._admin, self._probes, self._ledger):
                if part:
                    closing.push_async_callback(part.close)
            closing.callback(self._ended.tell)  # while there is a ledger to hear of it
            closing.push_async_callback(self._runtime.close)


def run(config: Config, path: Path | None = None, environment: Mapping[str, str] = MappingProxyType({})) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal cuts the drain short.

    With a `path`, SIGHUP and changes beside that file have it read again, with the same environment.
    """
    logs.configure(config.telemetry)
    raise_open_file_limit()
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(config, path, environment))
    else:
        uvloop.run(_serve(config, path, environment))


async def _serve(config: Config, path: Path | None, environment: Mapping[str, str]) -> None:
    application = Application(config)
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[signal.Signals] = loop.create_future()
    hurry = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.done():
            hurry.set()
        else:
            stop.set_result(number)

    for number in STOPPING:
        loop.add_signal_handler(number, on_signal, number)
    port = await application.start()
    host = config.server.listen.rpartition(":")[0]
    log.info(
        "serving",
        version=headgate_server.__version__,
        address=f"{host}:{port}",
        admin=application.admin_address,
        **{name: port for name, port in application.other_ports.items() if port},
        providers=list(config.providers),
        models=list(config.models),
        reflection=config.server.reflection,
    )
    reloading = _begin_reloading(application, config, path, environment)
    gc.collect()
    gc.freeze()  # what is there by now stays: the collector need not go through it again and again
    _print_welcome(config, f"{host}:{port}", application.admin_address)
    # Ctrl-C comes from a person: no load balancer has to notice first.
    interrupted = await stop == signal.SIGINT
    log.info("draining", calls=len(application.calls))
    if reloading:
        reloading.cancel()
        await asyncio.gather(reloading, return_exceptions=True)
    server = application.runtime.config.server
    delay = 0.0 if interrupted else server.drain_delay
    await application.stop(delay=delay, grace=server.drain_grace, hurry=hurry)
    logs.report_held_back()
    log.info("stopped")
    for number in STOPPING:  # all is done: one more must not make a failure of the exit
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


def _begin_reloading(
    application: Application, config: Config, path: Path | None, environment: Mapping[str, str]
) -> asyncio.Task[None] | None:
    """Without a file there is nothing to read again; SIGHUP then changes nothing, and ends nothing either."""
    loop = asyncio.get_running_loop()
    if path is None:
        loop.add_signal_handler(signal.SIGHUP, log.info, "no_configuration_file")
        return None
    reloader = Reloader(path, environment, application.reload, application.reload_refused)
    loop.add_signal_handler(signal.SIGHUP, reloader.request)
    return asyncio.create_task(reloader.run(config))


def _print_welcome(config: Config, address: str, admin_address: str) -> None:
    """What is served, and a call to paste."""
    names = [name for name in config.models if "*" not in name]
    model = names[0] if names else f"{next(iter(config.providers), 'PROVIDER')}/MODEL"
    body = f'{{"model":"{model}","messages":[{{"role":"ROLE_USER","parts":[{{"text":"Hello"}}]}}]}}'
    print(f"Headgate {headgate_server.__version__} serves {address}", flush=True)
    for name, alias in config.models.items():
        print(f"  {name}: {', '.join(f'{t.provider}/{t.model}' for t in alias.targets)}")
    if admin_address:
        print(f"Status page, metrics and health: http://{admin_address}/")
    print("Try:")
    key = config.auth.authenticates and not config.auth.anonymous and not config.auth.mtls
    if config.server.reflection:
        plaintext = "" if config.server.tls else " -plaintext"
        bearer = " -H 'authorization: Bearer KEY'" if key else ""
        print(f"  grpcurl{plaintext}{bearer} -max-time 600 -d '{body}' {address} {SERVICE}/StreamGenerate")
    options = (" --tls" if config.server.tls else "") + (" --key KEY" if key else "")
    print(f"  headgate call --address {address}{options} --model {model} Hello", flush=True)


def _roots_changed(before: Config, after: Config) -> str:
    return ", ".join(root for root in Config.model_fields if getattr(before, root) != getattr(after, root))


def _needing_restart(started: Config, config: Config) -> Iterator[str]:
    """Keys that differ and are read at the start alone."""
    for name in set(ServerConfig.model_fields) - RELOADABLE:
        if getattr(started.server, name) != getattr(config.server, name):
            yield f"server.{name}"
    for name in ("admin", "telemetry"):
        if getattr(started, name) != getattr(config, name):
            yield name
    if _without_content(started.ledger) != _without_content(config.ledger):
        yield "ledger"


def _without_content(ledger: LedgerConfig | None) -> LedgerConfig | None:
    """What of the ledger is read at the start alone."""
    return ledger and ledger.model_copy(update={"content": None})


def _call_tracer(config: Config) -> CallTracer | None:
    if not config.telemetry.traces.enabled:
        return None
    from headgate_server.telemetry.tracing import call_tracer  # an extra

    return call_tracer(config.telemetry.traces, config.server.listen)


async def _sleep(seconds: float, until: asyncio.Event) -> None:
    """Sleeps, or until the event."""
    with suppress(TimeoutError):
        await asyncio.wait_for(until.wait(), seconds)
