"""Where the server listens: probes apart from TLS, clients with certificates and without, and new certificates."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest
from headgate import v1 as pb

from headgate_server.config import Config, ConfigError, load
from tests.certificates import Authority, Certificate
from tests.conftest import LogLines, Serve
from tests.headgate_process import ask, eventually, failing
from tests.tools import grpcurl, headgate_serve, messages, run, tool

AUTHORITY = Authority()
CLIENT = AUTHORITY.client("billing")
MOCK = {"demo": {"adapter": "mock"}}
GENERATE = "headgate.v1.InferenceService/Generate"
HELLO = {"model": "demo/echo", "messages": [{"role": "ROLE_USER", "parts": [{"text": "Hi"}]}]}
ANY_PORT = "127.0.0.1:0"


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, str]:
    """`server.tls` without client certificates."""
    install(tmp_path, AUTHORITY.server())
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.certificate)
    (tmp_path / "client.pem").write_bytes(CLIENT.certificate)
    (tmp_path / "client.key").write_bytes(CLIENT.key)
    return {"certificate_file": str(tmp_path / "live" / "tls.crt"), "key_file": str(tmp_path / "live" / "tls.key")}


def install(folder: Path, certificate: Certificate) -> None:
    """Swaps a symbolic link, as Kubernetes does with a Secret: certificate and key change at one moment."""
    version = folder / f"version-{time.monotonic_ns()}"
    version.mkdir()
    (version / "tls.crt").write_bytes(certificate.certificate)
    (version / "tls.key").write_bytes(certificate.key)
    link = folder / "new"
    link.symlink_to(version)
    os.replace(link, folder / "live")


@asynccontextmanager
async def calling(
    address: str, certificate: Certificate | None = None, authority: Authority = AUTHORITY
) -> AsyncIterator[pb.InferenceServiceAsyncStub]:
    """A stub on a connection of its own."""
    shown = (certificate.key, certificate.certificate) if certificate else ()
    credentials = grpc.ssl_channel_credentials(authority.certificate, *shown)
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        yield pb.InferenceServiceStub(channel)


async def probe(address: str, *options: str) -> int:
    """The exit code of grpc-health-probe for readiness; 0 is serving, 4 is not serving."""
    return (await run(tool("grpc-health-probe"), f"-addr={address}", "-service=readiness", *options)).code


async def test_probes_that_speak_no_tls_have_a_server_of_their_own(
    serve: Serve, tls: dict[str, str], tmp_path: Path
) -> None:
    """It answers health checks and nothing else; the TLS listener answers a probe that speaks TLS."""
    async with serve(providers=MOCK, server={"tls": tls, "probe_listen": ANY_PORT}) as headgate:
        probes = f"127.0.0.1:{headgate.application.other_ports['probe_port']}"
        assert await probe(probes) == 0
        assert await probe(headgate.address) != 0, "plain text at the TLS listener"
        assert await probe(headgate.address, "-tls", f"-tls-ca-cert={tmp_path / 'ca.pem'}") == 0
        async with grpc.aio.insecure_channel(probes) as channel:
            refused = await failing(pb.InferenceServiceStub(channel).Generate(ask("demo/echo")))
        assert refused.code is grpc.StatusCode.UNIMPLEMENTED
        assert "does not support the reflection API" in (await grpcurl(probes)).stderr


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
async def test_probes_see_a_drain_and_liveness_to_its_end(serve: Serve, tls: dict[str, str], secured: bool) -> None:
    """Not ready at once, alive until the process has ended: the probe server closes last."""
    server = {"tls": tls, "probe_listen": ANY_PORT} if secured else {}
    async with serve(providers=MOCK, server=server) as headgate:
        address = f"127.0.0.1:{headgate.application.other_ports['probe_port']}" if secured else headgate.address
        assert await probe(address) == 0
        hurry = asyncio.Event()
        draining = asyncio.create_task(headgate.application.stop(delay=30, grace=0, hurry=hurry))
        await asyncio.sleep(0)
        assert await probe(address) == 4
        alive = await run(tool("grpc-health-probe"), f"-addr={address}", "-service=liveness")
        assert alive.code == 0
        hurry.set()
        await draining


async def test_clients_with_certificates_and_without_have_a_port_each(
    serve: Serve, tls: dict[str, str], tmp_path: Path, logged: LogLines
) -> None:
    """gRPC's Python server asks all clients of a port for a certificate, or none; grpcurl sees the same."""
    both = {**tls, "client_ca_file": str(tmp_path / "ca.pem"), "mtls_listen": ANY_PORT}
    auth = {"anonymous": True, "mtls": [{"subject": "CN=billing,O=Example", "tenant": "billing"}]}
    async with serve(providers=MOCK, auth=auth, server={"tls": both}) as headgate:
        mutual = f"127.0.0.1:{headgate.application.other_ports['mtls_port']}"
        async with calling(headgate.address) as stub:
            await stub.Generate(ask("demo/echo"))
        async with calling(mutual, CLIENT) as stub:
            await stub.Generate(ask("demo/echo"))
        async with calling(mutual) as stub:
            assert (await failing(stub.Generate(ask("demo/echo"), timeout=10))).code is grpc.StatusCode.UNAVAILABLE
        trusting = ("-cacert", str(tmp_path / "ca.pem"))
        showing = ("-cert", str(tmp_path / "client.pem"), "-key", str(tmp_path / "client.key"))
        for address, options in ((headgate.address, trusting), (mutual, (*trusting, *showing))):
            shown = await grpcurl(address, GENERATE, HELLO, *options, plaintext=False)
            assert messages(shown.stdout)[0]["candidates"], shown.stderr
        without = await grpcurl(mutual, GENERATE, HELLO, *trusting, "-max-time", "5", plaintext=False)
        assert without.code != 0
    assert [line.get("tenant", "") for line in logged.calls] == ["", "billing", "", "billing"]


