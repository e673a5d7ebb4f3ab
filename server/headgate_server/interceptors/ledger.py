"""Enters calls into the ledger."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headgate import v1 as pb

from headgate_server.call import Call
from headgate_server.interceptors.base import Interceptor
from headgate_server.ledger.ledger import Ledger


def ledger(book: Ledger) -> Interceptor:
    """Has an entry for every call that may go to a vendor, whatever its end."""

    @asynccontextmanager
    async def around(call: Call) -> AsyncIterator[None]:
        if not isinstance(call.request, pb.GenerateRequest | pb.EmbedRequest):
            yield
            return
        call.entry = entry = book.enter(call, call.request)
        try:
            yield
        finally:
            book.conclude(entry, call.conclude(sys.exception()))

    return around
