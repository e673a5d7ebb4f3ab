"""Secrets taken out of log lines, whoever logs them: by the names of fields, and by what values look like.

Each line goes through here, and hardly any holds a secret: seeing that there is none is what has to be cheap.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from headgate_server.redaction import MASK, redacted

SECRET_NAMES = frozenset(
    {
        "api_key",
        "authorization",
        "client_secret",
        "cookie",
        "credential",
        "passwd",
        "password",
        "pepper",
        "private_key",
        "proxy_authorization",
        "secret",
        "set_cookie",
        "token",
        "x_api_key",
        "x_goog_api_key",
    }
)
SECRET_ENDINGS = ("_api_key", "_password", "_secret", "_token")
CALLERS_OWN_KEYS = "x_provider_key_"
KEY_MARKS = ("hg_", "eyJ", "k-", "k_", "AIza", "earer", "EARER", "xai", "hf_", "nvapi", "pplx", "fw_", "r8_", "key-")
"""One of these is in whatever looks like a key."""
MAX_NAMES = 1024
MAX_NAME = 64
CONTAINERS = (dict, list, tuple)


_plain_names: set[object] = set()
"""Names that are known to be of no secret. Callers choose some, of labels, so that it has to forget them in time, and
remembers no long ones."""


def is_secret(name: str) -> bool:
    """Whether a field of that name holds a secret: headers in any spelling, and keys of configurations."""
    word = name.lower().replace("-", "_")
    return word in SECRET_NAMES or word.endswith(SECRET_ENDINGS) or word.startswith(CALLERS_OWN_KEYS)


def mask_fields(values: dict[str, Any]) -> dict[str, Any]:
    """The values with secrets masked at any depth; the same object where there are none."""
    return _masked(values) if _holds_secret(values) else values


def mask_keys(text: str) -> str:
    """The text without whatever looks like a key."""
    for mark in KEY_MARKS:
        if mark in text:
            return redacted(text)
    return text


def mask_texts(value: Any) -> Any:
    """The same for every text in a value."""
    if isinstance(value, str):
        return mask_keys(value)
    if isinstance(value, dict):
        return {name: mask_texts(inner) for name, inner in value.items()}
    return [mask_texts(inner) for inner in value] if isinstance(value, list | tuple) else value


def _holds_secret(values: Any) -> bool:
    """Whether there is one in a mapping, or in a list, which is all that can hold others."""
    if type(values) is dict:
        if not _plain_names.issuperset(values) and not _are_plain(values):
            return True
        values = values.values()
    for value in values:  # noqa: SIM110  # each line comes here, and a generator doubles the time
        if type(value) in CONTAINERS and _holds_secret(value):
            return True
    return False


def _are_plain(names: Collection[object]) -> bool:
    if any(is_secret(str(name)) for name in names):
        return False
    if len(_plain_names) > MAX_NAMES:
        _plain_names.clear()
    _plain_names.update(name for name in names if len(str(name)) <= MAX_NAME)
    return True


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: MASK if inner and is_secret(str(name)) else _masked(inner) for name, inner in value.items()}
    return [_masked(item) for item in value] if isinstance(value, list | tuple) else value
