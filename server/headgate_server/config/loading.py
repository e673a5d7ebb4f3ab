"""File and environment put together, and what concerns several places of the tree checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from ssl import SSLError
from types import NoneType
from typing import Any, TypeVar, get_args
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed leaves it out

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from headgate_server.config.file import ConfigError, Document, Key, read
from headgate_server.config.tree import (
    Alias,
    Auth,
    Config,
    Provider,
    Section,
    Server,
)
from headgate_server.config.values import is_loopback, split_address
from headgate_server.credentials import google_extra_missing
from headgate_server.providers import UnresolvedProvider, resolve, takes_token
from headgate_server.providers.hosts import HOSTS, Host, Quirks
from headgate_server.spelling import did_you_mean
from headgate_server.transports.connections import tls_context

S = TypeVar("S", bound=Section)

DEMO_ALIASES = ("echo", "lorem", "tools", "embed")
WORDING = {
    "dict_type": "must be a mapping",
    "missing": "is required",
    "model_type": "must be a mapping",
    "too_short": "must not be empty",
    "tuple_type": "must be a list",
    "byte_size": "must be a size, such as 4194304 or 4MiB",
}


def load(path: Path | None, environment: Mapping[str, str]) -> Config:
    """The configuration of the file at `path`, or of the one that HEADGATE_CONFIG names, or else the demo.

    Raises:
        ConfigError: it cannot be used; every problem is in it.
    """
    if path is None and (named := environment.get("HEADGATE_CONFIG")):
        path = Path(named)
    document = _demo(environment) if path is None else read(path, environment)
    _apply_environment(document, environment)
    folder = path.parent if path else Path()
    _read_key_files(document, folder)
    _find_ca_files(document, folder)
    _find_credential_files(document, folder)
    _apply_proxies(document, environment)
    config: Config | None = None
    try:
        config = Config.model_validate(document.values)
    except ValidationError as error:
        for details in error.errors():
            _report(document, details)
    _check(document)
    if document.problems or config is None:
        raise ConfigError(sorted(document.problems.values(), key=lambda problem: problem.line))
    return config


def _demo(environment: Mapping[str, str]) -> Document:
    """What is served without a file: the mock, and every known host whose usual key variable is set."""
    hosts = {
        host.name: {"api_key": environment[host.key_variable]}
        for host in HOSTS.values()
        if host.base_url and host.key_variable and environment.get(host.key_variable)
    }
    return Document(
        file="environment",
        values={
            "server": {"reflection": True},
            "auth": {"anonymous": True},
            "providers": {"demo": {"adapter": "mock", "models": DEMO_ALIASES}, **hosts},
            "models": {name: {"targets": [{"provider": "demo", "model": name}]} for name in DEMO_ALIASES},
        },
    )


def _apply_environment(document: Document, environment: Mapping[str, str]) -> None:
    if port := environment.get("PORT"):
        server = document.section("server")
        listen = str(server.get("listen") or Server.model_fields["listen"].default)
        document.override("server", "listen", f"{listen.rpartition(':')[0]}:{port}", "PORT")
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            document.report(("server", "listen"), "must be a port number")
    if level := environment.get("LOG_LEVEL"):
        document.override("telemetry", "log_level", level, "LOG_LEVEL")
    if form := environment.get("LOG_FORMAT"):
        document.override("telemetry", "log_format", form, "LOG_FORMAT")


def _read_key_files(document: Document, folder: Path) -> None:
    """Puts what each api_key_file holds into api_key."""
    for name, provider in document.section("providers").items():
        if not isinstance(provider, dict) or not provider.get("api_key_file"):
            continue
        key: Key = ("providers", name, "api_key_file")
        if provider.get("api_key") is not None:
            document.report(key, "must not stand beside api_key: the key comes from one place")
            continue
        try:
            provider["api_key"] = (folder / str(provider["api_key_file"])).read_text("utf-8").strip() or None
        except (OSError, ValueError) as error:
            document.report(key, f"cannot be read: {getattr(error, 'strerror', None) or error}")
            continue
        if provider["api_key"] is None:
            document.report(key, "holds no key")


def _find_ca_files(document: Document, folder: Path) -> None:
    """Makes each ca_file a path from here, and sees that it can be used."""
    for name, provider in document.section("providers").items():
        if not isinstance(provider, dict) or not provider.get("ca_file"):
            continue
        provider["ca_file"] = folder / str(provider["ca_file"])
        try:
            tls_context(provider["ca_file"])
        except OSError as error:
            reason = "holds no certificate in PEM" if isinstance(error, SSLError) else error.strerror
            document.report(("providers", name, "ca_file"), f"cannot be used: {reason}")


def _find_credential_files(document: Document, folder: Path) -> None:
    """Makes each credential's file a path from here, and sees that it holds a JSON object."""
    for name, provider in document.section("providers").items():
        credential = provider.get("credential") if isinstance(provider, dict) else None
        if not isinstance(credential, dict) or not credential.get("file"):
            continue
        credential["file"] = folder / str(credential["file"])
        key: Key = ("providers", name, "credential", "file")
        try:
            if not isinstance(json.loads(credential["file"].read_text("utf-8")), dict):
                document.report(key, "is not a JSON object")
        except (OSError, ValueError) as error:
            document.report(key, f"cannot be read: {getattr(error, 'strerror', None) or 'it is not JSON'}")


