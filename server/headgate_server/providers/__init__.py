"""The table of adapters, and what a configured provider comes down to.

A new vendor with a wire of its own is one package and one line here; a host that speaks a wire we have is one row in
hosts.py. Other people's adapters come by the entry-point group `headgate.adapters`: an object that is an Adapter.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from headgate_server.providers.hosts import HOSTS, Host
from headgate_server.spelling import did_you_mean

if TYPE_CHECKING:
    from headgate_server.config.tree import Provider
    from headgate_server.providers.base import Adapter

ADAPTERS = {
    "gemini": "headgate_server.providers.gemini",
    "cohere": "headgate_server.providers.cohere",
    "anthropic": "headgate_server.providers.anthropic",
    "azure-openai": "headgate_server.providers.azure_openai",
    "azure-openai-responses": "headgate_server.providers.azure_openai.responses",
    "openai": "headgate_server.providers.openai",
    "openai-responses": "headgate_server.providers.openai_responses",
    "mock": "headgate_server.providers.openai",  # transports/mock.py answers in OpenAI's wire
    "vertex": "headgate_server.providers.vertex",
}
ENTRY_POINT_GROUP = "headgate.adapters"
MOCK_BASE_URL = "http://mock.invalid/v1"


class UnresolvedProvider(ValueError):
    """A configured provider that cannot be served; `field` is the one to mend."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


def resolve(name: str, provider: Provider) -> tuple[Host, Adapter]:
    """The host of a configured provider, its own settings over the row's, and the adapter that speaks to it.

    Raises:
        UnresolvedProvider: no such host or adapter, no address, or the adapter cannot be imported.
    """
    row = _row(name, provider)
    host = replace(
        row,
        adapter=provider.adapter or row.adapter,
        base_url=provider.base_url or row.base_url,
        issuer=provider.issuer or row.issuer or row.name,
        api_version=provider.api_version,
        quirks=replace(row.quirks, **provider.quirks),
    )
    adapter = load_adapter(host.adapter)
    if not host.base_url:
        raise UnresolvedProvider("base_url", "is required, because no address is known")
    if host.api_version and not host.adapter.startswith("azure-"):
        raise UnresolvedProvider("api_version", f"is only for Azure, not for the adapter {host.adapter}")
    return host, adapter


def token_type(provider: Provider, host: Host) -> str:
    """The type of token that its calls bear: what it says, or what its host wants if there is no key; else empty."""
    if provider.credential:
        return provider.credential.type
    has_key = provider.api_key or any(name.lower() == "authorization" for name in provider.headers)
    return "" if has_key else host.credential


def load_adapter(name: str) -> Adapter:
    """The adapter of that name, from the table or from an installed package.

    Raises:
        UnresolvedProvider: there is none, or its module cannot be imported.
    """
    try:
        if name in ADAPTERS:
            return cast("Adapter", import_module(ADAPTERS[name]))
        installed = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
        if name in installed:
            return cast("Adapter", installed[name].load())
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise UnresolvedProvider("adapter", f"the adapter {name} cannot be imported: {cause}") from error
    suggestion = did_you_mean(name, [*ADAPTERS, *installed])
    raise UnresolvedProvider("adapter", f"there is no adapter {name}{suggestion}")


def _row(name: str, provider: Provider) -> Host:
    """The known host that the provider is or borrows, or a row of its own."""
    row = HOSTS.get(provider.host or name)
    if row:
        return row
    if provider.host:
        raise UnresolvedProvider("host", f"there is no host {provider.host}{did_you_mean(provider.host, HOSTS)}")
    if not provider.adapter:
        reason = f"is required, because {name} is not a known host{did_you_mean(name, HOSTS)}"
        raise UnresolvedProvider("adapter", reason)
    if provider.adapter == "mock":
        return Host(name, "mock", MOCK_BASE_URL, quirks=HOSTS["openai"].quirks)
    return Host(name, provider.adapter, "")
