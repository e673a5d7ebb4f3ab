"""API keys: their form, their checksum, and what is kept of them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from headgate_server.identity.keys import claimed_id, digest, is_whole, new_key
from headgate_server.identity.records import KeyRecord, Refused
from headgate_server.principal import Principal

KEY = new_key()
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def test_a_key_names_itself_and_can_be_scanned_for() -> None:
    """By one regular expression, with its id in the clear."""
    assert re.fullmatch(r"hg_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}", KEY.text)
    assert (claimed_id(KEY.text), is_whole(KEY.text)) == (KEY.id, True)
    assert KEY.text not in repr(KEY)


def test_keys_differ() -> None:
    """In id and secret; a new secret for a key keeps its id."""
    assert len({new_key().text for _ in range(1000)}) == 1000
    other = new_key(KEY.id)
    assert (other.id, claimed_id(other.text), is_whole(other.text)) == (KEY.id, KEY.id, True)
    assert other.text != KEY.text


@given(st.integers(0, len(KEY.text) - 1), st.sampled_from(DIGITS))
def test_one_wrong_character_is_noticed_without_a_look_up(position: int, character: str) -> None:
    """Wherever it stands."""
    typed = KEY.text[:position] + character + KEY.text[position + 1 :]
    assert is_whole(typed) == (typed == KEY.text)


@given(st.integers(0, len(KEY.text) - 1))
def test_a_truncated_key_is_noticed_without_a_look_up(length: int) -> None:
    """From either end."""
    for part in (KEY.text[:length], KEY.text[-length:] if length else ""):
        assert (claimed_id(part), is_whole(part)) == (None, False)


@given(st.text())
def test_any_text_can_be_asked_about(text: str) -> None:
    """Whatever a caller sends."""
    for presented in (text, f"hg_{text}"):
        assert not is_whole(presented)
        assert claimed_id(presented) is None


def test_what_is_kept_needs_the_pepper() -> None:
    """The same key under another pepper hashes to something else, and never to itself."""
    kept = digest(b"one", KEY.text)
    assert len(kept) == 32
    assert kept != digest(b"two", KEY.text)
    assert kept == digest(b"one", KEY.text)


@pytest.mark.parametrize(
    ("presented", "now", "reason"),
    [
        (b"current", 0.0, None),
        (b"current", 10.0, "expired"),
        (b"before", 4.9, None),
        (b"before", 5.0, "rotated"),
        (b"before", 10.0, "expired"),
        (b"wrong", 0.0, "wrong_secret"),
        (b"wrong", 10.0, "wrong_secret"),
        (b"", 0.0, "wrong_secret"),
    ],
)
def test_a_key_holds_until_its_times(presented: bytes, now: float, reason: str | None) -> None:
    """Expiry at 10, the secret before the rotation until 5."""
    principal = Principal(tenant="acme", key_id=KEY.id)
    record = KeyRecord(principal, b"current", b"before", previous_expires_at=5.0, expires_at=10.0)
    if reason is None:
        assert record.admit(presented, now) is principal
        return
    with pytest.raises(Refused) as refused:
        record.admit(presented, now)
    assert (refused.value.reason, refused.value.key_id) == (reason, KEY.id)


def test_a_key_without_a_rotation_has_no_empty_secret() -> None:
    """Nothing presented equals nothing kept, and is refused all the same."""
    record = KeyRecord(Principal(key_id=KEY.id), b"current")
    with pytest.raises(Refused):
        record.admit(b"", 0.0)
