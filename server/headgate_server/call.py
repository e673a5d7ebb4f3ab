"""One RPC of a caller, from its first byte to its one outcome."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from headgate import v1 as pb

from headgate_server import errors
from headgate_server.errors import GatewayError
from headgate_server.json_codec import dumps
from headgate_server.principal import ANONYMOUS, Principal
from headgate_server.validation import within_bounds

if TYPE_CHECKING:
    import grpc.aio

    from headgate_server.ledger.entry import Entry
    from headgate_server.limits.call import CallLimits
    from headgate_server.runtime import Runtime
    from headgate_server.telemetry.spans import CallTrace

REQUEST_ID = "x-request-id"
GATEWAY = "headgate"
"""The gateway's own key beside the issuers' in provider_metadata."""
RETRY_AFTER_STOP = 1.0
OVERDUE_SECONDS = 0.5
SENDING_SECONDS = 1.0
_ACCEPTED_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class Call:
    """What is known of one RPC.

    Interceptors and servicers get it in place of gRPC's context, which must not be asked for anything after the end:
    that crashes the process. `attempts` grows by one record for each upstream attempt, whatever becomes of it.
    `runtime` is the generation of the configuration that the call began with, to its end. `provider_keys` are the
    caller's own, by issuer. `deadline` is the caller's own, or else the server's default. Times are seconds of the
    monotonic clock.
    """

    def __init__(
        self,
        method: str,
        context: grpc.aio.ServicerContext[Any, Any],
        calls: CallRegistry,
        runtime: Runtime,
    ) -> None:
        self.method = method
        self.name = method[method.rfind("/") + 1 :]
        self.context = context
        self.runtime = runtime
        self.principal: Principal = ANONYMOUS
        self.provider_keys: Mapping[str, str] = {}
        self.peer = context.peer()
        """The caller's address as gRPC writes it: ipv4:127.0.0.1:40000."""
        presented = context.invocation_metadata() or ()
        self.metadata: dict[str, str | bytes] = dict(presented)
        self.repeated = _repeated(presented) if len(presented) != len(self.metadata) else frozenset()
        """Names of metadata that came more than once; of each the last counts."""
        self.request_id = _request_id(self.metadata.get(REQUEST_ID))
        self.started = time.monotonic()
        self.duration = 0.0
        """Seconds from the beginning to the end, known from then on."""
        self.ended_at = 0.0
        """When it ended, in seconds since the epoch."""
        remaining = context.time_remaining()
        self.has_deadline = remaining is not None
        patience = runtime.config.routing.default_deadline if remaining is None else remaining
        self.deadline = self.started + patience
        self.request: Message | None = None
        self.request_bytes: int | None = None
        """Its size as it came."""
        self.has_media = True
        """There may be, until validation has looked."""
        self.attempts: list[pb.Attempt] = []
        self.causes: list[str] = []
        """Why each of the attempts was made."""
        self.upstream = Occupied()
        self.cost: pb.Cost | None = None
        self.finish_reasons: list[str] = []
        self.routed_to = ""
        """What a routing rule put in the place of the model that was asked for."""
        self.arm = ""
        """Name of the target that was chosen, where the alias names its targets."""
        self.limits: CallLimits | None = None
        self.entry: Entry | None = None
        """What the ledger enters of it; None where there is no ledger, and of calls that it does not know."""
        self.trailer: list[tuple[str, str | bytes]] = []
        """What travels in trailing metadata, whatever the outcome."""
        self.trace_id = ""
        """The trace that the call belongs to, sampled or not."""
        self.trace: CallTrace | None = None
        """What is recorded of it; None when it is not sampled."""
        self.trace_headers: Mapping[str, str] = {}
        """What tells vendors of the trace when nothing is recorded."""
        self.task = asyncio.current_task()
        self.exemplar: dict[str, str] | None = None
        """Labels by which metrics lead to the call's trace, if it is kept."""
        self.delivering = False
        """Events have gone out: what breaks from now on must not look retryable."""
        self.sending = False
        """An event, or what comes before the first, is on its way out."""
        self.caller_gone = False
        self.unanswerable = False
        self._labels: dict[str, str] | None = None
        self._overdue = False
        self._calls = calls
        self._outcome: GatewayError | None = None

    @property
    def answering(self) -> pb.Attempt | None:
        """The attempt whose answer the caller got, or the last one if none answered."""
        for attempt in reversed(self.attempts):
            if attempt.outcome == pb.ATTEMPT_OUTCOME_OK:
                return attempt
        return self.attempts[-1] if self.attempts else None

    @property
    def labels(self) -> dict[str, str]:
        """The request's labels: of one that is not valid, what a valid one may have."""
        if self._labels is None:
            labels = getattr(self.request, "labels", None)
            self._labels = within_bounds(labels) if labels else {}
        return self._labels

    @property
    def counts_content(self) -> bool:
        """Somebody has to know how much came that no vendor counts: the ledger, or limits."""
        return self.entry is not None or self.limits is not None

    def end(self, exception: BaseException | None) -> GatewayError | None:
        """The call is over; how it ended, as `conclude` says."""
        self.duration = time.monotonic() - self.started
        self.ended_at = time.time()
        return self.conclude(exception)

    def conclude(self, exception: BaseException | None) -> GatewayError | None:
        """How the call ended, None for OK. The first that asks decides; all others hear the same."""
        if self._outcome is None and exception is not None:
            self._outcome = self._classify(exception)
        return self._outcome

    def _classify(self, exception: BaseException) -> GatewayError:
        if isinstance(exception, GatewayError):
            return exception
        if isinstance(exception, asyncio.CancelledError) and self._cancelled_from_outside():
            return self._cancellation()
        error = errors.InternalError()
        error.__cause__ = exception
        return error

    def _cancellation(self) -> GatewayError:
        """Why the handler was cancelled. A caller who left or ran out of time hears from gRPC itself."""
        if interruption := self.interruption():
            return interruption if self.delivering else self._ended_before_content()
        self.unanswerable = True
        remaining = self.context.time_remaining()
        if remaining is not None and remaining <= 0:
            return errors.DeadlineExceeded("the caller's deadline passed")
        return errors.CallCancelled("the caller went away")

    @property
    def default_deadline(self) -> float | None:
        """The server's deadline for a call that came without one."""
        return None if self.has_deadline else self.deadline

    def end_when_overdue(self) -> asyncio.TimerHandle:
        """Ends the call some time after the default deadline: a caller who reads no more holds it where no clock of an
        attempt runs."""
        return asyncio.get_running_loop().call_later(self.deadline - self.started + OVERDUE_SECONDS, self._end_overdue)

    def _end_overdue(self) -> None:
        self._overdue = True
        if self.task is not None:
            self.task.cancel()

    def cut(self) -> None:
        """Cancels the call. What it is sending is first given time to go out: neither the last events of a stream nor,
        before the first, a status can pass it."""
        if self.task is None:
            return
        if self.sending:
            asyncio.get_running_loop().call_later(SENDING_SECONDS, self.task.cancel)
        else:
            self.task.cancel()

    @property
    def ended_by_server(self) -> bool:
        """Not its caller and not its vendor ended it: the server stops, or its default deadline passed."""
        return not self.caller_gone and (self._overdue or self._calls.cut_off)

    def interruption(self) -> errors.StreamInterrupted | None:
        """Why the server itself ends this call, if it does: what a stream of which content was delivered fails with."""
        if self.caller_gone:
            return None
        if self._calls.cut_off:
            return interrupted_by_stop()
        return interrupted_by_default_deadline() if self._overdue else None

    def _ended_before_content(self) -> GatewayError:
        if self._calls.cut_off:
            return stopped_before_content()
        return errors.ProviderTimeout.by_clock("default_deadline")

    def warnings(self) -> Iterator[pb.Warning]:
        """What the answer has to say of the call itself."""
        if not self.has_deadline:
            seconds = self.runtime.config.routing.default_deadline
            yield pb.Warning(code="default-deadline", message=f"the call has no deadline: it ends after {seconds:g} s")

    def gateway_metadata(self) -> str:
        """What the answer's provider_metadata says under the gateway's own name, as JSON."""
        return dumps({"arm": self.arm}).decode()

    def _cancelled_from_outside(self) -> bool:
        """A cancelled task of ours that somebody awaits raises the same exception, but nobody cancelled this one."""
        task = asyncio.current_task()
        return self.caller_gone or (task is not None and task.cancelling() > 0)


