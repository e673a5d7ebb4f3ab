"""A vendor that asks who is calling gets the certificate that the configuration says, over each transport."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from headgate_server.config import Config, ConfigError, load
from tests.conftest import LogLines, Serve
from tests.headgate_process import ask, failing
from tests.vendor import Vendor, answers_text

AUTHORITY = trustme.CA()
GATEWAY = AUTHORITY.issue_cert("gateway.example")
OTHER = AUTHORITY.issue_cert("other.example")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The authority, and certificates with their keys beside them or apart."""
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    GATEWAY.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    GATEWAY.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    GATEWAY.private_key_pem.write_to_path(tmp_path / "key.pem")
    OTHER.private_key_pem.write_to_path(tmp_path / "other.pem")
    trustme.CA().issue_cert("stranger.example").private_key_and_cert_chain_pem.write_to_path(tmp_path / "stranger.pem")
    return tmp_path


def asking() -> ssl.SSLContext:
    """What a vendor serves with that wants a certificate of its authority from whoever calls."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
    AUTHORITY.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def loaded(folder: Path, **provider: str) -> Config:
    """The configuration of one provider `v`, in a file beside the certificates."""
    file = folder / "headgate.yaml"
    values: dict[str, Any] = {"adapter": "openai", "base_url": "https://127.0.0.1:1/v1", **provider}
    file.write_text(json.dumps({"providers": {"v": values}}))
    return load(file, {})


@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
@pytest.mark.parametrize("key", ["apart", "beside"])
async def test_the_vendor_learns_who_is_calling(serve: Serve, folder: Path, transport: str, key: str) -> None:
    """From the certificate in the file, whose key stands in a file of its own or in the same."""
    files = {"client_certificate_file": "both.pem"}
    if key == "apart":
        files = {"client_certificate_file": "certificate.pem", "client_key_file": "key.pem"}
    async with Vendor(answers_text, tls=asking()) as vendor:
        config = loaded(folder, base_url=vendor.base_url, transport=transport, ca_file="ca.pem", **files)
        async with serve(providers=config.providers) as headgate:
            await headgate.stub.Generate(ask("v/m"))
            async for _ in headgate.stub.StreamGenerate(ask("v/m")):
                pass
    for exchange in vendor.exchanges:
        shown = exchange.writer.get_extra_info("ssl_object").getpeercert()
        assert shown["subjectAltName"] == (("DNS", "gateway.example"),)
    assert len(vendor.exchanges) == 2


@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
@pytest.mark.parametrize("files", [{}, {"client_certificate_file": "stranger.pem"}], ids=["none", "stranger's"])
async def test_without_the_right_certificate_the_vendor_is_not_reached(
    serve: Serve, folder: Path, logged: LogLines, transport: str, files: dict[str, str]
) -> None:
    """It is told as a TLS failure is, and nothing was asked of the vendor."""
    async with Vendor(answers_text, tls=asking()) as vendor:
        config = loaded(folder, base_url=vendor.base_url, transport=transport, ca_file="ca.pem", **files)
        async with serve(providers=config.providers) as headgate:
            failed = await failing(headgate.stub.Generate(ask("v/m")))
    assert (failed.code.name, failed.reason) == ("UNAVAILABLE", "PROVIDER_UNREACHABLE")
    assert vendor.exchanges == []
    assert logged.errors == []


@pytest.mark.parametrize(
    ("files", "key", "reason"),
    [
        (("gone.pem", "key.pem"), "client_certificate_file", "cannot be used: No such file or directory"),
        (("certificate.pem", "gone.pem"), "client_key_file", "cannot be used: No such file or directory"),
        (("certificate.pem", "other.pem"), "client_key_file", "is not the key of client_certificate_file"),
        (("certificate.pem", "ca.pem"), "client_key_file", "not both there in PEM"),
        (("certificate.pem", "encrypted.pem"), "client_key_file", "unencrypted"),
        (("certificate.pem", ""), "client_certificate_file", "not both there in PEM"),
        (("", "key.pem"), "", "client_key_file needs client_certificate_file"),
    ],
)
def test_files_that_do_not_fit_are_named_before_anything_starts(
    folder: Path, files: tuple[str, str], key: str, reason: str
) -> None:
    """In one line; an encrypted key does not make the start wait at a prompt."""
    key_pem = serialization.load_pem_private_key(GATEWAY.private_key_pem.bytes(), None)
    encrypted = key_pem.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"word")
    )
    (folder / "encrypted.pem").write_bytes(encrypted)
    named = {"client_certificate_file": files[0], "client_key_file": files[1]}
    with pytest.raises(ConfigError) as unusable:
        loaded(folder, **{name: file for name, file in named.items() if file})
    (problem,) = unusable.value.problems
    assert problem.key == ".".join(filter(None, ("providers.v", key)))
    assert reason in problem.reason