def test_a_port_for_certificates_needs_their_authority(tls: dict[str, str]) -> None:
    """Without one nobody's certificate could be verified."""
    with pytest.raises(ValueError, match="mtls_listen needs client_ca_file"):
        Config.model_validate({"server": {"tls": {**tls, "mtls_listen": ANY_PORT}}})


@pytest.mark.parametrize("open_to_others", ["listen", "mtls_listen"])
def test_a_port_that_is_open_to_others_needs_a_way_in(tls: dict[str, str], tmp_path: Path, open_to_others: str) -> None:
    """Whichever it is: a certificate alone says who calls only where auth.mtls knows it."""
    certificates = {**tls, "client_ca_file": str(tmp_path / "ca.pem")}
    server: dict[str, object] = {"tls": certificates}
    (certificates if open_to_others == "mtls_listen" else server)[open_to_others] = "0.0.0.0:50053"
    file = tmp_path / "headgate.yaml"
    file.write_text(json.dumps({"server": server, "providers": MOCK}))
    with pytest.raises(ConfigError, match=f"{open_to_others}: 0.0.0.0 is open to other machines"):
        load(file, {})


@pytest.mark.parametrize(("minimum", "old_is_served"), [("1.2", True), ("1.3", False)])
async def test_the_minimum_version_holds(
    tls: dict[str, str], tmp_path: Path, minimum: str, old_is_served: bool
) -> None:
    """A client that speaks TLS 1.2 at most gets no connection where 1.3 is the minimum; others do."""
    config = tmp_path / "headgate.yaml"
    server = {"tls": {**tls, "minimum_version": minimum}, "drain_delay": 0}
    config.write_text(json.dumps({"server": server, "providers": MOCK}))
    async with headgate_serve("--config", str(config)) as headgate:
        assert await asyncio.to_thread(spoken, headgate.address, tmp_path, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        old = await asyncio.to_thread(spoken, headgate.address, tmp_path, ssl.TLSVersion.TLSv1_2)
        assert old == ("TLSv1.2" if old_is_served else "")
        finished = await headgate.stop()
    assert finished.code == 0, finished.stderr


def spoken(address: str, folder: Path, most: ssl.TLSVersion) -> str:
    """The version that a handshake of at most this one comes to; empty where it fails."""
    import socket

    context = ssl.create_default_context(cafile=folder / "ca.pem")
    context.maximum_version = most
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 5) as plain:
            with context.wrap_socket(plain, server_hostname=host) as secure:
                return secure.version() or ""
    except OSError:
        return ""


