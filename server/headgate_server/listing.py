"""What ListModels shows: every alias, and every provider/model that the configuration names. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from headgate import v1 as pb

from headgate_server.catalog import Card, Catalog
from headgate_server.providers.base import Target

Capabilities = Callable[[Target], frozenset[str]]


def models(
    aliases: Mapping[str, Sequence[Target]],
    named: Iterable[Target],
    capabilities: Capabilities,
    catalog: Catalog,
) -> list[pb.Model]:
    """The list, by name. An alias shows what all of its targets have in common."""
    listed = [_model(name, targets, capabilities, catalog) for name, targets in aliases.items()]
    for model in listed:
        model.is_alias = True
    listed += [
        _model(f"{target.provider}/{target.model}", [target], capabilities, catalog) for target in dict.fromkeys(named)
    ]
    return sorted(listed, key=lambda model: model.name)


def _model(name: str, targets: Sequence[Target], capabilities: Capabilities, catalog: Catalog) -> pb.Model:
    cards = [catalog.card(target) for target in targets]
    common = frozenset.intersection(*(capabilities(target) for target in targets))
    price_lists = {card.prices for card in cards}
    prices = price_lists.pop() if len(price_lists) == 1 else None
    return pb.Model(
        name=name,
        display_name=cards[0].display_name,
        providers=list(dict.fromkeys(target.provider for target in targets)),
        capabilities=sorted(common),
        context_window=_least(cards, "context_window"),
        max_output_tokens=_least(cards, "max_output_tokens"),
        prices=prices.model_prices() if prices else [],
    )


def _least(cards: Sequence[Card], field: str) -> int | None:
    """The least of a limit over all targets; None when one is unknown."""
    limits = [getattr(card, field) for card in cards]
    return None if None in limits else min(limits)
