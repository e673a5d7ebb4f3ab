"""Callers of every kind, some of whom leave at any moment, and what each of them was told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc.aio
from headgate import v1 as pb

from tests.fold import check_invariants, fold
from tests.headgate_process import Headgate, ask, failure

MODELS = ("first", "shared", "quickest", "idlest", "hedged", "alone")
RPCS = ("Generate", "Generate", "StreamGenerate", "StreamGenerate", "Embed")
TEXT = "Hello there"
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Plan:
    """One call to make. `deadline` and `leaves_after` are in seconds, None for none and for staying."""

    number: int
    rpc: str
    model: str
    inputs: int
    deadline: float | None
    leaves_after: float | None

    @property
    def request_id(self) -> str:
        return f"call-{self.number}"

    @property
    def text(self) -> str:
        """What vendors know the call by."""
        return f"call {self.number}."


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a caller was told; `wrong` is what should never be."""

    code: str
    reason: str = ""
    wrong: str = ""


def plans(seed: int, count: int, leaving_share: float) -> Iterator[Plan]:
    """So many calls, the same for the same seed."""
    chance = Random(seed)
    for number in range(count):
        moments = (0.0, chance.uniform(0, 0.1), chance.uniform(0, 0.5), chance.uniform(0, 1.5))
        yield Plan(
            number=number,
            rpc=chance.choice(RPCS),
            model=chance.choice(MODELS),
            inputs=chance.randint(1, 5),
            deadline=chance.choice((PATIENCE_SECONDS,) * 8 + (None, chance.uniform(0.01, 0.3))),
            leaves_after=chance.choice(moments) if chance.random() < leaving_share else None,
        )


async def call(headgate: Headgate, plan: Plan) -> Outcome:
    """Makes the call, and leaves it when its time has come."""
    rpc = getattr(headgate.stub, plan.rpc)
    made = rpc(_request(plan), timeout=plan.deadline, metadata=(("x-request-id", plan.request_id),))
    leaving = None
    if plan.leaves_after is not None:
        leaving = asyncio.get_running_loop().call_later(plan.leaves_after, made.cancel)
    events: list[pb.StreamGenerateResponse] = []
    try:
        return Outcome("OK", wrong=await _answer(made, plan, events))
    except grpc.aio.AioRpcError as error:
        failed = failure(error)
        return Outcome(failed.code.name, failed.reason, _check_broken(events, failed.code))
    except asyncio.CancelledError:
        if not made.cancelled() or plan.leaves_after is None:
            raise
        return Outcome("CANCELLED")
    finally:
        if leaving:
            leaving.cancel()


def _request(plan: Plan) -> pb.GenerateRequest | pb.EmbedRequest:
    if plan.rpc == "Embed":
        return pb.EmbedRequest(model=plan.model, inputs=[pb.EmbedInput(text=plan.text)] * plan.inputs)
    return ask(plan.model, plan.text)


async def _answer(made: Any, plan: Plan, events: list[pb.StreamGenerateResponse]) -> str:
    """Reads the answer; what is wrong with it, if anything is."""
    if plan.rpc == "Embed":
        rows = (await made).rows
        return "" if rows == plan.inputs else f"{rows} rows for {plan.inputs} inputs"
    if plan.rpc == "Generate":
        answer = await made
    else:
        async for event in made:
            events.append(event)  # noqa: PERF401  # what came before a failure counts
        check_invariants(events)
        answer = fold(events)
    text = _text(answer)
    return "" if text == TEXT else f"the text is {text!r}"


def _check_broken(events: Sequence[pb.StreamGenerateResponse], code: grpc.StatusCode) -> str:
    """What is wrong with what was delivered before a failure, if anything is."""
    if code is grpc.StatusCode.ABORTED:
        check_invariants(events, partial=True)
    elif events and code is not grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{code.name} after {len(events)} events"
    text = "".join(event.text_delta for event in events)
    return "" if TEXT.startswith(text) else f"the text begins {text!r}"


def _text(answer: pb.GenerateResponse) -> str:
    return "".join(part.text for candidate in answer.candidates for part in candidate.message.parts)
