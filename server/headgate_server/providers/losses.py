"""What of a request a vendor's wire cannot carry: told in warnings, or refused, never dropped silently."""

from __future__ import annotations

from headgate import v1 as pb

from headgate_server.errors import InvalidRequest, UnsupportedParameter


class Losses:
    """Collects the warnings of one request; `policy` says whether a setting that is lost refuses the call."""

    def __init__(self, policy: pb.UnsupportedPolicy.ValueType) -> None:
        self.warnings: list[pb.Warning] = []
        self._rejects = policy == pb.UNSUPPORTED_POLICY_REJECT

    def setting(self, field: str, what: str) -> None:
        """A setting is dropped or changed.

        Raises:
            UnsupportedParameter: the caller's policy is REJECT.
        """
        if self._rejects:
            raise unsupported(field, what)
        self.warnings.append(pb.Warning(code="unsupported-parameter", field=field, message=what))

    def state(self, field: str, what: str) -> None:
        """Something in the history that only its issuer can read, or that has no place here, is left out."""
        self.warnings.append(pb.Warning(code="dropped-content", field=field, message=what))

    def default(self, field: str, what: str) -> None:
        """The vendor demands a setting that the caller left to it."""
        self.warnings.append(pb.Warning(code="default-applied", field=field, message=what))


def unsupported(field: str, what: str) -> InvalidRequest:
    """The error for content that cannot be represented."""
    return UnsupportedParameter.at(field, what)
