"""Which target a call tries next, and when. Decisions only: time and chance are passed in.

Other targets go first: a target that failed is asked again only after every other one was, and then not before its
backoff, or the vendor's own Retry-After, has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from headgate_server.errors import CircuitOpen, GatewayError, UnsupportedParameter
from headgate_server.resilience.target import TargetState
from headgate_server.routing import Candidate


class MayAnswer(Protocol):
    """Whether an error is a reason to try another target, a fallback model's or one of the model's own."""

    def __call__(self, error: GatewayError, *, is_fallback: bool) -> bool: ...


Cause = Literal["first", "retry", "fallback", "hedge"]


class Option:
    """One target that a call may go to, and what became of it so far. Moments are on the monotonic clock.

    `cause` is why its last try was made: the call's first, a retry at the same target, another target after one that
    failed or could not be asked, or a second one beside one that is slow.
    """

    __slots__ = ("candidate", "cause", "is_fallback", "ready_at", "running", "spent", "state", "tries")

    def __init__(self, candidate: Candidate, state: TargetState, *, is_fallback: bool) -> None:
        self.candidate = candidate
        self.state = state
        self.is_fallback = is_fallback
        self.cause: Cause = "first"
        self.tries = 0
        self.ready_at = 0.0
        self.running = False
        self.spent = False

    def retry_at(self, error: GatewayError, tries: int, now: float, chance: float) -> float | None:
        """When it may be asked again after so many tries, the last of which ended in `error`; None for not again."""
        policy = self.state.policy
        if not error.same_target or tries >= policy.max_attempts:
            return None
        delay = policy.backoff.delay_after(tries, error.retry_after, chance)
        return None if delay is None else now + delay


class Plan:
    """The options of one call, best first, of which at most `max_attempts` tries are made, none after `deadline`."""

    def __init__(
        self,
        options: Sequence[Option],
        may_answer: MayAnswer,
        chance: Callable[[], float],
        *,
        max_attempts: int,
        deadline: float,
    ) -> None:
        self._options = options
        self._may_answer = may_answer
        self._chance = chance
        self._left = max_attempts
        self._deadline = deadline
        self._others_may_answer = True
        self._fallbacks_may_answer = self._begins_with_fallbacks()
        self._failure: GatewayError | None = None
        self._refusal: GatewayError | None = None
        self._without_room: GatewayError | None = None
        self._unsupported: GatewayError | None = None

    def _begins_with_fallbacks(self) -> bool:
        """Whether fallbacks may be tried where none of the model's own targets can be: as after an error of theirs."""
        if not self._options[-1].is_fallback or self._options[0].is_fallback:
            return True
        return self._may_answer(CircuitOpen("no target of the model may be called"), is_fallback=True)

    def next(self, now: float) -> Option | float:
        """What to try now, or how many seconds to wait before asking again.

        Raises:
            GatewayError: nothing is left to try: what the last try failed with, or why none could be made.
        """
        too_late = self._failure is not None and now >= self._deadline
        if not self._left or not self._others_may_answer or too_late:
            raise self._end()
        self._refusal = self._without_room
        soonest: float | None = None
        untried: list[Option] = []
        tried: list[Option] = []
        for option in self._options:
            if option.running or option.spent or (option.is_fallback and not self._fallbacks_may_answer):
                continue
            refusal = option.state.refusal(now)
            ready_at = option.ready_at
            if refusal:
                self._remember(refusal)
                if isinstance(refusal, CircuitOpen):
                    continue
                ready_at = max(ready_at, self._cooled_at(option, refusal, now))
            if ready_at > now:
                soonest = ready_at if soonest is None else min(soonest, ready_at)
            else:
                (tried if option.tries else untried).append(option)
        for option in (*sorted(untried, key=_is_second_best), *sorted(tried, key=_is_second_best)):
            if self._affords(option):
                return self._begin(option)
        if soonest is None or soonest >= self._deadline:
            raise self._end()
        return soonest - now

    def hedge(self, now: float) -> Option | None:
        """What to try beside the try that runs, now; None if nothing suits, or too much was hedged lately."""
        running = next((option for option in self._options if option.running), None)
        if running is None or not self._left:
            return None
        for option in self._options:
            untried = not (option.running or option.tries or option.spent)
            if not untried or (option.is_fallback and not self._fallbacks_may_answer):
                continue
            if option.state.refusal(now) or option.state.places.full():
                continue
            # The slow target pays, because first tries at it are what its budget grows by.
            return self._begin(option, "hedge") if running.state.budget.withdraw() else None
        return None

    def failed(self, option: Option, error: GatewayError, now: float, *, exhausted: bool = False) -> None:
        """The try failed. With `exhausted` the target was asked again already, as often as it may be."""
        option.running = False
        if error.asked or not error.other_target:
            retry_at = None if exhausted else option.retry_at(error, option.tries, now, self._chance())
            option.spent = retry_at is None
            option.ready_at = retry_at or 0.0
            if self._others_may_answer:
                self._failure = error
        else:
            self._not_asked(option, error, now)
        self._fallbacks_may_answer = self._may_answer(error, is_fallback=True)
        may_answer = self._fallbacks_may_answer or self._may_answer(error, is_fallback=False)
        self._others_may_answer = self._others_may_answer and may_answer

    def _not_asked(self, option: Option, error: GatewayError, now: float) -> None:
        """Nobody was asked, so that it was no try: the target cannot carry the request, or has no room for it now."""
        self._left += 1
        option.tries -= 1
        option.spent = option.state.refusal(now) is None
        if isinstance(error, UnsupportedParameter):
            self._unsupported = self._unsupported or error
        elif option.spent:
            self._without_room = self._without_room or error

    def _cooled_at(self, option: Option, refusal: GatewayError, now: float) -> float:
        wait = option.state.policy.backoff.delay_after(1, refusal.retry_after, self._chance())
        return now + wait if wait is not None else self._deadline

    def _affords(self, option: Option) -> bool:
        """A retry counts against the target's budget, a first try adds to it."""
        if not option.tries:
            option.state.budget.deposit()
        elif not option.state.budget.withdraw():
            option.spent = True
            return False
        return True

    def _begin(self, option: Option, cause: Cause | None = None) -> Option:
        self._left -= 1
        option.cause = cause or ("retry" if option.tries else "fallback" if option is not self._options[0] else "first")
        option.running = True
        option.tries += 1
        return option

    def _remember(self, refusal: GatewayError) -> None:
        """Of several refusals the one that ends soonest tells a caller when to come back."""
        if self._refusal is None or (refusal.retry_after or 0.0) < (self._refusal.retry_after or 0.0):
            self._refusal = refusal

    def _end(self) -> GatewayError:
        """What the last try failed with, or else why none could be made."""
        end = self._failure or self._refusal or self._without_room or self._unsupported
        assert end is not None, "a plan without options"
        return end


def _is_second_best(option: Option) -> bool:
    """It would have to be waited for, or was found unreachable."""
    return option.state.places.full() or option.state.record.unreachable
