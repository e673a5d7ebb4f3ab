"""Model name -> ordered targets. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from headgate import v1 as pb

from headgate_server.errors import ContextLengthExceeded, GatewayError, ModelNotFound, NoEligibleProvider
from headgate_server.providers.base import Target


class Route(NamedTuple):
    """Where one call may go: `targets` in order, the first `own` of them those of the model that was asked for."""

    targets: Sequence[Target]
    own: int


class Routes:
    """The aliases of one configuration, and every configured provider under its own name.

    `provider_target` makes the target for a model that no alias names, or returns None for an unknown provider.
    """

    def __init__(
        self,
        aliases: Mapping[str, Sequence[Target]],
        provider_target: Callable[[str, str], Target | None],
    ) -> None:
        self._aliases = {name: tuple(targets) for name, targets in aliases.items()}
        self._provider_target = provider_target

    @property
    def aliases(self) -> Mapping[str, Sequence[Target]]:
        return self._aliases

    def route(self, model: str, policy: pb.RoutingPolicy) -> Route:
        """Every target that may answer, best first: those of `model`, then those of the policy's fallbacks.

        Raises:
            ModelNotFound: a name is neither an alias nor provider/model.
            NoEligibleProvider: the policy's provider lists leave none.
        """
        if not (policy.fallbacks or policy.allowed_providers or policy.denied_providers):
            targets = self._resolve(model, "model")
            return Route(targets, len(targets))
        own = self._resolve(model, "model")
        fallbacks = [
            target
            for index, name in enumerate(policy.fallbacks)
            for target in self._resolve(name, f"routing.fallbacks[{index}]")
        ]
        allowed, denied = set(policy.allowed_providers), set(policy.denied_providers)
        eligible = [
            target
            for target in dict.fromkeys((*own, *fallbacks))
            if target.provider not in denied and (not allowed or target.provider in allowed)
        ]
        if not eligible:
            raise NoEligibleProvider(f'no provider of model "{model}" is allowed by the routing policy')
        return Route(eligible, sum(target in own for target in eligible))

    def _resolve(self, name: str, field: str) -> Sequence[Target]:
        provider, slash, model = name.partition("/")
        if not slash:
            targets = self._aliases.get(name)
            if targets is None:
                raise ModelNotFound(f'{field}: no model "{name}" is configured')
            return targets
        target = self._provider_target(provider, model)
        if target is None or not model:
            raise ModelNotFound(f'{field}: no provider "{provider}" is configured')
        return (target,)


def next_target_may_answer(error: GatewayError, policy: pb.RoutingPolicy, *, is_fallback: bool) -> bool:
    """Whether this failure is a reason to try the next target.

    The contract's table says it for the targets of the model that was asked for; the caller's triggers say whether a
    fallback is tried at all.
    """
    triggers = policy.fallback_triggers
    if isinstance(error, ContextLengthExceeded):
        return pb.FALLBACK_TRIGGER_CONTEXT_LENGTH in triggers
    if is_fallback and triggers and pb.FALLBACK_TRIGGER_ERROR not in triggers:
        return False
    return error.other_target
