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
KEY_MARKS = (
    *("hg_", "eyj", "aiza", "earer", "k-", "k_", "xai", "hf-", "hf_", "nvapi", "pplx"),
    *("fw-", "fw_", "r8-", "r8_", "key-", "key_"),
)
"""One of these is in whatever looks like a key, in lower case."""
MAX_NAMES = 1024
MAX_NAME = 64
CONTAINERS = (dict, list, tuple)
NUMBERS = (int, float, bool, type(None))

_plain_names: set[object] = set()
"""Names that are known to be of no secret. Callers choose some, of labels, so that it has to forget them in time, and
remembers no long ones."""


def is_secret(name: str) -> bool:
    """Whether a field of that name holds a secret: headers in any spelling, and keys of configurations."""
    word = name.lower().replace("-", "_")
    return word in SECRET_NAMES or word.endswith(SECRET_ENDINGS) or word.startswith(CALLERS_OWN_KEYS)


def is_plain(values: dict[str, Any]) -> bool:
    """Whether nothing in it is a secret by its name, or looks like a key: then there is nothing to mask."""
    texts: list[str] = []
    return _gather(values, texts) and not _may_hold_key("\n".join(texts))


def mask_fields(values: dict[str, Any]) -> dict[str, Any]:
    """The values with secrets masked by name at any depth."""
    return {name: MASK if inner and is_secret(str(name)) else _masked(inner) for name, inner in values.items()}


def mask_keys(text: str) -> str:
    """The text without whatever looks like a key."""
    return redacted(text) if _may_hold_key(text) else text


def mask_texts(value: Any) -> Any:
    """The same for every text in a value."""
    if isinstance(value, str):
        return mask_keys(value)
    if isinstance(value, dict):
        return {name: mask_texts(inner) for name, inner in value.items()}
    return [mask_texts(inner) for inner in value] if isinstance(value, list | tuple) else value


def _may_hold_key(text: str) -> bool:
    text = text.lower()
    for mark in KEY_MARKS:  # noqa: SIM110  # each line comes here, and a generator doubles the time
        if mark in text:
            return True
    return False


def _gather(values: Any, texts: list[str]) -> bool:
    """Adds every text in a mapping or list to `texts`; False if a name is of a secret, or a value is not known."""
    if type(values) is dict:
        if not _plain_names.issuperset(values) and not _are_plain(values):
            return False
        values = values.values()
    for value in values:
        kind = type(value)
        if kind is str:
            texts.append(value)
        elif kind in CONTAINERS:
            if not _gather(value, texts):
                return False
        elif kind not in NUMBERS:
            return False
    return True


def _are_plain(names: Collection[object]) -> bool:
    if any(is_secret(str(name)) or redacted(str(name)) != str(name) for name in names):
        return False
    if len(_plain_names) > MAX_NAMES:
        _plain_names.clear()
    _plain_names.update(name for name in names if len(str(name)) <= MAX_NAME)
    return True


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return mask_fields(value)
    return [_masked(item) for item in value] if isinstance(value, list | tuple) else value
