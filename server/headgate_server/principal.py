"""Who calls: what authentication found out, and what it entitles to."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headgate_server.config.budgets import Budget
    from headgate_server.config.limits import Limit


@dataclass(frozen=True, slots=True)
class Principal:
    """One authenticated caller. Empty `allowed_models` and `allowed_providers` (both globs) allow all."""

    tenant: str = ""
    key_id: str = ""
    roles: frozenset[str] = frozenset()
    allowed_models: tuple[str, ...] = ()
    allowed_providers: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    budgets: tuple[Budget, ...] = ()

    def may_use_model(self, name: str) -> bool:
        """Whether the caller may ask for this alias, or provider/model."""
        return not self.allowed_models or any(fnmatchcase(name, glob) for glob in self.allowed_models)

    def may_use_provider(self, name: str) -> bool:
        """Whether the caller's calls may go to this configured provider."""
        return not self.allowed_providers or any(fnmatchcase(name, glob) for glob in self.allowed_providers)


ANONYMOUS = Principal()
