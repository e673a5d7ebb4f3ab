"""What the objects of frameworks share: clients made from settings, and messages kept as they came."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from headgate import AsyncClient, Client, v1 as pb
from headgate.content import decoded_base64
from pydantic import BaseModel, ConfigDict, Field, SecretStr

KEPT = "headgate_message"


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


def keep(message: pb.Message) -> dict[str, str]:
    """The message as it came, in a form that frameworks store as JSON: they have no words for all of it."""
    return {KEPT: base64.b64encode(message.SerializeToString()).decode()}


def kept(stored: Mapping[str, Any]) -> pb.Message | None:
    """The message that `keep` stored, if it did."""
    packed = stored.get(KEPT)
    return pb.Message.FromString(decoded_base64(packed)) if isinstance(packed, str) else None


def call_arguments(call: pb.ToolCall) -> dict[str, Any] | None:
    """The arguments of a function's call; None when they are no JSON object."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:
        return None
    return arguments if isinstance(arguments, dict) else None
