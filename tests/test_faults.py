"""Every fault of tests/faults.py through the front door: what a caller is told, what is on record, what stays open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import trustme
from headgate import v1 as pb

from tests.conftest import LogLines, Serve
from tests.faults import FAULTS, Fault, answers, vendor_with
from tests.fold import check_invariants, fold
from tests.headgate_process import Headgate, ask, eventually, failure
from tests.vendor import Vendor

RPCS = ("Generate", "StreamGenerate", "Embed")
STRATEGIES = ("priority", "weighted", "least-busy", "latency", "cost")
PATIENCE_SECONDS = 4.0
"""How much longer than its own time anything may take on a busy machine."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a caller got for one call."""

    code: str
    reason: str = ""
    facts: Mapping[str, str] | None = None
    retry_after: float | None = None
    text: str = ""
    seconds: float = 0.0


async def told(headgate: Headgate, rpc: str, model: str) -> Told:
    """Makes the call and says what came of it; `text` is the answer's, or for Embed its matrix as a text."""
    began = time.monotonic()
    try:
        text = await _answer(headgate, rpc, model)
    except grpc.aio.AioRpcError as error:
        failed = failure(error)
        retry = failed.details.get("RetryInfo")
        retry_after = retry.retry_delay.ToMilliseconds() / 1000 if retry else None
        return Told(failed.code.name, failed.reason, failed.facts, retry_after, seconds=time.monotonic() - began)
    return Told("OK", text=text, seconds=time.monotonic() - began)


async def _answer(headgate: Headgate, rpc: str, model: str) -> str:
    if rpc == "Embed":
        embedded = await headgate.stub.Embed(pb.EmbedRequest(model=model, inputs=[pb.EmbedInput(text="Hi")]))
        return f"{embedded.rows} x {embedded.dimensions}"
    if rpc == "Generate":
        answer = await headgate.stub.Generate(ask(model))
    else:
        events = [event async for event in headgate.stub.StreamGenerate(ask(model))]
        check_invariants(events)
        answer = fold(events)
    return answer.candidates[0].message.parts[0].text


def healthy_text(rpc: str) -> str:
    """What a healthy vendor's answer is told as."""
    return "1 x 2" if rpc == "Embed" else "Hello there"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One authority to trust: reading the system's takes 50 ms for each provider."""
    file = tmp_path_factory.mktemp("authority") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    return file


def at(vendor: Vendor, authority: Path, **settings: Any) -> dict[str, Any]:
    """A provider of OpenAI's wire at this vendor, which is not left alone however often it fails."""
    never = {"consecutive_failures": 0}
    return {"adapter": "openai", "base_url": vendor.base_url, "breaker": never, "ca_file": authority, **settings}


def recorded(line: Mapping[str, Any]) -> list[tuple[str, str, str, int]]:
    """The attempts of a line of the access log."""
    return [
        (attempt["provider"], attempt["outcome"], attempt.get("reason", ""), attempt.get("http_status", 0))
        for attempt in line["attempts"]
    ]


def record_of(fault: Fault, provider: str) -> tuple[str, str, str, int]:
    """What an attempt at that provider leaves behind."""
    return provider, fault.outcome, fault.reason, fault.http_status


def check_failure(heard: Told, fault: Fault, rpc: str) -> None:
    """Asserts that the caller was told the truth."""
    assert (heard.code, heard.reason) == (fault.code, fault.reason)
    if fault.reason:
        facts = heard.facts or {}
        assert (facts["provider"], facts["model"]) == ("v", "m")
        assert "vendor's own words" not in str(heard)
        assert heard.retry_after == (fault.waits or None)
        if fault.by_clock:
            assert facts["phase"] == ("first_token" if rpc == "StreamGenerate" else "total")
    else:
        assert heard.text == healthy_text(rpc)


