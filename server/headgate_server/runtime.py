"""What belongs to one generation of the configuration while it serves.

A reload makes the next generation, which takes over what did not change: connections, tokens and what was learnt of a
provider. Calls finish on the generation that they began with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from headgate import v1 as pb

from headgate_server import listing
from headgate_server.catalog import Catalog
from headgate_server.config import Config, Provider, Treatment
from headgate_server.endpoints import Endpoint, cards, endpoint, target_policy
from headgate_server.gateway import Gateway
from headgate_server.health_checks import HealthChecker
from headgate_server.identity.identity import Identity
from headgate_server.limits.estimate import Estimator
from headgate_server.limits.policy import LimitPolicy
from headgate_server.providers.base import Target
from headgate_server.resilience.health import ProviderRecord
from headgate_server.resilience.target import TargetPolicy, TargetStates
from headgate_server.routing import AliasRoute, Candidate, Routes, Rule
from headgate_server.upstream import Upstream

FIRST_SECONDS = 10.0
OTHER_MODEL = "other"


@dataclass(frozen=True, slots=True)
class ServedProvider:
    """One provider as it is configured, ready to call, with what was learnt of it. `files` are those it was made of."""

    configured: Provider
    treatment: Treatment
    files: Mapping[Path, bytes]
    endpoint: Endpoint
    states: TargetStates


class Runtime:
    """Everything that one configuration stands for. Made inside the running event loop.

    Raises:
        OSError: a file that the configuration names cannot be read any more.
    """

    def __init__(self, config: Config, previous: Runtime | None = None) -> None:
        self.config = config
        files = {name: _contents(provider) for name, provider in config.providers.items()}
        self.identity: Identity = Identity(config.auth, previous.identity if previous else None)
        kept = previous.providers if previous else {}
        self.providers: dict[str, ServedProvider] = {
            name: _served(name, provider, config, files[name], kept.get(name))
            for name, provider in config.providers.items()
        }
        endpoints = {name: served.endpoint for name, served in self.providers.items()}
        self.upstream = Upstream(endpoints)
        self._checker = HealthChecker(
            self.upstream,
            ((served.endpoint, served.states.record) for served in self.providers.values()),
            config.routing.health,
        )
        catalog = _catalog(config, endpoints)
        routes = _routes(config, endpoints)
        self.limits: LimitPolicy = LimitPolicy(
            config,
            _estimator(config, endpoints, routes, catalog),
            self.identity.own_budgets,
            previous.limits if previous else None,
        )
        self.gateway = Gateway(
            routes,
            self.upstream,
            {name: served.states for name, served in self.providers.items()},
            catalog,
            max_attempts=config.routing.max_attempts,
            max_reply_bytes=config.server.max_reply_bytes,
        )
        aliases = {name: [candidate.target for candidate in alias.candidates] for name, alias in routes.aliases.items()}
        named = tuple(_named_targets(config, endpoints))
        self.models: Sequence[pb.Model] = listing.models(aliases, named, self.upstream.capabilities, catalog)
        self._named = frozenset((target.provider, target.model) for target in named)
        self.issuers = frozenset(endpoint.issuer.lower() for endpoint in endpoints.values())

    def model_label(self, provider: str, model: str) -> str:
        """The model as metrics name it: callers may ask a provider for any, and each would be a series for ever."""
        return model if (provider, model) in self._named else OTHER_MODEL

    async def start(self, patience: float = FIRST_SECONDS) -> None:
        """Fetches the first tokens and keys, and waits for them at most `patience` seconds: without one a provider
        fails, not the gateway, and it goes on to be fetched."""
        starting = (self._know_callers(patience), self._fetch_first_tokens(patience))
        for failure in await asyncio.gather(*starting, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _know_callers(self, patience: float) -> None:
        """Limits come after identities, whose own budgets they restore."""
        await self.identity.start(patience)
        await self.limits.start(patience)

    async def _fetch_first_tokens(self, patience: float) -> None:
        credentials = [served.endpoint.credential for served in self.providers.values()]
        for credential in filter(None, credentials):
            credential.start()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await asyncio.gather(*(credential.tried() for credential in filter(None, credentials)))
        self._checker.start()

    async def retire(self) -> None:
        """New calls begin with another generation: nothing is looked after any more, calls in flight go on."""
        await self._checker.stop()
        await self.limits.retire()

    async def close(self, successor: Runtime | None = None) -> None:
        """Closes every connection that the successor did not take over."""
        await self._checker.stop()
        await self.upstream.close()
        await self.limits.close(successor.limits if successor else None)
        for name, served in self.providers.items():
            if successor is None or successor.providers.get(name) is not served:
                await served.endpoint.close()
        await self.identity.close(successor.identity if successor else None)


def _served(
    name: str, provider: Provider, config: Config, files: Mapping[Path, bytes], kept: ServedProvider | None
) -> ServedProvider:
    """The provider that was kept if nothing about it changed, else a new one."""
    treatment = provider.over(config.routing)
    named = {target.model for alias in config.models.values() for target in alias.targets if target.provider == name}
    named |= {*provider.models, *provider.catalog}
    if kept and (kept.configured, kept.treatment, kept.files) == (provider, treatment, files):
        return kept

    def policy_of(model: str) -> TargetPolicy:
        own = provider.by_model.get(model)
        return target_policy(own.over(treatment) if own else treatment)

    states = TargetStates(policy_of, ProviderRecord(name), named)
    return ServedProvider(provider, treatment, files, endpoint(name, provider), states)


def _contents(provider: Provider) -> dict[Path, bytes]:
    """Files whose content is no part of the configuration: certificates, and keys of cloud accounts."""
    named = [provider.ca_file, provider.client_certificate_file, provider.client_key_file]
    if provider.credential:
        named += [getattr(provider.credential, "ca_file", None), getattr(provider.credential, "file", None)]
    return {path: path.read_bytes() for path in named if path}


def _routes(config: Config, endpoints: Mapping[str, Endpoint]) -> Routes:
    def provider_target(provider: str, model: str) -> Target | None:
        endpoint = endpoints.get(provider)
        return None if endpoint is None else endpoint.target(model)

    aliases = {
        name: AliasRoute(
            [
                Candidate(endpoints[target.provider].target(target.model), target.weight, target.arm)
                for target in alias.targets
            ],
            alias.strategy,
            alias.hedge_delay,
        )
        for name, alias in config.models.items()
    }
    rules = [Rule(rule.model, rule.labels, rule.models) for rule in config.routing.rules]
    return Routes(aliases, provider_target, rules)


def _estimator(config: Config, endpoints: Mapping[str, Endpoint], routes: Routes, catalog: Catalog) -> Estimator:
    def card_output(target: Target) -> int | None:
        card = config.providers[target.provider].catalog.get(target.model)
        return card.max_output_tokens if card else None

    def default_output(target: Target) -> int | None:
        return endpoints[target.provider].default_max_output_tokens

    return Estimator(config.limits.estimate, routes.targets, card_output, default_output, catalog.prices)


def _named_targets(config: Config, endpoints: Mapping[str, Endpoint]) -> Iterator[Target]:
    for alias in config.models.values():
        for target in alias.targets:
            if "*" not in target.model:
                yield endpoints[target.provider].target(target.model)
    for name, provider in config.providers.items():
        for model in (*provider.models, *provider.catalog):
            yield endpoints[name].target(model)


def _catalog(config: Config, endpoints: Mapping[str, Endpoint]) -> Catalog:
    configured = dict(card for name, provider in config.providers.items() for card in cards(name, provider))
    return Catalog(configured, {name: endpoint.base_url for name, endpoint in endpoints.items()})
