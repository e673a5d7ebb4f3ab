"""Waiting for a place at a target that takes only so many calls at once."""

from __future__ import annotations

import asyncio

from headgate_server.errors import GatewayOverloaded
from headgate_server.resilience.places import Places


async def take_place(places: Places, patience: float) -> None:
    """Takes a place, after a wait of at most `patience` seconds if none is free.

    Raises:
        GatewayOverloaded: the queue is full, or longer than the patience.
    """
    if not places.full():
        places.take()
        return
    if not places.admits(patience):
        raise _overloaded(places)
    given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ticket = id(given)
    places.join(ticket, lambda: given.set_result(None))
    try:
        async with asyncio.timeout(patience):
            await asyncio.shield(given)
    except BaseException as exception:
        if not places.leave_queue(ticket):
            places.give_back(None)
        if isinstance(exception, TimeoutError):
            raise _overloaded(places) from None
        raise


def _overloaded(places: Places) -> GatewayOverloaded:
    overloaded = GatewayOverloaded("too many calls wait for the provider already", retry_after=places.expected_wait())
    overloaded.asked = False
    return overloaded
