"""What the configuration says of the way to a vendor: transport, authorities, proxies."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import trustme

from headgate_server.config import Config, ConfigError, load
from tests.conftest import Serve
from tests.headgate_process import ask
from tests.proxy import Proxy
from tests.tools import run
from tests.vendor import Vendor, answers_text

PROXIES = {"HTTPS_PROXY": "http://user:pass@secure:3128", "HTTP_PROXY": "plain:8080", "NO_PROXY": "internal,.corp"}


def loaded(folder: Path, environment: dict[str, str] | None = None, **provider: str) -> Config:
    """The configuration of one provider `v`."""
    file = folder / "headgate.yaml"
    file.write_text(json.dumps({"providers": {"v": {"adapter": "openai", **provider}}}))
    return load(file, environment or {})


def problem(folder: Path, environment: dict[str, str] | None = None, **provider: str) -> str:
    """The one line that says why that configuration cannot be used, without the file's path."""
    with pytest.raises(ConfigError) as refused:
        loaded(folder, environment, **provider)
    (found,) = refused.value.problems
    return str(found).replace(str(folder / "headgate.yaml"), "FILE")


@pytest.mark.parametrize(
    ("base_url", "proxy"),
    [
        ("https://api.example.com/v1", "http://user:pass@secure:3128"),
        ("http://api.example.com/v1", "http://plain:8080"),
        ("https://internal/v1", None),
        ("https://model.corp/v1", None),
        ("http://127.0.0.1:8000/v1", None),
        ("http://[::1]:8000/v1", None),
        ("http://localhost:8000/v1", None),
    ],
)
def test_the_proxy_variables_hold_for_their_scheme(tmp_path: Path, base_url: str, proxy: str | None) -> None:
    """HTTPS_PROXY and HTTP_PROXY by the address's scheme, NO_PROXY and this machine itself apart."""
    assert loaded(tmp_path, PROXIES, base_url=base_url).providers["v"].proxy == proxy


def test_lower_case_proxy_variables_come_first(tmp_path: Path) -> None:
    """As everywhere else: https_proxy is stronger than HTTPS_PROXY."""
    environment = {**PROXIES, "https_proxy": "http://lower:1"}
    assert loaded(tmp_path, environment, base_url="https://a.example").providers["v"].proxy == "http://lower:1"


def test_the_file_is_stronger_than_the_proxy_variables(tmp_path: Path) -> None:
    """A provider's own proxy stands, and an empty one means none."""
    for proxy in ("http://own:1", ""):
        found = loaded(tmp_path, PROXIES, base_url="https://a.example", proxy=proxy).providers["v"].proxy
        assert found == proxy


def test_known_hosts_and_the_demo_take_the_proxy_too(tmp_path: Path) -> None:
    """The address of a host's row counts like one that is written down; the mock needs no proxy."""
    config = load(None, {**PROXIES, "OPENAI_API_KEY": "sk-1"})
    assert config.providers["openai"].proxy == PROXIES["HTTPS_PROXY"]
    assert config.providers["demo"].proxy is None


def test_a_proxy_that_cannot_be_used_is_named_where_it_stands(tmp_path: Path) -> None:
    """By its key in the file, or by its variable."""
    reason = "must be an http URL without path, such as http://egress.example.com:3128"
    address = "https://a.example"
    assert problem(tmp_path, base_url=address, proxy="socks5://p:1") == f"FILE:1: providers.v.proxy: {reason}"
    found = problem(tmp_path, {"HTTPS_PROXY": "socks5://p:1"}, base_url=address)
    assert found == f"environment: HTTPS_PROXY: {reason}"


def test_a_proxys_password_never_prints(tmp_path: Path) -> None:
    """Neither in the tree's text nor in what is dumped of it."""
    config = loaded(tmp_path, base_url="https://a.example", proxy="http://user:secret@p:1")
    assert "secret" not in repr(config) + config.model_dump_json()
    assert config.model_dump()["providers"]["v"]["proxy"] == "http://********@p:1"


def test_authorities_are_found_beside_the_file_and_checked_at_the_start(tmp_path: Path) -> None:
    """A ca_file is relative to the configuration; one that is missing or no PEM stops the start."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "empty.pem").write_text("nothing here\n")
    assert (
        loaded(tmp_path, base_url="https://a.example", ca_file="ca.pem").providers["v"].ca_file == tmp_path / "ca.pem"
    )
    missing = problem(tmp_path, base_url="https://a.example", ca_file="gone.pem")
    assert missing == "FILE:1: providers.v.ca_file: cannot be used: No such file or directory"
    empty = problem(tmp_path, base_url="https://a.example", ca_file="empty.pem")
    assert empty == "FILE:1: providers.v.ca_file: cannot be used: holds no certificate in PEM"


def test_an_unknown_transport_is_refused(tmp_path: Path) -> None:
    """Only what is in the tree can be named."""
    assert "must be 'aiohttp' or 'httpx2'" in problem(tmp_path, base_url="https://a.example", transport="httpx")


@pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])
async def test_each_provider_goes_its_own_way(serve: Serve, transport: str) -> None:
    """Of two providers in one process only the one with a proxy goes through it."""
    async with Vendor(answers_text) as vendor, Proxy() as proxy:
        common = {"adapter": "openai", "base_url": vendor.base_url, "transport": transport}
        async with serve(providers={"near": common, "far": {**common, "proxy": proxy.url()}}) as headgate:
            for model in ("near/m", "far/m", "near/m"):
                assert (await headgate.stub.Generate(ask(model))).candidates
    assert len(proxy.heads) == 1
    assert len(vendor.exchanges) == 3


async def test_check_config_says_what_is_wrong_with_a_proxy(tmp_path: Path) -> None:
    """The command reads the same environment as the server."""
    file = tmp_path / "headgate.yaml"
    file.write_text("providers:\n  v: {adapter: openai, base_url: https://a.example}\n")
    command = (sys.executable, "-m", "headgate_server", "check-config", str(file))
    done = await run(*command, env={"https_proxy": "ftp://p"})
    assert done.code == 2
    assert "https_proxy" in done.stdout + done.stderr
