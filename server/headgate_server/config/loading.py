"""File and environment put together, and what concerns several places of the tree checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed leaves it out

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from headgate_server.config.file import ConfigError, Document, Key, read
from headgate_server.config.identity import Auth, JwtIssuer
from headgate_server.config.limits import Limits
from headgate_server.config.named_files import sections, take_in_files
from headgate_server.config.section import Section
from headgate_server.config.tree import (
    CREDENTIALS,
    Admin,
    Alias,
    Config,
    Credential,
    EntraCredential,
    OAuthCredential,
    Provider,
    RoutingRule,
    Server,
    Telemetry,
    Traces,
)
from headgate_server.config.values import is_loopback, split_address
from headgate_server.credentials import google_extra_missing
from headgate_server.providers import UnresolvedProvider, resolve, token_type
from headgate_server.providers.hosts import HOSTS, Host, Quirks
from headgate_server.spelling import did_you_mean
from headgate_server.telemetry.exporters import otel_extra_missing, unknown_exporters

S = TypeVar("S", bound=Section)

DEMO_ALIASES = ("echo", "lorem", "tools", "embed")
WORDING = {
    "dict_type": "must be a mapping",
    "missing": "is required",
    "model_type": "must be a mapping",
    "too_short": "must not be empty",
    "tuple_type": "must be a list",
    "timezone_aware": "must have a time zone, such as 2027-01-31T00:00:00Z",
    "byte_size": "must be a size, such as 4194304 or 4MiB",
}


def load(path: Path | None, environment: Mapping[str, str]) -> Config:
    """The configuration of the file at `path`, or of the one that HEADGATE_CONFIG names, or else the demo.

    Raises:
        ConfigError: it cannot be used; every problem is in it.
    """
    path = named_file(path, environment)
    document = _demo(environment) if path is None else read(path, environment)
    _apply_environment(document, environment)
    folder = path.parent.absolute() if path else Path()
    take_in_files(document, folder)
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


def named_file(path: Path | None, environment: Mapping[str, str]) -> Path | None:
    """The configuration's file; None for the demo."""
    named = environment.get("HEADGATE_CONFIG")
    return path or (Path(named) if named else None)


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
    _override_port(document, environment, "PORT", "server", Server)
    _override_port(document, environment, "HEADGATE_ADMIN_PORT", "admin", Admin)
    if level := environment.get("LOG_LEVEL"):
        document.override("telemetry", "log_level", level, "LOG_LEVEL")
    if form := environment.get("LOG_FORMAT"):
        document.override("telemetry", "log_format", form, "LOG_FORMAT")
    _apply_otel(document, environment)


def _apply_otel(document: Document, environment: Mapping[str, str]) -> None:
    """The variables that OpenTelemetry leaves to whoever sets its SDK up; the SDK reads the others itself."""
    values = document.section("telemetry").get("traces")
    traces = _sound(Traces, values)
    if traces is None or not traces.enabled or not isinstance(values, dict):
        return
    for variable in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        if protocol := environment.get(variable):
            values["protocol"] = protocol
            document.variables["telemetry", "traces", "protocol"] = variable
    if named := environment.get("OTEL_TRACES_EXPORTER"):
        values["exporters"] = [name.strip() for name in named.split(",")]
        document.variables["telemetry", "traces", "exporters"] = "OTEL_TRACES_EXPORTER"


def _override_port(
    document: Document, environment: Mapping[str, str], variable: str, name: str, section: type[Server | Admin]
) -> None:
    if not (port := environment.get(variable)):
        return
    listen = str(document.section(name).get("listen") or section.model_fields["listen"].default)
    document.override(name, "listen", f"{listen.rpartition(':')[0]}:{port}", variable)
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        document.report((name, "listen"), "must be a port number")


def _apply_proxies(document: Document, environment: Mapping[str, str]) -> None:
    """Gives what is reached without a proxy of its own the one of the environment."""
    for name, values in document.section("providers").items():
        provider = _sound(Provider, values)
        if provider is None or not isinstance(values, dict):
            continue
        if isinstance(provider.credential, EntraCredential | OAuthCredential):
            found = _proxy(provider.credential.token_url, environment)
            if found and provider.credential.proxy is None:
                key: Key = ("providers", name, "credential", "proxy")
                values["credential"]["proxy"], document.variables[key] = found
        if provider.proxy is not None:
            continue
        with suppress(UnresolvedProvider):
            host, _ = resolve(name, provider)
            if (found := _proxy(host.base_url, environment)) and host.adapter != "mock":
                values["proxy"], document.variables[("providers", name, "proxy")] = found
    for place, values in sections(document, "auth", "jwt"):
        issuer = _sound(JwtIssuer, values)
        if issuer and issuer.proxy is None and (found := _proxy(issuer.jwks_url, environment)):
            values["proxy"], document.variables[(*place, "proxy")] = found


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
    path: Key = tuple(part for part in details["loc"] if part != "[key]")
    key = (*path[:3], *path[4:]) if path[2:3] == ("credential",) else path  # without the type, which pydantic adds
    if kind == "too_short" and document.faulty(key):
        return  # pydantic counts only the items that are right
    if kind == "value_error" and document.faulty(key):
        return  # something inside is known to be wrong, and may be the cause
    if kind == "missing" and document.faulty((*key[:-1], f"{key[-1]}_file")):
        return  # it would have come from that file
    if kind == "extra_forbidden":
        reason = f"is not a known key{did_you_mean(str(path[-1]), _names(path[:-1]))}"
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        key = (*key, "type")
        reason = f"must be one of {details['ctx'].get('expected_tags') or ', '.join(map(repr, CREDENTIALS))}"
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
        if part in CREDENTIALS and kind is Credential:
            kind = CREDENTIALS[part]
        elif isinstance(kind, type) and issubclass(kind, Section):
            kind = kind.model_fields[str(part)].annotation
        else:
            kind = next(inner for inner in reversed(get_args(kind)) if inner is not ...)
        kind = next((inner for inner in get_args(kind) if NoneType in get_args(kind)), kind)
    return list(kind.model_fields)