class Occupied:
    """How long at least one of several overlapping spans lasted. Moments are seconds of the monotonic clock."""

    __slots__ = ("_inside", "_since", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = 0
        self._since = 0.0

    def enter(self, now: float) -> None:
        """A span begins."""
        if not self._inside:
            self._since = now
        self._inside += 1

    def leave(self, now: float) -> None:
        """A span ends."""
        self._inside -= 1
        if not self._inside:
            self.seconds += now - self._since


class CallRegistry:
    """The calls in flight. gRPC's own stop() does not wait for a handler's cleanup; this does."""

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._retired: dict[Runtime, int] = {}
        self._left: dict[Runtime, asyncio.Event] = {}
        self.cut_off = False

    def __len__(self) -> int:
        return len(self._calls)

    def by_method(self) -> Counter[str]:
        """How many of each method, by its short name."""
        return Counter(call.name for call in tuple(self._calls))  # the copy is safe from other threads

    def enter(self, call: Call) -> None:
        self._calls.add(call)
        self._idle.clear()

    def leave(self, call: Call) -> None:
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()
        if self._retired and call.runtime in self._retired:
            self._retired[call.runtime] -= 1
            if not self._retired[call.runtime]:
                self._left[call.runtime].set()

    def cut(self) -> None:
        """Cancels every call, so that each can still tell its caller why."""
        self.cut_off = True
        for call in self._calls:
            call.cut()

    async def left(self, retired: Runtime) -> None:
        """Waits for the end of the last call that began with `retired`, with which no call begins any more."""
        self._retired[retired] = sum(call.runtime is retired for call in self._calls)
        self._left[retired] = asyncio.Event()
        try:
            if self._retired[retired]:
                await self._left[retired].wait()
        finally:
            del self._retired[retired], self._left[retired]

    async def drained(self, seconds: float) -> bool:
        """Waits until no call is left, at most `seconds`; False if some are."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True


def stopped_before_content() -> errors.GatewayDraining:
    """The error of a call that the server's stop ended before anything was delivered."""
    return errors.GatewayDraining("the server stopped before the call had ended", retry_after=RETRY_AFTER_STOP)


def interrupted_by_stop() -> errors.StreamInterrupted:
    """The error of a stream that the server's stop ended in the middle."""
    return errors.StreamInterrupted(
        "the server stopped after content was delivered",
        facts={"partial_output": "true", "cause": errors.GatewayDraining.reason},
    )


def interrupted_by_default_deadline() -> errors.StreamInterrupted:
    """The error of a stream whose caller set no deadline, at the server's own."""
    return errors.StreamInterrupted(
        "the server's default deadline passed after content was delivered",
        facts={"partial_output": "true", "cause": errors.ProviderTimeout.reason, "phase": "default_deadline"},
    )


def _repeated(presented: Iterable[tuple[str, str | bytes]]) -> frozenset[str]:
    return frozenset(name for name, times in Counter(name for name, _ in presented).items() if times > 1)


def _request_id(given: str | bytes | None) -> str:
    if isinstance(given, str) and _ACCEPTED_REQUEST_ID.fullmatch(given):
        return given
    return f"{random.getrandbits(128):032x}"  # to be told apart, not to be secret
