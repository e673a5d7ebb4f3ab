"""One connection to Redis. Operations that come together travel in one command, and answers are waited for in order."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from headgate_server.limits.quota import Take

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

CONNECT_SECONDS = 1.0
SETTLE_DELAY = 0.005
MOST_OPERATIONS = 100
GRACE_TURNS = 2
STALLED_SECONDS = 2.0
WATCH_SECONDS = 0.25
CLOCK_OF_REDIS = 0

SCRIPT = (files("headgate_server.limits") / "counting.lua").read_bytes()
SHA = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()

Operation = tuple[Any, ...]
Answer = asyncio.Future[list[int]]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[list[int]]).decode


class StoreUnavailable(Exception):
    """Redis did not answer, or not in time, or with an error."""


@dataclass(slots=True)
class Command:
    """What was sent at once, when (on the loop's clock), and who waits for which answer."""

    operations: list[Operation]
    answers: list[Answer]
    sent: float


class Wire:
    """Open from its making until it breaks, and then never again."""

    def __init__(self, connection: AbstractConnection, prefix: str, holder: str, lease: int, budget: float) -> None:
        self._connection = connection
        self._prefix = prefix.encode()
        self._holder = holder
        self._lease = lease
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Operation, Answer]] = []
        self._due: deque[tuple[float, Answer]] = deque()
        """Until when an answer must come, the first to be due first: all have the same time."""
        self._alarm: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._gathering: asyncio.TimerHandle | None = None
        self._sent: deque[Command] = deque()
        self.is_open = True
        self._tasks = [asyncio.create_task(work) for work in (self._write(), self._read(), self._watch())]

    def reserve(self, name: str, takes: Sequence[Take]) -> Answer:
        """Sends a reservation; the answer is for `granted`, and must come within the budget."""
        return self._submit(("reserve", name, packed(takes)), urgent=True)

    def renew(self) -> Answer:
        """Says that the holder is alive; that must be answered within the budget, too."""
        return self._submit(("renew",), urgent=True)

    def send(self, operation: Operation) -> Answer:
        """Sends what nobody waits for: with the next reservation, or in a moment."""
        return self._submit(operation, urgent=False)

    async def close(self) -> None:
        """Gives up what is in flight."""
        self._give_up("the connection was closed")
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connection.disconnect(nowait=True)

    def _submit(self, operation: Operation, *, urgent: bool) -> Answer:
        answer = self._loop.create_future()
        if not self.is_open:
            answer.set_exception(StoreUnavailable("there is no connection"))
            return answer
        if urgent:
            self._due.append((self._loop.time() + self._budget, answer))
            if self._alarm is None:
                self._alarm = self._loop.call_later(self._budget, self._ring)
            self._wake.set()
        elif self._gathering is None:
            self._gathering = self._loop.call_later(SETTLE_DELAY, self._wake.set)
        self._waiting.append((operation, answer))
        return answer

    async def _write(self) -> None:
        from redis.exceptions import RedisError

        try:
            while await self._wake.wait():
                self._wake.clear()
                if self._gathering:
                    self._gathering.cancel()
                    self._gathering = None
                while waiting := self._waiting[:MOST_OPERATIONS]:
                    del self._waiting[:MOST_OPERATIONS]
                    await self._send(waiting)
        except (RedisError, OSError) as error:
            self._give_up(str(error))

    async def _send(self, waiting: list[tuple[Operation, Answer]]) -> None:
        command = self._command(waiting)
        self._sent.append(command)
        await self._execute(b"EVALSHA", SHA, command.operations)

    def _command(self, waiting: list[tuple[Operation, Answer]]) -> Command:
        operations, answers = [operation for operation, _ in waiting], [answer for _, answer in waiting]
        return Command(operations, answers, self._loop.time())

    async def _execute(self, verb: bytes, script: bytes, operations: list[Operation]) -> None:
        payload = _encode((CLOCK_OF_REDIS, self._holder, self._lease, operations))
        command = _packed_command(verb, script, b"1", self._prefix, payload)
        await self._connection.send_packed_command(command, check_health=False)

    def _ring(self) -> None:
        """Looks for answers that are due, and at the next one when that is."""
        now = self._loop.time()
        while self._due and (self._due[0][1].done() or self._due[0][0] <= now):
            self._overdue(self._due.popleft()[1], GRACE_TURNS)
        self._alarm = self._loop.call_at(self._due[0][0], self._ring) if self._due else None

    def _overdue(self, answer: Answer, grace: int) -> None:
        """Nobody waits longer, unless the answer has come already and this loop was too busy to read it."""
        if answer.done():
            return
        if grace:
            self._loop.call_soon(self._overdue, answer, grace - 1)
        else:
            answer.set_exception(StoreUnavailable("no answer in time"))

    async def _watch(self) -> None:
        """Gives up when the oldest command has had no answer for long, even if writing waits for Redis to read."""
        patience = max(STALLED_SECONDS, self._budget)
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._sent and self._loop.time() - self._sent[0].sent > patience:
                self._give_up("no answer for long")
                return

    async def _read(self) -> None:
        from redis.exceptions import NoScriptError, RedisError, ResponseError

        try:
            while True:
                try:
                    results = _decode(await self._connection.read_response(disconnect_on_error=False))
                except NoScriptError:
                    command = self._sent.popleft()
                    self._sent.append(command)
                    await self._execute(b"EVAL", SCRIPT, command.operations)
                except ResponseError as error:
                    _fail(self._sent.popleft(), str(error))
                else:
                    for answer, result in zip(self._sent.popleft().answers, results, strict=True):
                        if not answer.done():
                            answer.set_result(result)
        except (RedisError, OSError) as error:
            self._give_up(str(error))

    def _give_up(self, reason: str) -> None:
        self.is_open = False
        if self._alarm:
            self._alarm.cancel()
        self._sent.append(self._command(self._waiting))
        self._waiting.clear()
        while self._sent:
            _fail(self._sent.popleft(), reason)
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()