async def test_certificates_change_under_load_without_a_failed_call(
    serve: Serve, tls: dict[str, str], tmp_path: Path, logged: LogLines
) -> None:
    """New connections all the time, and eight new certificates; a broken one leaves the last in place."""

    def told(event: str) -> int:
        return sum(line["event"] == event for line in logged.lines)

    async with serve(providers=MOCK, server={"tls": tls}) as headgate:
        stopped = asyncio.Event()
        callers = [asyncio.create_task(call_until(stopped, headgate.address)) for _ in range(3)]
        for number in range(1, 9):
            install(tmp_path, AUTHORITY.server())
            await eventually(lambda number=number: told("certificate_reloaded") == number, 20)
        install(tmp_path, Certificate(b"no certificate", b"no key"))
        await eventually(lambda: told("certificate_not_reloaded") == 1, 20)
        stopped.set()
        assert min(await asyncio.gather(*callers)) > 0
        async with calling(headgate.address) as stub:
            await stub.Generate(ask("demo/echo"), timeout=10)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{headgate.application.admin_address}/metrics") as scraped:
                assert "headgate_certificate_refusals_total 1.0" in await scraped.text()
    assert told("certificate_not_reloaded") == 1


async def call_until(stopped: asyncio.Event, address: str) -> int:
    """Makes calls, each three on a connection of their own; how many, none of which failed."""
    made = 0
    while not stopped.is_set():
        async with calling(address) as stub:
            await asyncio.gather(*(stub.Generate(ask("demo/echo"), timeout=20) for _ in range(3)))
        made += 3
    return made


async def test_another_authority_of_clients_counts_from_the_next_connection_on(
    serve: Serve, tls: dict[str, str], tmp_path: Path
) -> None:
    """Who had a certificate of the last one is not let in any more."""
    authorities = tmp_path / "ca.pem"
    other = Authority()
    async with serve(providers=MOCK, server={"tls": {**tls, "client_ca_file": str(authorities)}}) as headgate:
        async with calling(headgate.address, CLIENT) as stub:
            await stub.Generate(ask("demo/echo"))
        replacement = tmp_path / "other.pem"
        replacement.write_bytes(other.certificate)
        replacement.replace(authorities)
        async with calling(headgate.address, other.client()) as stub:
            await stub.Generate(ask("demo/echo"), timeout=10)
        async with calling(headgate.address, CLIENT) as stub:
            assert (await failing(stub.Generate(ask("demo/echo"), timeout=10))).code is grpc.StatusCode.UNAVAILABLE


async def test_an_address_that_is_taken_is_named(serve: Serve, tmp_path: Path) -> None:
    """Of the probe listener as of the others; the command exits 2."""
    async with serve(providers=MOCK) as headgate:
        config = tmp_path / "headgate.yaml"
        config.write_text(f'server: {{probe_listen: "{headgate.address}"}}\nproviders: {{d: {{adapter: mock}}}}\n')
        command = (sys.executable, "-m", "headgate_server", "serve", "--config", str(config))
        ended = await run(*command, env={"PORT": "0", "HEADGATE_ADMIN_PORT": "0"})
    assert (ended.code, f"error: cannot listen on {headgate.address}" in ended.stderr) == (2, True), ended.stderr
