"""What breaks the contract is refused before permissions, limits and the log have anything to do with it."""

from __future__ import annotations

import pytest
from headgate import v1 as pb

from headgate_server.redaction import MASK
from headgate_server.telemetry import masking
from tests.conftest import LogLines, Serve
from tests.headgate_process import ask, failing
from tests.identity.callers import MOCK, PEPPER, bearer, static_key

FLOOD = {f"{number}{'n' * 300}": "v" * 100_000 for number in range(40)}
ONE_A_MINUTE = {"rules": [{"unit": "requests", "limit": 1, "window": 60}]}


async def test_a_bad_request_is_refused_before_permissions(serve: Serve, logged: LogLines) -> None:
    """INVALID_REQUEST, and not what it asks for, and a line of bounded size."""
    key, keys = static_key(allowed_models=["nothing"])
    async with serve(providers=MOCK, auth={"anonymous": False, "pepper": PEPPER, "keys": keys}) as headgate:
        request = ask("demo/echo", labels=FLOOD)
        failure = await failing(headgate.stub.Generate(request, metadata=bearer(key.text)))
    assert failure.reason == "INVALID_REQUEST"
    (line,) = logged.calls
    assert len(str(line)) < 10_000
    assert len(line["labels"]) == 16


@pytest.mark.parametrize(
    "request_of_no_size",
    [ask("m" * 100_000), ask("demo/echo", routing=pb.RoutingPolicy(fallbacks=["m" * 100_000]))],
    ids=["model", "fallback"],
)
async def test_a_bad_request_takes_nothing_of_a_limit(serve: Serve, request_of_no_size: pb.GenerateRequest) -> None:
    """Names of any length are neither counted nor kept."""
    async with serve(providers=MOCK, limits=ONE_A_MINUTE) as headgate:
        for _ in range(3):
            failure = await failing(headgate.stub.Generate(request_of_no_size))
            assert failure.reason == "INVALID_REQUEST"
        await headgate.stub.Generate(ask("demo/echo"))
        assert (await failing(headgate.stub.Generate(ask("demo/echo")))).reason == "RATE_LIMITED"


async def test_embeddings_and_pages_are_checked_too(serve: Serve) -> None:
    """Each method by its own rules."""
    async with serve(providers=MOCK, limits=ONE_A_MINUTE) as headgate:
        assert (await failing(headgate.stub.Embed(pb.EmbedRequest(model="demo/embed")))).fields == ["inputs"]
        assert (await failing(headgate.stub.ListModels(pb.ListModelsRequest(page_size=-1)))).fields == ["page_size"]


def test_names_of_any_length_are_masked_and_not_remembered() -> None:
    """A log line's names may be a caller's: long ones are looked at each time."""
    long = "n" * 100_000
    assert masking.mask_fields({long: "v", f"{long}_token": "s"}) == {long: "v", f"{long}_token": MASK}
    masking.mask_fields({long: "v"})
    assert all(len(str(name)) <= masking.MAX_NAME for name in masking._plain_names)
