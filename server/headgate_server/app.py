"""The wiring: what a running Headgate consists of, and how it starts and stops."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import cast

import grpc
import grpc.aio
import structlog
from google.rpc import error_details_pb2  # noqa: F401  # known to reflection, so that grpcurl shows error details
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as grpc_health
from grpc_reflection.v1alpha import reflection
from headgate import v1 as pb

import headgate_server
from headgate_server import listing, logs
from headgate_server.call import CallRegistry
from headgate_server.catalog import Catalog
from headgate_server.config import Config
from headgate_server.config.tree import Server as ServerConfig
from headgate_server.endpoints import Endpoint, cards, endpoint
from headgate_server.gateway import Gateway
from headgate_server.interceptors.access_log import access_log
from headgate_server.interceptors.admission import admission
from headgate_server.interceptors.chain import Chain
from headgate_server.interceptors.status import status
from headgate_server.providers.base import Target
from headgate_server.resilience.health import ProviderRecord
from headgate_server.routing import Routes
from headgate_server.servicers.inference import InferenceServicer
from headgate_server.upstream import Upstream

SERVICE = "headgate.v1.InferenceService"
READINESS = ("", SERVICE, "readiness")
LIVENESS = "liveness"
CLEANUP_SECONDS = 5.0

log = structlog.get_logger(component="server")


class Application:
    """One server with everything in it. Made inside the running event loop, started and stopped once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._calls = CallRegistry()
        endpoints = {name: endpoint(name, provider) for name, provider in config.providers.items()}
        health = {name: ProviderRecord(name) for name in endpoints}
        self._upstream = Upstream(endpoints)
        catalog = _catalog(config, endpoints)
        routes = _routes(config, endpoints)
        named = _named_targets(config, endpoints)
        models = listing.models(routes.aliases, named, self._upstream.capabilities, catalog)
        max_reply_bytes = config.server.max_reply_bytes
        gateway = Gateway(routes, self._upstream, health, catalog, max_reply_bytes=max_reply_bytes)
        self._servicer = InferenceServicer(gateway, models, health, self._calls)
        self._health = grpc_health.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[
                Chain(
                    SERVICE,
                    self._calls,
                    max_reply_bytes=config.server.max_reply_bytes,
                    before_parse=[
                        status,
                        access_log,
                        admission(self._calls, config.server.max_concurrent_calls),
                    ],
                )
            ],
            options=_channel_options(config.server),
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

    async def start(self) -> int:
        """Listens and serves; the port that was bound.

        Raises:
            OSError: the address cannot be bound.
        """
        await self._upstream.start()
        try:
            port = self._server.add_insecure_port(self._config.server.listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._config.server.listen}") from error
        await self._server.start()
        for name in (*READINESS, LIVENESS):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, *, delay: float, grace: float, hurry: asyncio.Event | None = None) -> None:
        """Drains: not ready, `delay` seconds of serving on, no new calls, at most `grace` seconds for those in flight.

        `hurry` cuts delay and grace short. Returns after every call's own cleanup.
        """
        hurry = hurry or asyncio.Event()
        self._servicer.state = pb.SERVING_STATE_DRAINING
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
        await self._server.stop(0)
        await stopping
        await drained
        await self._upstream.close()


def run(config: Config) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal cuts the drain short."""
    logs.configure(config.telemetry.log_level, config.telemetry.log_format)
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(config))
    else:
        uvloop.run(_serve(config))


async def _serve(config: Config) -> None:
    application = Application(config)
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[signal.Signals] = loop.create_future()
    hurry = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.done():
            hurry.set()
        else:
            stop.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    port = await application.start()
    host = config.server.listen.rpartition(":")[0]
    log.info(
        "serving",
        version=headgate_server.__version__,
        address=f"{host}:{port}",
        providers=list(config.providers),
        models=list(config.models),
        reflection=config.server.reflection,
    )
    _print_welcome(config, f"{host}:{port}")
    # Ctrl-C comes from a person: no load balancer has to notice first.
    delay = 0.0 if await stop == signal.SIGINT else config.server.drain_delay
    log.info("draining", calls=len(application.calls))
    await application.stop(delay=delay, grace=config.server.drain_grace, hurry=hurry)
    log.info("stopped")


def _print_welcome(config: Config, address: str) -> None:
    """What is served, and a call to paste."""
    model = next(iter(config.models), f"{next(iter(config.providers), 'PROVIDER')}/MODEL")
    body = f'{{"model":"{model}","messages":[{{"role":"ROLE_USER","parts":[{{"text":"Hello"}}]}}]}}'
    print(f"Headgate {headgate_server.__version__} serves {address}", flush=True)
    for name, alias in config.models.items():
        print(f"  {name}: {', '.join(f'{t.provider}/{t.model}' for t in alias.targets)}")
    print("Try:")
    if config.server.reflection:
        print(f"  grpcurl -plaintext -d '{body}' {address} {SERVICE}/StreamGenerate")
    print(f"  headgate call --address {address} --model {model} Hello", flush=True)


def _routes(config: Config, endpoints: dict[str, Endpoint]) -> Routes:
    def provider_target(provider: str, model: str) -> Target | None:
        endpoint = endpoints.get(provider)
        return None if endpoint is None else endpoint.target(model)

    aliases = {
        name: [endpoints[target.provider].target(target.model) for target in alias.targets]
        for name, alias in config.models.items()
    }
    return Routes(aliases, provider_target)


def _named_targets(config: Config, endpoints: dict[str, Endpoint]) -> Iterator[Target]:
    for alias in config.models.values():
        for target in alias.targets:
            yield endpoints[target.provider].target(target.model)
    for name, provider in config.providers.items():
        for model in (*provider.models, *provider.catalog):
            yield endpoints[name].target(model)


def _catalog(config: Config, endpoints: dict[str, Endpoint]) -> Catalog:
    configured = dict(card for name, provider in config.providers.items() for card in cards(name, provider))
    return Catalog(configured, {name: endpoint.base_url for name, endpoint in endpoints.items()})


def _channel_options(server: ServerConfig) -> list[tuple[str, int]]:
    options: dict[str, float | None] = {
        "grpc.so_reuseport": 0,
        "grpc.max_receive_message_length": server.max_request_bytes,
        "grpc.max_send_message_length": -1,  # the chain refuses with a reason what is larger than max_reply_bytes
        "grpc.max_metadata_size": server.max_metadata_bytes,  # between the two limits the core refuses at random
        "grpc.absolute_max_metadata_size": server.max_metadata_bytes,
        "grpc.max_concurrent_streams": server.max_concurrent_streams,
        "grpc.keepalive_time_ms": server.keepalive_time * 1000,
        "grpc.keepalive_timeout_ms": server.keepalive_timeout * 1000,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_ping_interval_without_data_ms": server.min_ping_interval * 1000,
        "grpc.server_handshake_timeout_ms": server.handshake_timeout * 1000,
        "grpc.max_connection_idle_ms": server.max_connection_idle and server.max_connection_idle * 1000,
        "grpc.max_connection_age_ms": server.max_connection_age and server.max_connection_age * 1000,
        "grpc.max_connection_age_grace_ms": server.max_connection_age_grace * 1000,
    }
    return [(name, int(value)) for name, value in options.items() if value is not None]


async def _sleep(seconds: float, until: asyncio.Event) -> None:
    """Sleeps, or until the event."""
    with suppress(TimeoutError):
        await asyncio.wait_for(until.wait(), seconds)
