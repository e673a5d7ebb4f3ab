"""Names of calls that no two servers ever give, and that sort by time."""

from __future__ import annotations

import secrets

MOST_IN_A_MILLISECOND = 0xFFF
VERSION = 0x7000


class Ids:
    """UUIDs of version 7, as 32 hexadecimal digits: the time, a count, and what this process drew at its start."""

    def __init__(self) -> None:
        self._process = f"{0x8 + secrets.randbits(2):x}{secrets.randbits(60):015x}"
        self._millisecond = 0
        self._count = 0

    def new(self, now: float) -> str:
        """The next id. `now` is in seconds since the epoch; where it goes back, or too many come, ids run ahead."""
        millisecond = int(now * 1000)
        if millisecond > self._millisecond:
            self._millisecond, self._count = millisecond, 0
        elif self._count < MOST_IN_A_MILLISECOND:
            self._count += 1
        else:
            self._millisecond, self._count = self._millisecond + 1, 0
        return (self._millisecond << 16 | VERSION | self._count).to_bytes(8).hex() + self._process
