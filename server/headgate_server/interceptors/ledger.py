"""Enters calls into the ledger."""

from __future__ import annotations

from headgate_server.call import Call
from headgate_server.errors import GatewayError
from headgate_server.interceptors.base import Check, End
from headgate_server.ledger.ledger import Ledger
from headgate_server.limits.estimate import Request


def enter(ledger: Ledger) -> Check:
    """Has an entry for every call that may go to a vendor."""

    def check(call: Call) -> None:
        if isinstance(call.request, Request):
            call.entry = ledger.enter(call, call.request)

    return check


def conclude(ledger: Ledger) -> End:
    """Has its rows written, whatever became of it."""

    def end(call: Call, error: GatewayError | None) -> None:
        if call.entry:
            ledger.conclude(call.entry, error)
            call.entry = None  # it knows the call: only the garbage collector would ever end the two

    return end
