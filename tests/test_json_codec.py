"""JSON that vendors send and callers pass through."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from headgate_server.errors import InvalidRequest, ProviderProtocolError
from headgate_server.json_codec import caller_raw, dumps, is_json, loads, loads_object, merge_patch

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
patches = st.dictionaries(
    st.sampled_from("abc"), json_values | st.dictionaries(st.sampled_from("abc"), st.none() | st.integers())
)


@given(json_values)
def test_values_survive(value: object) -> None:
    """Integers of any size, floats, every text."""
    assert loads(dumps(value)) == value


def test_lone_surrogates_become_replacement_characters() -> None:
    """In values and in keys; pairs stay."""
    assert loads(b'{"\\ud800k": ["\\udc00", "\\ud83d\\ude00"]}') == {"\ufffdk": ["\ufffd", "😀"]}


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a":1}x', b"[" * 100000, b'{"a":' + b"9" * 9999 + b"}"])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    """Truncated, not UTF-8, trailing, too deep, absurd."""
    with pytest.raises(ProviderProtocolError):
        loads_object(data)


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b'"a"'])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    """An answer is an object."""
    with pytest.raises(ProviderProtocolError, match="not an object"):
        loads_object(data)


def test_a_caller_s_text_goes_out_byte_for_byte() -> None:
    """After it was checked."""
    assert dumps({"a": caller_raw('{"b":  1e2}', "f")}) == b'{"a":{"b":  1e2}}'
    with pytest.raises(InvalidRequest, match="f: must be a JSON object"):
        caller_raw("[1]", "f")


@pytest.mark.parametrize(
    ("text", "expected"), [("{}", True), ('"\\ud800"', True), ("1", True), ('{"a', False), ("", False)]
)
def test_is_json(text: str, expected: bool) -> None:
    """Lone surrogates are JSON all the same."""
    assert is_json(text) is expected


@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({"a": msgspec.Raw(b'{"b": {"c": 1}}')}, {"a": {"b": {"d": 2}}}, {"a": {"b": {"c": 1, "d": 2}}}),
    ],
)
def test_merge_patch_is_rfc_7396(target: object, patch: object, merged: object) -> None:
    """The examples of the RFC, and a text that the patch reaches into."""
    assert merge_patch(target, patch) == merged


@given(st.dictionaries(st.sampled_from("abc"), json_values), patches)
def test_a_merge_patch_applies_once(target: dict[str, Any], patch: dict[str, Any]) -> None:
    """Applying it again changes nothing."""
    once = merge_patch(loads(dumps(target)), patch)
    assert merge_patch(loads(dumps(once)), patch) == once
