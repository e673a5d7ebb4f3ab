"""Enters calls into the ledger."""

from __future__ import annotations

from headgate import v1 as pb

from headgate_server.call import Call
from headgate_server.errors import GatewayError
from headgate_server.interceptors.base import Check, End
from headgate_server.ledger.ledger import Ledger


def enter(book: Ledger) -> Check:
    """Makes an entry for every call that may go to a vendor."""

    def check(call: Call) -> None:
        if isinstance(call.request, pb.GenerateRequest | pb.EmbedRequest):
            call.entry = book.enter(call, call.request)

    return check


def conclude(book: Ledger) -> End:
    """Enters what became of it, whatever that is."""

    def end(call: Call, error: GatewayError | None) -> None:
        if call.entry:
            book.conclude(call.entry, error)

    return end
