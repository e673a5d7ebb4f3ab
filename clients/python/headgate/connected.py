"""Clients for the objects of frameworks, which are made from settings and used from threads and event loops alike."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any, ClassVar

from headgate import AsyncClient, Client
from pydantic import BaseModel, ConfigDict, Field, SecretStr


def _key() -> SecretStr | None:
    key = os.environ.get("HEADGATE_API_KEY", "")
    return SecretStr(key) if key else None


class Connected(BaseModel):
    """How Headgate is reached; both clients are made when they are first needed."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", protected_namespaces=())

    address: str = Field(default_factory=lambda: os.environ.get("HEADGATE_ADDRESS", ""))
    """By default the environment's HEADGATE_ADDRESS, else localhost:50051."""
    api_key: SecretStr | None = Field(default_factory=_key)
    """By default the environment's HEADGATE_API_KEY."""
    timeout: float | None = None
    """Seconds that a call may take; None is the client's own ten minutes."""
    connection: dict[str, Any] = Field(default_factory=dict, repr=False, exclude=True)
    """What else Client takes: `token`, `tls`, `ca`, `tracing`, …"""

    @cached_property
    def client(self) -> Client:
        """For sync methods."""
        return Client(self.address, **self._options)

    @cached_property
    def async_client(self) -> AsyncClient:
        """For async methods."""
        return AsyncClient(self.address, **self._options)

    @property
    def _options(self) -> Any:
        key = {"api_key": self.api_key.get_secret_value()} if self.api_key and "token" not in self.connection else {}
        timeout = {} if self.timeout is None else {"timeout": self.timeout}
        return {**key, **timeout, **self.connection}
