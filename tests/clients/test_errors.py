"""Each failure is a class of its own, with all that its details say."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from grpc import StatusCode
from headgate import Answer, CallFailed, HeadgateError, InvalidOutput, StreamInterrupted, TooManyRounds, errors, user
from headgate.errors import Limit, RateLimited, Resource, ServerUnreachable, Violation
from headgate.testing import Reply, ScriptedServer

from tests.clients.both import connected

LEAVES = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, CallFailed)]
REASONS = [error for error in LEAVES if error.reason]
ANSWER = Answer(Reply(text="half").unary(), "r")
FACTS = {
    "provider": "openai",
    "model": "gpt",
    "attempt_count": "3",
    "phase": "idle",
    "http_status": "503",
    "provider_request_id": "req_1",
}


@pytest.mark.parametrize("method", ["generate", "stream", "embed"])
@pytest.mark.parametrize("error", REASONS, ids=lambda error: error.__name__)
async def test_a_reason_is_a_class_with_its_details(
    client: Any, server: ScriptedServer, error: type[CallFailed], method: str
) -> None:
    """Every reason of the table comes as its class, from plain calls and streams alike."""
    sent = error(
        "words for people",
        retry_after=1.25,
        violations=[Violation("messages[0]", "is empty")],
        limits=[Limit("tenant:acme", "60 requests a minute")],
        resource=Resource("file", "file-1"),
        details=FACTS,
    )
    server.script("bad", Reply(error=sent, pushback_ms=-1))
    called = getattr(client, method)("bad", "Hi", request_id="of-the-caller")
    with pytest.raises(CallFailed) as caught:
        await (called.final() if method == "stream" else called)
    failed = caught.value
    assert type(failed) is error
    assert (failed.code, failed.reason, failed.message) == (error.code, error.reason, "words for people")
    assert (failed.violations, failed.limits, failed.resource) == (sent.violations, sent.limits, sent.resource)
    assert (failed.retry_after, failed.request_id, failed.attempts) == (1.25, "of-the-caller", 3)
    assert (failed.provider, failed.model, failed.details) == ("openai", "gpt", FACTS)
    assert failed.partial is None
    assert "of-the-caller" in str(failed)
    assert error.__name__ in (errors.__doc__ or "")


async def test_the_reason_of_a_later_release_is_the_class_of_its_code(client: Any, server: ScriptedServer) -> None:
    """What is not known here is still sorted by its status, and keeps its own name."""
    later = CallFailed("later")
    later.code, later.reason = StatusCode.RESOURCE_EXHAUSTED, "OF_A_LATER_RELEASE"
    server.script("bad", Reply(error=later))
    with pytest.raises(errors.ResourceExhausted) as caught:
        await client.generate("bad", "Hi")
    assert caught.value.reason == "OF_A_LATER_RELEASE"


async def test_no_server_is_an_error_of_its_own(kind: str) -> None:
    """Where nobody listens there is no Headgate to blame."""
    async with connected(kind, "127.0.0.1:1") as client:
        with pytest.raises(ServerUnreachable):
            await client.generate("fast", "Hi", timeout=5)


@pytest.mark.parametrize(("retry_after", "retryable"), [(2.0, True), (None, False)])
def test_a_rate_limit_without_a_time_is_not_retryable(retry_after: float | None, retryable: bool) -> None:
    """A call that is larger than its limit will never fit."""
    assert RateLimited(retry_after=retry_after).retryable is retryable


def test_what_may_be_sent_again_is_what_the_contract_says() -> None:
    """Nobody could answer, or a limit will have room: nothing else is repeated unseen."""
    retryable = {error.reason for error in REASONS if error(retry_after=1).retryable}
    assert retryable == {
        "RATE_LIMITED",
        "PROVIDER_RATE_LIMITED",
        "GATEWAY_OVERLOADED",
        "GATEWAY_DRAINING",
        "PROVIDER_ERROR",
        "PROVIDER_UNREACHABLE",
        "PROVIDER_OVERLOADED",
        "PROVIDER_TIMEOUT",
        "PROVIDER_PROTOCOL_ERROR",
    }


@pytest.mark.parametrize(
    "error",
    [
        StreamInterrupted("broke", request_id="r", partial=ANSWER, details=FACTS),
        InvalidOutput("no JSON", ANSWER),
        TooManyRounds("no end", [user("Hi")]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_between_processes(error: HeadgateError) -> None:
    """With all that they carry, as task queues and process pools need."""
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert vars(copied) == vars(error)
