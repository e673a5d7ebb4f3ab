"""What is known of an API key, wherever it is kept. Pure."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headgate_server.principal import Principal

REVOKED = "revoked"


class Refused(Exception):
    """Credentials that nobody is let in with. `reason` and `key_id` are for the log; the caller is told neither."""

    def __init__(self, reason: str, *, key_id: str = "", tenant: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.key_id = key_id
        self.tenant = tenant


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key: whom it stands for, and what its secret must hash to. Times are seconds since the epoch.

    After a rotation the secret before it is good until `previous_expires_at`.
    """

    principal: Principal
    digest: bytes = field(repr=False)
    previous_digest: bytes = field(default=b"", repr=False)
    previous_expires_at: float | None = None
    expires_at: float | None = None
    ended: str = ""
    """Why it is good no more, such as revoked."""

    def admit(self, digest: bytes, now: float) -> Principal:
        """Whom the presented secret stands for. It is compared first, so that only its holder learns from timing.

        Raises:
            Refused: it is wrong, or the key is revoked or expired.
        """
        is_current = hmac.compare_digest(digest, self.digest)
        if not is_current and not hmac.compare_digest(digest, self.previous_digest):
            raise self._refused("wrong_secret")
        if self.ended:
            raise self._refused(self.ended)
        if self.expires_at is not None and now >= self.expires_at:
            raise self._refused("expired")
        if not is_current and (self.previous_expires_at is None or now >= self.previous_expires_at):
            raise self._refused("rotated")
        return self.principal

    def _refused(self, reason: str) -> Refused:
        return Refused(reason, key_id=self.principal.key_id, tenant=self.principal.tenant)


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key is made of, but for its secret. Times are seconds since the epoch."""

    tenant: str
    name: str = ""
    roles: Sequence[str] = ()
    allowed_models: Sequence[str] = ()
    allowed_providers: Sequence[str] = ()
    limits: Sequence[Mapping[str, Any]] = ()
    budgets: Sequence[Mapping[str, Any]] = ()
    expires_at: float | None = None


class NoSuchKey(Exception):
    """There is no key of that name, or it is revoked."""
