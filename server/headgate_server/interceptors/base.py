"""What an interceptor is: one small async context manager around the call."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from headgate_server.call import Call


class Interceptor(Protocol):
    """Does its work before, and after the call whatever its end; raises a GatewayError to refuse."""

    def __call__(self, call: Call) -> AbstractAsyncContextManager[None]: ...
