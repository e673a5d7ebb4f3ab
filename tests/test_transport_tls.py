"""Both transports over TLS and through proxies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import trustme

from tests.conftest import LogLines, Serve
from tests.headgate_process import ask, failing
from tests.proxy import Proxy
from tests.test_leaving_callers import BEHAVIOURS
from tests.transports import Gate, both, outcome, text_of, tls_of
from tests.vendor import (
    Vendor,
    answers_text,
)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A private certificate authority."""
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


async def test_a_private_authority_is_trusted_where_it_is_configured(
    gate: Gate, authority: trustme.CA, ca_file: Path
) -> None:
    """With ca_file the vendor's certificate is good; HTTP/1.1 is spoken though the vendor offers HTTP/2."""
    async with Vendor(answers_text, tls=tls_of(authority, "127.0.0.1")) as vendor:
        async with gate(vendor, ca_file=ca_file) as headgate:
            assert [await text_of(call) for call in both(headgate)] == ["Hello there"] * 2
    protocol = vendor.exchanges[0].writer.get_extra_info("ssl_object").selected_alpn_protocol()
    assert protocol == "http/1.1"


@pytest.mark.parametrize("way", ["unknown authority", "another name"])
async def test_a_certificate_that_proves_nothing_is_refused(
    gate: Gate, logged: LogLines, authority: trustme.CA, ca_file: Path, way: str
) -> None:
    """An unknown authority, or a certificate for somebody else, means that the vendor was not reached."""
    name = "127.0.0.1" if way == "unknown authority" else "other.example"
    settings = {} if way == "unknown authority" else {"ca_file": ca_file}
    async with Vendor(answers_text, tls=tls_of(authority, name)) as vendor, gate(vendor, **settings) as headgate:
        failed = [await failing(call) for call in both(headgate)]
    assert [outcome(f) for f in failed] == [("UNAVAILABLE", "PROVIDER_UNREACHABLE")] * 2
    assert vendor.exchanges == []
    assert logged.errors == []


async def test_a_cancel_closes_a_tls_connection(gate: Gate, authority: trustme.CA, ca_file: Path) -> None:
    """The vendor learns of it though TLS has a farewell of its own."""
    async with Vendor(BEHAVIOURS["in the stream"], tls=tls_of(authority, "127.0.0.1")) as vendor:
        async with gate(vendor, ca_file=ca_file) as headgate:
            call = headgate.stub.StreamGenerate(ask("v/m"))
            await call.read()
            call.cancel()
            async with asyncio.timeout(1):
                await vendor.exchanges[0].caller_closed.wait()


@pytest.mark.parametrize("user", ["", "gate:s%20cret"])
async def test_a_proxy_is_used(gate: Gate, authority: trustme.CA, ca_file: Path, user: str) -> None:
    """Plain requests are forwarded, TLS is tunnelled, and only the proxy learns the proxy's password."""
    async with Proxy() as proxy:
        async with Vendor(answers_text) as vendor:
            async with gate(vendor, proxy=proxy.url(user), api_key="sk-1") as headgate:
                assert [await text_of(call) for call in both(headgate)] == ["Hello there"] * 2
        async with Vendor(answers_text, tls=tls_of(authority, "127.0.0.1")) as secure:
            async with gate(secure, proxy=proxy.url(user), ca_file=ca_file, api_key="sk-1") as headgate:
                assert [await text_of(call) for call in both(headgate)] == ["Hello there"] * 2
    forwarded, *_, tunnelled = proxy.heads
    assert forwarded.startswith(f"POST {vendor.base_url}/chat/completions HTTP/1.1\r\n")
    assert tunnelled.startswith(f"CONNECT 127.0.0.1:{secure.port} HTTP/1.1\r\n")
    assert "sk-1" not in tunnelled
    for head in (forwarded, tunnelled):
        assert ("proxy-authorization: basic z2f0ztpzignyzxq=" in head.lower()) == bool(user)
    assert "proxy-authorization" not in secure.exchanges[0].headers


async def test_a_proxy_that_refuses_means_that_the_vendor_was_not_reached(
    gate: Gate, authority: trustme.CA, ca_file: Path
) -> None:
    """Neither a refusal nor a dead proxy is taken for the vendor's answer."""
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"
    async with Vendor(answers_text, tls=tls_of(authority, "127.0.0.1")) as vendor, Proxy(refusal) as proxy:
        async with gate(vendor, proxy=proxy.url(), ca_file=ca_file) as headgate:
            refused = await failing(headgate.stub.Generate(ask("v/m")))
        async with gate(vendor, proxy="http://127.0.0.1:1", ca_file=ca_file) as headgate:
            dead = await failing(headgate.stub.Generate(ask("v/m")))
    assert outcome(refused) == outcome(dead) == ("UNAVAILABLE", "PROVIDER_UNREACHABLE")


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/v1", "http://nowhere.invalid/v1", "https://nowhere.invalid/v1"]
)
async def test_a_vendor_that_is_not_there_is_unreachable(serve: Serve, transport: str, address: str) -> None:
    """Neither a closed port nor a name that nobody has is tried over and over."""
    provider = {"adapter": "openai", "base_url": address, "transport": transport}
    async with serve(providers={"v": provider}) as headgate:
        failed = [await failing(call) for call in both(headgate)]
    assert [outcome(f) for f in failed] == [("UNAVAILABLE", "PROVIDER_UNREACHABLE")] * 2