async def check_closed(vendor: Vendor, fault: Fault) -> None:
    """Asserts that Headgate closed every connection on which the fault would go on."""
    if fault.cuts_off:
        async with asyncio.timeout(PATIENCE_SECONDS):
            for exchange in vendor.exchanges:
                await exchange.caller_closed.wait()


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_a_lone_target_that_is_asked_once_fails_truthfully(
    serve: Serve, logged: LogLines, authority: Path, transport: str, fault: Fault, rpc: str
) -> None:
    """Code, reason and clock are the contract's; one attempt is on record, and it took no longer than its clock."""
    async with vendor_with(fault) as vendor:
        provider = at(vendor, authority, clocks=fault.clocks, transport=transport)
        async with serve(providers={"v": provider}) as headgate:
            heard = await told(headgate, rpc, "v/m")
            await check_closed(vendor, fault)
            assert await headgate.idle()
        await eventually(lambda: vendor.open_connections == 0)
    check_failure(heard, fault, rpc)
    assert fault.lasts <= heard.seconds < fault.lasts + PATIENCE_SECONDS
    (line,) = logged.calls
    assert (line["code"], line.get("reason", "")) == (fault.code, fault.reason)
    assert recorded(line) == [record_of(fault, "v")]
    assert logged.errors == []


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_a_lone_target_that_may_be_asked_again_recovers(
    serve: Serve, logged: LogLines, authority: Path, fault: Fault, rpc: str
) -> None:
    """What is worth a second try gets one, not before the vendor wants it; everything else fails at the first."""
    routing = {"retry": {"max_attempts": 2, "base_delay": 0.02}}
    async with vendor_with(fault, times=1) as vendor:
        async with serve(providers={"v": at(vendor, authority, clocks=fault.clocks)}, routing=routing) as headgate:
            heard = await told(headgate, rpc, "v/m")
            await check_closed(vendor, fault)
            assert await headgate.idle()
        await eventually(lambda: vendor.open_connections == 0)
    (line,) = logged.calls
    if not fault.asked_again or not fault.reason:
        check_failure(heard, fault, rpc)
        assert recorded(line) == [record_of(fault, "v")]
    elif not fault.recovers:
        check_failure(heard, fault, rpc)
        assert recorded(line) == [record_of(fault, "v")] * 2
    else:
        assert (heard.code, heard.text) == ("OK", healthy_text(rpc))
        assert recorded(line) == [record_of(fault, "v"), ("v", "OK", "", 200)]
        assert heard.seconds >= fault.waits
    assert heard.seconds < fault.lasts + fault.waits + PATIENCE_SECONDS
    assert logged.errors == []


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_beside_a_healthy_target_callers_see_no_fault(
    serve: Serve, logged: LogLines, authority: Path, fault: Fault, rpc: str
) -> None:
    """By every strategy the faulty target goes first here, fails, is on record, and the healthy one answers at once."""
    async with vendor_with(fault) as faulty, Vendor(answers) as healthy:
        providers, models = {}, {}
        for strategy in STRATEGIES:  # each with providers of its own: strategies learn from traffic
            providers[f"{strategy}-v"] = at(faulty, authority, clocks=fault.clocks, catalog=priced(1))
            providers[f"{strategy}-w"] = at(healthy, authority, catalog=priced(2))
            models[strategy] = {"strategy": strategy, "targets": [target(strategy, "v", 1), target(strategy, "w", 0)]}
        async with serve(providers=providers, models=models) as headgate:
            heard = await asyncio.gather(*(told(headgate, rpc, strategy) for strategy in STRATEGIES))
            await check_closed(faulty, fault)
            assert await headgate.idle()
        await eventually(lambda: faulty.open_connections == healthy.open_connections == 0)
    assert [(call.code, call.text) for call in heard] == [("OK", healthy_text(rpc))] * len(STRATEGIES)
    assert all(fault.lasts <= call.seconds < fault.lasts + PATIENCE_SECONDS for call in heard)
    lines = {line["model"]: recorded(line) for line in logged.calls}
    for strategy in STRATEGIES:
        first = record_of(fault, f"{strategy}-v")
        assert lines[strategy] == ([first, (f"{strategy}-w", "OK", "", 200)] if fault.reason else [first])
    assert logged.errors == []


def priced(amount: int) -> dict[str, Any]:
    """Model `m` at that price."""
    return {"m": {"prices": {"input": amount, "output": amount}}}


def target(strategy: str, provider: str, weight: int) -> dict[str, Any]:
    """Model `m` of one of the strategy's providers; of weight 0 only when all others fail."""
    return {"provider": f"{strategy}-{provider}", "model": "m", "weight": weight}
