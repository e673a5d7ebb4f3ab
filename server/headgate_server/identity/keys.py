"""API keys: how they are made, read and compared. Pure.

A key is `hg_`, 12 characters that name it, `_`, 43 that are its secret (256 random bits), and 6 that are a checksum of
all before them. The checksum tells a typing error or a truncated key from a wrong one without a look-up, and lets
scanners of repositories tell keys from what only looks like one. What is kept of a key is its HMAC-SHA-256 under a
pepper: a random secret of 256 bits needs no slow hash, and without the pepper a stolen table is of no use.
"""

from __future__ import annotations

import hmac
import re
import secrets
from binascii import crc32
from dataclasses import dataclass, field

PREFIX = "hg_"
ID_LENGTH = 12
SECRET_LENGTH = 43
CHECKSUM_LENGTH = 6
SECRET_BITS = 256

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FORM = re.compile(
    rf"{PREFIX}(?P<id>[0-9A-Za-z]{{{ID_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH}}}[0-9A-Za-z]{{{CHECKSUM_LENGTH}}}"
)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key in full: `text` is what its holder presents, and is shown once."""

    id: str
    text: str = field(repr=False)


def new_key(key_id: str = "") -> ApiKey:
    """A new key; with `key_id`, another secret for that key."""
    key_id = key_id or "".join(secrets.choice(_DIGITS) for _ in range(ID_LENGTH))
    body = f"{PREFIX}{key_id}_{_digits(secrets.randbits(SECRET_BITS), SECRET_LENGTH)}"
    return ApiKey(key_id, body + _checksum(body))


def claimed_id(text: str) -> str | None:
    """Which key this has the form of; None if it is none, or cut."""
    match = _FORM.fullmatch(text)
    return match["id"] if match else None


def is_whole(text: str) -> bool:
    """It is a key, as it was made: not cut, and not mistyped."""
    return _FORM.fullmatch(text) is not None and _checksum(text[:-CHECKSUM_LENGTH]) == text[-CHECKSUM_LENGTH:]


def digest(pepper: bytes, text: str) -> bytes:
    """What is kept of a key: 32 bytes."""
    return hmac.digest(pepper, text.encode(), "sha256")


def _checksum(body: str) -> str:
    return _digits(crc32(body.encode()), CHECKSUM_LENGTH)


def _digits(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, rest = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[rest])
    return "".join(reversed(digits))
