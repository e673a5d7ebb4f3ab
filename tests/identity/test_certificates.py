"""Client certificates: whom they stand for, by the Python stubs, by grpcurl and by Headgate's own command."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest
from headgate import v1 as pb

from headgate_server.identity.mtls import spiffe_pattern
from tests.certificates import Authority, Certificate
from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, ask, failing
from tests.identity.callers import MOCK, PEPPER, bearer, static_key
from tests.tools import Finished, grpcurl, messages, run

AUTHORITY = Authority()
SERVER = AUTHORITY.server()
INDEXER = AUTHORITY.client("indexer", "spiffe://example.org/ns/search/sa/indexer")
BILLING = AUTHORITY.client("billing")
UNKNOWN = AUTHORITY.client("unknown", "spiffe://example.org/ns/other/sa/unknown")
TWO_NAMES = AUTHORITY.client("two", "spiffe://example.org/ns/search/sa/a", "spiffe://example.org/ns/search/sa/b")
FOREIGN = Authority().client("billing")
RULES = [
    {"spiffe_id": "spiffe://example.org/ns/search/sa/*", "tenant": "search", "allowed_models": ["demo/echo"]},
    {"subject": "CN=billing,O=Example", "tenant": "billing"},
]
GENERATE = "headgate.v1.InferenceService/Generate"
HELLO = {"model": "demo/echo", "messages": [{"role": "ROLE_USER", "parts": [{"text": "Hi"}]}]}
OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


def write(folder: Path, name: str, certificate: Certificate) -> tuple[Path, Path]:
    """The files of a certificate and its key."""
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(certificate.certificate)
    files[1].write_bytes(certificate.key)
    return files


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, str]:
    """`server.tls` that wants certificates of the authority."""
    certificate, key = write(tmp_path, "server", SERVER)
    authorities = tmp_path / "ca.pem"
    authorities.write_bytes(AUTHORITY.certificate)
    return {"certificate_file": str(certificate), "key_file": str(key), "client_ca_file": str(authorities)}


@asynccontextmanager
async def calling(
    address: str, certificate: Certificate | None, authority: Authority = AUTHORITY
) -> AsyncIterator[pb.InferenceServiceAsyncStub]:
    """A stub that shows this certificate."""
    shown = (certificate.key, certificate.certificate) if certificate else ()
    credentials = grpc.ssl_channel_credentials(authority.certificate, *shown)
    async with grpc.aio.secure_channel(address, credentials, options=OPTIONS) as channel:
        yield pb.InferenceServiceStub(channel)


@pytest.fixture
async def secured(serve: Serve, tls: Mapping[str, str]) -> AsyncIterator[Headgate]:
    """A server that knows callers by their certificates."""
    auth = {"anonymous": False, "mtls": RULES}
    async with serve(providers=MOCK, auth=auth, server={"tls": tls}) as headgate:
        yield headgate


@pytest.mark.parametrize(
    ("certificate", "tenant", "name"),
    [
        (INDEXER, "search", "spiffe://example.org/ns/search/sa/indexer"),
        (BILLING, "billing", "CN=billing,O=Example"),
    ],
)
async def test_a_certificate_is_who_calls(
    secured: Headgate, logged: LogLines, certificate: Certificate, tenant: str, name: str
) -> None:
    """By SPIFFE id or by subject; unary and streamed."""
    async with calling(secured.address, certificate) as stub:
        await stub.Generate(ask("demo/echo"))
        async for _ in stub.StreamGenerate(ask("demo/echo")):
            pass
    assert [(line["tenant"], line["key_id"]) for line in logged.calls] == [(tenant, name)] * 2


async def test_what_a_certificate_entitles_to_is_its_rules(secured: Headgate) -> None:
    """As with a key."""
    async with calling(secured.address, INDEXER) as stub:
        assert (await failing(stub.Generate(ask("demo/lorem")))).reason == "MODEL_NOT_ALLOWED"
    async with calling(secured.address, BILLING) as stub:
        assert (await stub.Generate(ask("demo/lorem"))).candidates


@pytest.mark.parametrize("certificate", [UNKNOWN, TWO_NAMES])
async def test_a_certificate_that_no_rule_fits_is_refused(
    secured: Headgate, logged: LogLines, certificate: Certificate
) -> None:
    """Though its authority is trusted; one with two SPIFFE ids says nothing certain."""
    async with calling(secured.address, certificate) as stub:
        failed = await failing(stub.Generate(ask("demo/echo")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS")
    assert [line["reason"] for line in logged.lines if line["event"] == "login_failed"] == ["unknown_certificate"]


@pytest.mark.parametrize("certificate", [None, FOREIGN], ids=["none", "foreign"])
async def test_without_a_certificate_of_the_authority_there_is_no_connection(
    secured: Headgate, logged: LogLines, certificate: Certificate | None
) -> None:
    """The handshake fails, before any call."""
    async with calling(secured.address, certificate) as stub:
        assert (await failing(stub.Generate(ask("demo/echo"), timeout=10))).code is grpc.StatusCode.UNAVAILABLE
    assert logged.calls == []


async def test_a_key_goes_before_the_certificate(serve: Serve, tls: Mapping[str, str], logged: LogLines) -> None:
    """A sidecar's certificate carries many callers; and a bad key is refused, whatever the certificate says."""
    key, keys = static_key("by-key")
    auth = {"anonymous": False, "mtls": RULES, "pepper": PEPPER, "keys": keys}
    async with serve(providers=MOCK, auth=auth, server={"tls": tls}) as headgate:
        async with calling(headgate.address, INDEXER) as stub:
            await stub.Generate(ask("demo/echo"), metadata=bearer(key.text))
            refused = await failing(stub.Generate(ask("demo/echo"), metadata=bearer(key.text[:-1])))
    assert logged.calls[0]["tenant"] == "by-key"
    assert refused.reason == "INVALID_CREDENTIALS"


