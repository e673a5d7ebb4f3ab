"""What a configured provider comes down to: a host and an adapter."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import headgate_server
from headgate_server.config import Provider
from headgate_server.providers import ADAPTERS, UnresolvedProvider, load_adapter, resolve
from headgate_server.providers.base import Adapter
from headgate_server.providers.hosts import HOSTS, Host

INPUT_OUTPUT = {"aiohttp", "asyncio", "grpc", "httpx", "httpx2", "io", "os", "pathlib", "socket", "time"}
VENDORS_PACKAGES = {"anthropic", "cohere", "google.auth", "google.genai", "openai"}
PACKAGE = Path(headgate_server.__file__).parent
TRANSLATION = [*sorted((PACKAGE / "providers").rglob("*.py")), PACKAGE / "json_codec.py", PACKAGE / "sse.py"]


def host(name: str, **settings: Any) -> Host:
    """The host of a provider with these settings."""
    return resolve(name, Provider.model_validate(settings))[0]


def test_a_provider_named_like_a_host_is_that_host() -> None:
    """With an issuer, which its row leaves out when it is the name."""
    openai = host("openai")
    assert (openai.base_url, openai.quirks) == (HOSTS["openai"].base_url, HOSTS["openai"].quirks)
    assert openai.issuer == "openai"


def test_a_provider_may_borrow_a_host_under_another_name() -> None:
    """Two accounts at one vendor are one issuer: opaque state of the one is readable to the other."""
    borrowed = host("openai-batch", host="openai")
    assert (borrowed.base_url, borrowed.issuer) == (HOSTS["openai"].base_url, "openai")


def test_settings_of_the_provider_win_over_those_of_the_host() -> None:
    """Address, issuer and single quirks; the other quirks stay the host's."""
    changed = host("openai", base_url="http://proxy/v1/", issuer="proxy", quirks={"stream_usage": "no", "lacks": ["n"]})
    assert (changed.base_url, changed.issuer) == ("http://proxy/v1", "proxy")
    assert changed.quirks.stream_usage is False
    assert changed.quirks.lacks == frozenset({"n"})
    assert changed.quirks.developer_role == HOSTS["openai"].quirks.developer_role
    assert HOSTS["openai"].quirks.stream_usage is True


def test_a_provider_without_a_row_is_its_own_issuer() -> None:
    """Its name, until the configuration says otherwise."""
    assert host("rack", adapter="openai", base_url="http://rack").issuer == "rack"
    assert host("rack", adapter="openai", base_url="http://rack", issuer="vllm").issuer == "vllm"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({}, "adapter"),
        ({"host": "nope"}, "host"),
        ({"adapter": "nope", "base_url": "http://x"}, "adapter"),
        ({"adapter": "openai"}, "base_url"),
    ],
)
def test_a_provider_that_cannot_be_served_names_the_field_to_mend(settings: dict[str, Any], field: str) -> None:
    """Which the configuration turns into a line of the file."""
    with pytest.raises(UnresolvedProvider) as unresolved:
        host("mine", **settings)
    assert unresolved.value.field == field


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_of_the_table_is_whole(name: str) -> None:
    """It has all that the protocol names, none of it missing until the first call."""
    adapter = load_adapter(name)
    members = {member for member in vars(Adapter) if not member.startswith("_")} | get_type_hints(Adapter).keys()
    assert members >= {"CAPABILITIES", "headers", "encode", "decode", "Stream", "error"}
    assert [member for member in members if not hasattr(adapter, member)] == []


@pytest.mark.parametrize("name", HOSTS)
def test_every_host_of_the_table_can_be_served(name: str) -> None:
    """Its adapter exists; where the address depends on the operator, it is asked for."""
    assert host(name, base_url=HOSTS[name].base_url or "http://mine").adapter == HOSTS[name].adapter


@pytest.mark.parametrize("file", TRANSLATION, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_translation_does_no_io(file: Path) -> None:
    """It imports no clock, no environment, no network, and no vendor's package."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import(names=aliases):
                imported |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=str(module), names=aliases):
                imported |= {module, *(f"{module}.{alias.name}" for alias in aliases)}
    roots = {name.partition(".")[0] for name in imported}
    assert not (imported | roots) & (INPUT_OUTPUT | VENDORS_PACKAGES)
