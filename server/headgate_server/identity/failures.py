"""How often one address may fail to say who it is. Pure: time is passed in, in seconds of any clock."""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Network, ip_address
from urllib.parse import unquote

MAX_ADDRESSES = 10_000
VERIFICATIONS_PER_SECOND = 10


class Buckets:
    """A bucket of `limit` for each address, which fills anew within `window` seconds. 0 limits nothing.

    Remembers the addresses that took last, and no more than MAX_ADDRESSES of them.
    """

    def __init__(self, limit: int, window: float) -> None:
        self._limit = limit
        self._pace = limit / window
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def wait(self, address: str, now: float) -> float:
        """Seconds until the address may take again; 0 if it may now."""
        if not self._limit or address not in self._buckets:
            return 0.0
        left = self._left(address, now)
        return 0.0 if left >= 1 else (1 - left) / self._pace

    def record(self, address: str, now: float) -> None:
        """It takes one more."""
        if not self._limit:
            return
        self._buckets[address] = (max(0.0, self._left(address, now) - 1), now)
        self._buckets.move_to_end(address)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)

    def _left(self, address: str, now: float) -> float:
        left, since = self._buckets.get(address, (float(self._limit), now))
        return min(float(self._limit), left + (now - since) * self._pace)


class FailedAttempts(Buckets):
    """A bucket of failures for each address; who has emptied it has few tokens verified, which cost the most."""

    def __init__(self, limit: int, window: float) -> None:
        super().__init__(limit, window)
        self._verifications = Buckets(VERIFICATIONS_PER_SECOND, 1.0)

    def may_verify(self, address: str, now: float) -> bool:
        """Whether a signature is verified for the address now: behind the same proxy others are honest."""
        if not self.wait(address, now):
            return True
        if self._verifications.wait(address, now):
            return False
        self._verifications.record(address, now)
        return True


def peer_address(peer: str) -> str:
    """The address in gRPC's `ipv4:127.0.0.1:40000`, without the port; of IPv6 the /64, which is one subscriber."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return host
    if mapped := address.ipv4_mapped:
        return str(mapped)
    return str(IPv6Network((int(address), 64), strict=False))