async def test_grpcurl_calls_with_its_certificate(secured: Headgate, tls: Mapping[str, str], tmp_path: Path) -> None:
    """And is refused without one, or with one that nobody knows."""
    for certificate, outcome in ((BILLING, 0), (UNKNOWN, 64 + 16)):
        file, key = write(tmp_path, "client", certificate)
        options = ("-cacert", tls["client_ca_file"], "-cert", str(file), "-key", str(key))
        shown = await secure_grpcurl(secured.address, *options)
        assert shown.code == outcome, shown.stderr
        if outcome == 0:
            (answer,) = messages(shown.stdout)
            assert answer["candidates"][0]["message"]["parts"][0]["text"] == "Hi"
        else:
            assert "INVALID_CREDENTIALS" in shown.stderr
    assert (await secure_grpcurl(secured.address, "-cacert", tls["client_ca_file"], "-max-time", "5")).code != 0


async def secure_grpcurl(address: str, *options: str) -> Finished:
    """grpcurl over TLS."""
    return await grpcurl(address, GENERATE, HELLO, *options, plaintext=False)


async def test_the_command_calls_with_certificate_and_key(serve: Serve, tls: Mapping[str, str], tmp_path: Path) -> None:
    """--ca-file, --cert-file and --key-file mean TLS; the API key comes by option or variable."""
    key, keys = static_key()
    auth = {"anonymous": False, "pepper": PEPPER, "keys": keys}
    file, key_file = write(tmp_path, "client", INDEXER)
    options = ("--ca-file", tls["client_ca_file"], "--cert-file", str(file), "--key-file", str(key_file))
    async with serve(providers=MOCK, auth=auth, server={"tls": tls}) as headgate:
        for words in (("call", "-m", "demo/echo", "Hi"), ("models",), ("health",)):
            command = (sys.executable, "-m", "headgate_server", *words, "--address", headgate.address, *options)
            assert (await run(*command, "--key", key.text)).code == 0
            assert (await run(*command, env={"HEADGATE_API_KEY": key.text})).code == 0
            without = await run(*command)
            assert (without.code, "MISSING_CREDENTIALS" in without.stderr) == (1, True)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--cert-file", "x"), "error: --cert-file and --key-file belong together"),
        (("--ca-file", "nope.pem"), "error: nope.pem: No such file or directory"),
        (("--key", "é"), "error: --key: must be printable ASCII text"),
    ],
)
async def test_options_that_cannot_be_used_exit_2(options: tuple[str, ...], problem: str) -> None:
    """Before anybody is called."""
    shown = await run(sys.executable, "-m", "headgate_server", "health", *options)
    assert (shown.code, shown.stderr) == (2, f"{problem}\n")