def _apply_proxies(document: Document, environment: Mapping[str, str]) -> None:
    """Gives each provider without a proxy of its own the one of the environment."""
    for name, values in document.section("providers").items():
        provider = _sound(Provider, values)
        if provider is None or provider.proxy is not None or not isinstance(values, dict):
            continue
        with suppress(UnresolvedProvider):
            host, _ = resolve(name, provider)
            if (found := _proxy(host.base_url, environment)) and host.adapter != "mock":
                values["proxy"], document.variables[("providers", name, "proxy")] = found


def _proxy(address: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The proxy for this address, and the variable that names it. This machine itself is reached without one."""
    url = urlsplit(address)
    host = url.hostname or ""
    no_proxy = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if is_loopback(host) or proxy_bypass_environment(host, {"no": no_proxy}):
        return None
    for variable in (f"{url.scheme}_proxy", f"{url.scheme}_proxy".upper()):
        if proxy := environment.get(variable):
            return proxy if "://" in proxy else f"http://{proxy}", variable
    return None


def _report(document: Document, details: ErrorDetails) -> None:
    kind = details["type"]
    key: Key = tuple(part for part in details["loc"] if part != "[key]")
    if kind == "too_short" and document.faulty(key):
        return  # pydantic counts only the items that are right
    if kind == "extra_forbidden":
        reason = f"is not a known key{did_you_mean(str(key[-1]), _names(key[:-1]))}"
    else:
        message = details["msg"].removeprefix("Value error, ")
        reason = WORDING.get(kind, message.replace("Input should be", "must be").replace("String should", "must"))
    document.report(key, reason)


def _names(key: Key) -> list[str]:
    """The keys that the tree knows at `key`."""
    if key and key[-1] == "quirks":
        return [quirk.name for quirk in fields(Quirks)]
    kind: Any = Config
    for part in key:
        if isinstance(kind, type) and issubclass(kind, Section):
            kind = kind.model_fields[str(part)].annotation
        else:
            kind = next(inner for inner in reversed(get_args(kind)) if inner is not ...)
        kind = next((inner for inner in get_args(kind) if NoneType in get_args(kind)), kind)
    return list(kind.model_fields)


def _check(document: Document) -> None:
    """Reports what single values do not show; whatever is already known to be wrong is not judged twice."""
    for key, reason in (*_listener(document), *_providers(document), *_targets(document)):
        if not document.faulty(key):
            document.report(key, reason)


def _listener(document: Document) -> Iterator[tuple[Key, str]]:
    server = _sound(Server, document.section("server"))
    auth = _sound(Auth, document.section("auth"))
    if server and auth and not auth.anonymous and not document.faulty(("auth",)):
        host, _ = split_address(server.listen)
        if not is_loopback(host):
            yield (
                ("server", "listen"),
                f"{host} is open to other machines, and callers are not authenticated: listen on 127.0.0.1, or say "
                "auth: {anonymous: true}",
            )


def _providers(document: Document) -> Iterator[tuple[Key, str]]:
    if not document.section("providers"):
        yield ("providers",), "must name at least one provider"
    for name, values in document.section("providers").items():
        provider = _sound(Provider, values)
        if provider is None:
            continue
        try:
            host, _ = resolve(name, provider)
        except UnresolvedProvider as error:
            yield ("providers", name, error.field), error.reason
            continue
        if takes_token(provider, host) and (reason := google_extra_missing()):
            yield ("providers", name, "credential" if provider.credential else "adapter"), reason
        if not provider.api_key and not provider.api_key_file and _wants_key(host, provider):
            yield (
                ("providers", name, "api_key"),
                f"is required, such as api_key: ${{{host.key_variable}}}; or give api_key_file",
            )


def _wants_key(host: Host, provider: Provider) -> bool:
    """It is a known service at its known address, and not on this machine."""
    if not host.key_variable or provider.base_url or host.adapter == "mock":
        return False
    return not is_loopback(urlsplit(host.base_url).hostname or "")


def _targets(document: Document) -> Iterator[tuple[Key, str]]:
    providers = document.section("providers")
    for name, values in document.section("models").items():
        if alias := _sound(Alias, values):
            for index, target in enumerate(alias.targets):
                if target.provider not in providers:
                    key: Key = ("models", name, "targets", index, "provider")
                    yield key, f"there is no provider {target.provider}{did_you_mean(target.provider, providers)}"


def _sound(section: type[S], values: Any) -> S | None:
    """The section without those of its fields that are wrong, which are reported elsewhere."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        wrong = {details["loc"][0] for details in error.errors() if details["loc"]}
    if not isinstance(values, dict) or wrong.isdisjoint(values):
        return None
    return _sound(section, {name: value for name, value in values.items() if name not in wrong})