def _check(document: Document) -> None:
    """Reports what single values do not show; whatever is already known to be wrong is not judged twice."""
    checks = (_listener, _certificates, _providers, _targets, _rules, _limits, _traces)
    for key, reason in (problem for check in checks for problem in check(document)):
        if not document.faulty(key):
            document.report(key, reason)


def _listener(document: Document) -> Iterator[tuple[Key, str]]:
    server = _sound(Server, document.section("server"))
    auth = _sound(Auth, document.section("auth"))
    if server and auth and not auth.anonymous and not auth.authenticates and not document.faulty(("auth",)):
        addresses: dict[Key, str] = {("server", "listen"): server.listen}
        if server.tls and server.tls.mtls_listen:
            addresses["server", "tls", "mtls_listen"] = server.tls.mtls_listen
        for key, address in addresses.items():
            host, _ = split_address(address)
            if is_loopback(host):
                continue
            yield (
                key,
                f"{host} is open to other machines, and callers are not authenticated: listen on 127.0.0.1, give them "
                "a way in (auth: keys, store, jwt or mtls), or say auth: {anonymous: true}",
            )


def _certificates(document: Document) -> Iterator[tuple[Key, str]]:
    tls = document.section("server").get("tls")
    if document.section("auth").get("mtls") and not (isinstance(tls, dict) and tls.get("client_ca_file")):
        yield ("auth", "mtls"), "needs server.tls.client_ca_file: nobody shows a certificate otherwise"


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
        if token_type(provider, host) == "google" and (reason := google_extra_missing()):
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
                if "*" in target.model and "*" not in name:
                    yield ("models", name, "targets", index, "model"), "has a * that the alias lacks"
                if [(t.provider, t.model) for t in alias.targets].index((target.provider, target.model)) < index:
                    yield ("models", name, "targets", index), "is in the list already"


def _rules(document: Document) -> Iterator[tuple[Key, str]]:
    """Rules lead to what exists; which of several aliases with a * it is does not matter."""
    providers, aliases = document.section("providers"), document.section("models")
    rules = document.section("routing").get("rules")
    for index, values in enumerate(rules if isinstance(rules, list) else ()):
        rule = _sound(RoutingRule, values)
        if rule is None:
            continue
        key: Key = ("routing", "rules", index, "model")
        provider, slash, _ = rule.model.partition("/")
        if slash and provider not in providers:
            yield key, f"there is no provider {provider}{did_you_mean(provider, providers)}"
        elif not slash and not any(fnmatchcase(rule.model, alias) for alias in aliases):
            yield key, f"there is no alias {rule.model}{did_you_mean(rule.model, aliases)}"


def _limits(document: Document) -> Iterator[tuple[Key, str]]:
    limits = _sound(Limits, document.section("limits"))
    rules: dict[Any, int] = {}
    for index, rule in enumerate(limits.rules if limits else ()):
        counting = (rule.unit, rule.algorithm, rule.window, frozenset(rule.per), tuple(sorted(rule.only.items())))
        if (other := rules.setdefault(counting, index)) != index:
            yield ("limits", "rules", index), f"limits the same as limits.rules[{other}]"
    budgets: dict[Any, int] = {}
    for index, budget in enumerate(limits.budgets if limits else ()):
        zone = "" if budget.period == "total" else budget.time_zone
        counted = (budget.period, zone, frozenset(budget.per), tuple(sorted(budget.only.items())))
        if (other := budgets.setdefault(counted, index)) != index:
            yield ("limits", "budgets", index), f"counts the same as limits.budgets[{other}]"
        if budget.name and (other := budgets.setdefault(budget.name, index)) != index:
            yield ("limits", "budgets", index, "name"), f"is the name of limits.budgets[{other}]"


def _traces(document: Document) -> Iterator[tuple[Key, str]]:
    telemetry = _sound(Telemetry, document.section("telemetry"))
    if telemetry is None or not telemetry.traces.enabled:
        return
    if reason := otel_extra_missing():
        yield ("telemetry", "traces", "enabled"), reason
        return
    for name in unknown_exporters(telemetry.traces.exporters):
        yield ("telemetry", "traces", "exporters"), f"there is no exporter {name}"


def _sound(section: type[S], values: Any) -> S | None:
    """The section without those of its fields that are wrong, which are reported elsewhere."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        wrong = {details["loc"][0] for details in error.errors() if details["loc"]}
    if not isinstance(values, dict) or wrong.isdisjoint(values):
        return None
    return _sound(section, {name: value for name, value in values.items() if name not in wrong})
