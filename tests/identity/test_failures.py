"""The limit on failed attempts: by address, refilled by time, bounded in memory."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from headgate_server.identity.events import MAX_KINDS_OF_FAILURE, OTHERS, Repeats, SecurityEvent
from headgate_server.identity.failures import MAX_ADDRESSES, FailedAttempts, peer_address


def test_an_address_waits_after_its_failures() -> None:
    """Three at once, then one each twenty seconds; others do not wait."""
    failures = FailedAttempts(limit=3, window=60)
    for _ in range(3):
        assert failures.wait("a", 0.0) == 0.0
        failures.record("a", 0.0)
    assert failures.wait("a", 0.0) == pytest.approx(20.0)
    assert failures.wait("a", 5.0) == pytest.approx(15.0)
    assert failures.wait("a", 20.0) == 0.0
    assert failures.wait("b", 0.0) == 0.0


def test_an_address_over_its_limit_has_few_tokens_verified_a_second() -> None:
    """Before that, and at other addresses, all of them."""
    failures = FailedAttempts(limit=1, window=3600)
    assert all(failures.may_verify("a", 0.0) for _ in range(100))
    failures.record("a", 0.0)
    assert [sum(failures.may_verify("a", now) for _ in range(100)) for now in (0.0, 0.5, 60.0)] == [10, 5, 10]
    assert all(failures.may_verify("b", 60.0) for _ in range(100))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 10)), max_size=200))
def test_no_more_failures_than_limit_and_time_allow(attempts: list[tuple[str, float]]) -> None:
    """Whatever the order and pace of attempts."""
    failures, now, let_through = FailedAttempts(limit=5, window=10), 0.0, {"a": 0, "b": 0}
    for address, pause in attempts:
        now += pause
        if failures.wait(address, now) == 0.0:
            failures.record(address, now)
            let_through[address] += 1
    assert max(let_through.values()) <= 5 + now * 5 / 10 + 1e-6


def test_a_limit_of_0_limits_nothing() -> None:
    """And remembers nobody."""
    failures = FailedAttempts(limit=0, window=60)
    for _ in range(1000):
        failures.record("a", 0.0)
    assert (failures.wait("a", 0.0), len(failures)) == (0.0, 0)


def test_very_many_addresses_are_forgotten_oldest_first() -> None:
    """Memory does not grow with the number of attackers."""
    failures = FailedAttempts(limit=1, window=1e9)
    for number in range(MAX_ADDRESSES + 10):
        failures.record(str(number), 0.0)
    assert len(failures) == MAX_ADDRESSES
    assert failures.wait("0", 0.0) == 0.0
    assert failures.wait(str(MAX_ADDRESSES + 9), 0.0) > 0


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.1.2.3:40000", "10.1.2.3"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:40000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:40001", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:40000", "10.1.2.3"),
        ("ipv6:%5Bfe80::1%25eth0%5D:40000", "fe80::/64"),
        ("unix:/run/headgate.sock", "unix"),
        ("", ""),
    ],
)
def test_ports_do_not_make_addresses_differ(peer: str, address: str) -> None:
    """Nor do the 2^64 addresses of one subscriber of IPv6."""
    assert peer_address(peer) == address


def failed(address: str = "a", reason: str = "malformed", key_id: str = "") -> SecurityEvent:
    return SecurityEvent("login_failed", reason=reason, address=address, key_id=key_id)


def test_the_first_failure_is_told_and_the_others_together() -> None:
    """Once a minute with their number, until the address stays quiet for one."""
    repeats = Repeats()
    assert [repeats.is_first(failed(key_id=str(n)), now=n) for n in range(5)] == [True, False, False, False, False]
    assert repeats.is_first(failed(reason="expired"), now=5)
    assert repeats.due(now=59) == []
    (told,) = repeats.due(now=61)
    assert (told.address, told.reason, told.count) == ("a", "malformed", 4)
    assert repeats.due(now=300) == []
    assert repeats.is_first(failed(), now=301)


def test_failures_from_very_many_addresses_are_told_as_others() -> None:
    """Neither the log nor memory grows with them."""
    repeats = Repeats()
    told = sum(repeats.is_first(failed(str(number)), now=0) for number in range(MAX_KINDS_OF_FAILURE + 500))
    assert told == MAX_KINDS_OF_FAILURE + 1
    (others,) = repeats.due(now=61)
    assert (others.address, others.count) == (OTHERS, 499)
