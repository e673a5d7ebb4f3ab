"""Model name -> targets in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

from headgate import v1 as pb

from headgate_server.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    GatewayError,
    ModelNotFound,
    NoEligibleProvider,
)
from headgate_server.principal import Principal
from headgate_server.providers.base import Target
from headgate_server.routing.strategies import STRATEGIES, Affinity, Knowledge

Request = pb.GenerateRequest | pb.EmbedRequest


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target of an alias. `weight` is its share where shares count; `arm` names it in experiments.

    `asked` is the name that led to it if that is not the one in the request: a fallback, or what a rule says instead.
    """

    target: Target
    weight: float = 1.0
    arm: str = ""
    asked: str = ""


@dataclass(frozen=True, slots=True)
class AliasRoute:
    """What an alias stands for. `hedge_delay` is in seconds, None for no hedging."""

    candidates: Sequence[Candidate]
    strategy: str = "priority"
    hedge_delay: float | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Sends calls for one of `models` that bear all `labels` (both globs) to `model` instead."""

    model: str
    labels: Mapping[str, str]
    models: Sequence[str] = ()

    def matches(self, request: Request) -> bool:
        """Whether it holds for this request. Without `models` it holds for every alias, and for no provider/model."""
        labels = request.labels
        if not all(name in labels and fnmatchcase(labels[name], glob) for name, glob in self.labels.items()):
            return False
        if not self.models:
            return "/" not in request.model
        return any(fnmatchcase(request.model, glob) for glob in self.models)


class Route(NamedTuple):
    """Where one call may go: `candidates` in order, the first `own` of them those of `model`.

    `model` is what was asked for, or what a rule put in its place.
    """

    candidates: Sequence[Candidate]
    own: int
    model: str
    hedge_delay: float | None = None


@dataclass(frozen=True, slots=True)
class Routes:
    """The names of one configuration.

    An alias may hold one `*`, which stands for any text; in the models of its targets `*` is what it stood for. The
    exact name wins, then the alias with the most other characters. `provider_target` makes the target for a model that
    no alias names, or returns None for an unknown provider.
    """

    aliases: Mapping[str, AliasRoute]
    provider_target: Callable[[str, str], Target | None]
    rules: Sequence[Rule] = ()
    _wildcards: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        wildcards = sorted((name for name in self.aliases if "*" in name), key=len, reverse=True)
        object.__setattr__(self, "_wildcards", wildcards)

    def route(self, request: Request, principal: Principal, known: Knowledge) -> Route:
        """Every target that may answer, best first: those of the model, then those of the policy's fallbacks.

        Raises:
            ModelNotFound: a name is neither an alias nor provider/model.
            NoEligibleProvider: the policy's provider lists, or the caller's own, leave none.
        """
        model = self._model(request)
        policy = request.routing
        alias = self._resolve(model, "model")
        candidates = self._ordered(model, alias, policy, known)
        if model != request.model:
            candidates = [replace(candidate, asked=model) for candidate in candidates]
        if not (policy.fallbacks or policy.allowed_providers or policy.denied_providers or principal.allowed_providers):
            return Route(_issuers_first(request, candidates), len(candidates), model, alias.hedge_delay)
        own = [candidate for candidate in candidates if _allowed(candidate.target, policy, principal)]
        taken = {candidate.target for candidate in own}
        fallbacks: dict[Target, Candidate] = {}
        for index, name in enumerate(policy.fallbacks):
            fallback = self._resolve(name, f"routing.fallbacks[{index}]")
            for candidate in self._ordered(name, fallback, policy, known):
                if candidate.target not in taken and _allowed(candidate.target, policy, principal):
                    fallbacks.setdefault(candidate.target, replace(candidate, asked=name))
        if not own and not fallbacks:
            raise NoEligibleProvider(f'no provider of model "{request.model}" is allowed for this call')
        return Route([*_issuers_first(request, own), *fallbacks.values()], len(own), model, alias.hedge_delay)

    def targets(self, request: Request) -> Iterator[Target]:
        """All that may answer, in no order and whatever the policy's provider lists say; none of unknown names."""
        for name in (self._model(request), *request.routing.fallbacks):
            if route := self._find(name):
                yield from (candidate.target for candidate in route.candidates)

    def _model(self, request: Request) -> str:
        """What was asked for, or what the first rule that matches says instead."""
        return next((rule.model for rule in self.rules if rule.matches(request)), request.model)

    def _ordered(self, name: str, alias: AliasRoute, policy: pb.RoutingPolicy, known: Knowledge) -> Sequence[Candidate]:
        if len(alias.candidates) == 1:
            return alias.candidates
        strategy = policy.strategy or alias.strategy
        if policy.affinity_key and strategy != "priority":
            return Affinity(name, policy.affinity_key).order(alias.candidates)
        return STRATEGIES[strategy](alias.candidates, known)

    def _resolve(self, name: str, field: str) -> AliasRoute:
        if route := self._find(name):
            return route
        provider, slash, _ = name.partition("/")
        missing = f'provider "{provider}"' if slash else f'model "{name}"'
        raise ModelNotFound(f"{field}: no {missing} is configured")

    def _find(self, name: str) -> AliasRoute | None:
        provider, slash, model = name.partition("/")
        if not slash:
            return self.aliases.get(name) or self._by_wildcard(name)
        target = self.provider_target(provider, model) if model else None
        return None if target is None else AliasRoute((Candidate(target),))

    def _by_wildcard(self, name: str) -> AliasRoute | None:
        for wildcard in self._wildcards:
            before, _, after = wildcard.partition("*")
            if name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after):
                alias = self.aliases[wildcard]
                text = name[len(before) : len(name) - len(after)]
                return replace(alias, candidates=[_filled(candidate, text) for candidate in alias.candidates])
        return None


def _filled(candidate: Candidate, text: str) -> Candidate:
    model = candidate.target.model.replace("*", text)
    return replace(candidate, target=replace(candidate.target, model=model))


def _allowed(target: Target, policy: pb.RoutingPolicy, principal: Principal) -> bool:
    return (
        target.provider not in policy.denied_providers
        and (not policy.allowed_providers or target.provider in policy.allowed_providers)
        and principal.may_use_provider(target.provider)
    )


def _issuers_first(request: Request, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """The same order, but first those who can read the opaque state in the history: elsewhere it would be dropped."""
    is_one_issuer = len({candidate.target.issuer for candidate in candidates}) <= 1
    if is_one_issuer or not isinstance(request, pb.GenerateRequest):
        return candidates
    issuers = set(_issuers(request))
    return sorted(candidates, key=lambda candidate: candidate.target.issuer not in issuers) if issuers else candidates


def _issuers(request: pb.GenerateRequest) -> Iterator[str]:
    for message in request.messages:
        for part in message.parts:
            if part.issuer:
                yield part.issuer


def next_target_may_answer(error: GatewayError, policy: pb.RoutingPolicy, *, is_fallback: bool) -> bool:
    """Whether this failure is a reason to try the next target.

    The contract's table says it for the targets of the model that was asked for; the caller's triggers say whether a
    fallback is tried at all.
    """
    triggers = policy.fallback_triggers
    if isinstance(error, ContextLengthExceeded):
        return pb.FALLBACK_TRIGGER_CONTEXT_LENGTH in triggers
    if isinstance(error, ContentFiltered):
        return pb.FALLBACK_TRIGGER_CONTENT_FILTER in triggers
    if is_fallback and triggers and pb.FALLBACK_TRIGGER_ERROR not in triggers:
        return False
    return error.other_target
