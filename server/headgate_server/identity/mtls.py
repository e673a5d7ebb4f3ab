"""Whom a client certificate stands for. The TLS handshake has verified it; here it is only read. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from headgate_server.identity.records import Refused
from headgate_server.principal import Principal

Properties = Mapping[str, Iterable[bytes]]
SPIFFE_ID = "peer_spiffe_id"
SUBJECT = "x509_subject"


@dataclass(frozen=True, slots=True)
class CertificateRule:
    """Certificates whose `property` matches stand for `principal`, who is further told apart by that name."""

    property: str
    pattern: re.Pattern[str]
    principal: Principal


def spiffe_pattern(glob: str) -> re.Pattern[str]:
    """`*` stands for anything within one segment of the path, and `**` for any number of segments."""
    parts = (".*" if part == "**" else "[^/]*" if part == "*" else re.escape(part) for part in re.split(r"(\*+)", glob))
    return re.compile("".join(parts), re.DOTALL)


def subject_pattern(subject: str) -> re.Pattern[str]:
    """A subject is compared whole, as RFC 4514 writes it: a name inside it may hold anything."""
    return re.compile(re.escape(subject))


def certified(rules: Sequence[CertificateRule], properties: Properties) -> Principal | None:
    """Whom the connection's certificate stands for, by the first rule that fits it; None if there is no certificate.

    Raises:
        Refused: no rule fits it.
    """
    names = {name: _only(properties.get(name, ())) for name in (SPIFFE_ID, SUBJECT)}
    for rule in rules:
        name = names[rule.property]
        if name and rule.pattern.fullmatch(name):
            return replace(rule.principal, key_id=name)
    if name := names[SPIFFE_ID] or names[SUBJECT]:
        raise Refused("unknown_certificate", key_id=name)
    return None


def _only(values: Iterable[bytes]) -> str:
    """The one value; a certificate with several says nothing certain."""
    found = list(values)
    return found[0].decode("utf-8", "replace") if len(found) == 1 else ""