async def test_a_new_certificate_serves_from_the_next_connection_on(
    serve: Serve, tls: Mapping[str, str], tmp_path: Path, logged: LogLines
) -> None:
    """Without a restart; one that cannot be used leaves the last in place, and the log says so once."""
    other = Authority()
    plain = {name: file for name, file in tls.items() if name != "client_ca_file"}
    async with serve(providers=MOCK, server={"tls": plain}) as headgate:
        async with calling(headgate.address, None) as stub:
            assert (await stub.Generate(ask("demo/echo"))).candidates
        certificate, key = Path(tls["certificate_file"]), Path(tls["key_file"])
        replace(key, b"half a key")
        for _ in range(3):
            async with calling(headgate.address, None) as stub:
                assert (await stub.Generate(ask("demo/echo"))).candidates
        renewed = other.server()
        replace(key, renewed.key)
        replace(certificate, renewed.certificate)
        async with calling(headgate.address, None, other) as stub:
            assert (await stub.Generate(ask("demo/echo"), timeout=10)).candidates
        async with calling(headgate.address, None) as stub:
            assert (await failing(stub.Generate(ask("demo/echo"), timeout=10))).code is grpc.StatusCode.UNAVAILABLE
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{headgate.application.admin_address}/metrics") as scraped:
                metrics = await scraped.text()
        assert "headgate_certificate_refusals_total 1.0" in metrics
        written = re.findall(r"^headgate_certificate_changed_timestamp_seconds (\S+)$", metrics, re.MULTILINE)
        assert 0 <= time.time() - float(written[0]) < 60
    events = [line["event"] for line in logged.lines if line["event"].startswith("certificate_")]
    assert events == ["certificate_not_reloaded", "certificate_reloaded"]


async def test_a_missing_file_is_told_once(
    serve: Serve, tls: Mapping[str, str], tmp_path: Path, logged: LogLines
) -> None:
    """However many connect meanwhile; the certificate that was read goes on."""
    plain = {name: file for name, file in tls.items() if name != "client_ca_file"}
    async with serve(providers=MOCK, server={"tls": plain}) as headgate:
        file = Path(tls["key_file"])
        move(file, tmp_path / "away")
        for _ in range(3):
            async with calling(headgate.address, None) as stub:
                assert (await stub.Generate(ask("demo/echo"))).candidates
        move(tmp_path / "away", file)
        async with calling(headgate.address, None) as stub:
            assert (await stub.Generate(ask("demo/echo"))).candidates
    events = [line["event"] for line in logged.lines if line["event"].startswith("certificate_")]
    assert events == ["certificate_not_reloaded"]


def move(file: Path, to: Path) -> None:
    """As whoever takes a mount away, and brings it back."""
    file.rename(to)


def replace(file: Path, content: bytes) -> None:
    """Puts another file in the place of one, as who renews a certificate does."""
    new = file.with_suffix(".new")
    new.write_bytes(content)
    os.utime(new, ns=(time.time_ns(), time.time_ns()))
    new.replace(file)


@pytest.mark.parametrize(
    ("glob", "name", "fits"),
    [
        ("spiffe://a.org/ns/*/sa/x", "spiffe://a.org/ns/one/sa/x", True),
        ("spiffe://a.org/ns/*/sa/x", "spiffe://a.org/ns/one/two/sa/x", False),
        ("spiffe://a.org/**", "spiffe://a.org/ns/one/two", True),
        ("spiffe://a.org/**", "spiffe://a.org.evil.example/ns", False),
        ("spiffe://a.org/x", "spiffe://a.org/xy", False),
        ("spiffe://a.org/x", "spiffe://aXorg/x", False),
        ("spiffe://a.org/x*", "spiffe://a.org/x\n", True),
    ],
)
def test_a_star_stays_within_its_segment(glob: str, name: str, fits: bool) -> None:
    """Nothing else in a pattern is special, and it must fit from end to end."""
    found: re.Match[str] | None = spiffe_pattern(glob).fullmatch(name)
    assert (found is not None) is fits