async def connect(url: str, prefix: str, holder: str, lease: int, budget: float) -> Wire:
    """A connection with the script at hand; `lease` is in microseconds, `budget` in seconds.

    Raises:
        StoreUnavailable: there is no Redis at `url`, or it does not let us in.
    """
    from redis.asyncio.connection import ConnectionPool
    from redis.exceptions import RedisError

    pool = ConnectionPool.from_url(url, protocol=2, socket_timeout=None, socket_connect_timeout=CONNECT_SECONDS)
    connection = pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await connection.connect()
            await connection.send_command("SCRIPT", "LOAD", SCRIPT, check_health=False)
            await connection.read_response()
    except (RedisError, OSError, TimeoutError) as error:
        await connection.disconnect(nowait=True)
        raise StoreUnavailable(str(error) or "no answer in time") from error
    return Wire(connection, prefix, holder, lease, budget)


def packed(takes: Sequence[Take], *, truth: bool = False) -> list[tuple[str, str, int, int, int, int]]:
    """Takes as the script reads them, with what was really used or else with what is asked for."""
    rows: list[tuple[str, str, int, int, int, int]] = []
    for take in takes:
        counter, amount = take.counter, take.truth if truth else take.amount
        limit = counter.limit
        rows.append((counter.key, limit.algorithm, limit.capacity, limit.scale, limit.gain, amount))
    return rows


def granted(takes: Sequence[Take], result: Sequence[int]) -> bool:
    """The script's answer to a reservation of these, who then know how their counters stand."""
    numbers = iter(result)
    is_granted = bool(next(numbers))
    for take in takes:
        take.used, take.reset, take.wait = next(numbers), next(numbers), next(numbers)
    return is_granted


def _packed_command(*words: bytes) -> bytes:
    """A command as Redis reads it; redis-py does the same in thrice the time."""
    return b"*%d\r\n%b" % (len(words), b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))


def _fail(command: Command, reason: str) -> None:
    for answer in command.answers:
        if not answer.done():
            answer.set_exception(StoreUnavailable(reason))
