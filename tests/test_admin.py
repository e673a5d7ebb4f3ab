"""The admin listener: metrics that add up, health, the status data, /debug only where it is wanted."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from headgate import v1 as pb
from prometheus_client.parser import text_string_to_metric_families

from headgate_server.identity.keys import new_key
from headgate_server.telemetry import names
from headgate_server.telemetry.headroom import HEADROOM_SECONDS, Headroom
from headgate_server.telemetry.names import Name
from tests.conftest import Serve
from tests.headgate_process import Headgate, ask, configured, eventually, failing
from tests.identity.callers import PEPPER, bearer, hashed, static_key
from tests.tools import headgate_serve
from tests.vendor import Exchange, Vendor, answers_text, completion, sse, text_chunk

DEMO = {
    "demo": {
        "adapter": "mock",
        "models": ["echo", "lorem"],
        "catalog": {"echo": {"prices": {"input": "3", "output": "15"}}},
    }
}
OF_TLS = {names.CERTIFICATE_CHANGED.name, names.CERTIFICATE_REFUSALS.name}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def get(headgate: Headgate, path: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    """Status, body and headers of an admin path."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{headgate.application.admin_address}{path}", headers=headers) as answer:
            return answer.status, await answer.text(), {name.lower(): value for name, value in answer.headers.items()}


async def scrape(headgate: Headgate) -> Samples:
    """Every sample by name and labels."""
    _, text, _ = await get(headgate, "/metrics")
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of all samples of that name with these labels."""
    return sum(
        value for (sample, own), value in samples.items() if sample == name and labels.items() <= dict(own).items()
    )


async def test_calls_attempts_tokens_and_cost_add_up(serve: Serve) -> None:
    """Three answers and one failure: each counted once, with its method, code, model and reason."""
    async with serve(providers=DEMO) as headgate:
        for _ in range(2):
            await headgate.stub.Generate(ask("demo/echo", "one two three"), timeout=10)
        events = [event async for event in headgate.stub.StreamGenerate(ask("demo/echo", "one two"), timeout=10)]
        await failing(headgate.stub.Generate(ask("demo/nowhere"), timeout=10))
        await failing(headgate.stub.Generate(ask("nope"), timeout=10))
        samples = await scrape(headgate)
    duration = "rpc_server_call_duration_seconds_count"
    assert total(samples, duration, rpc_method="Generate", rpc_response_status_code="OK") == 2
    assert total(samples, duration, rpc_method="StreamGenerate", rpc_response_status_code="OK") == 1
    assert total(samples, "headgate_call_errors_total", reason="MODEL_NOT_FOUND") == 1
    assert total(samples, "headgate_attempts_total", outcome="ok", provider="demo", model="echo", cause="first") == 3
    assert total(samples, "headgate_attempts_total", outcome="failed", model="other") == 1
    assert total(samples, "headgate_call_overhead_seconds_count") == 4
    assert total(samples, "gen_ai_client_operation_time_to_first_chunk_seconds_count") == 1
    usage = events[-1].generation_end.usage
    tokens = total(samples, "gen_ai_client_token_usage_sum", gen_ai_token_type="output", gen_ai_request_model="echo")
    assert tokens == 2 * 3 + usage.output_tokens
    cost = total(samples, "headgate_cost_total", currency="USD", model="echo")
    assert cost == pytest.approx(
        (
            total(samples, "gen_ai_client_token_usage_sum", gen_ai_token_type="input", gen_ai_request_model="echo") * 3
            + tokens * 15
        )
        / 1e6
    )


async def test_overhead_is_what_the_vendor_did_not_take(serve: Serve) -> None:
    """A vendor that takes 300 ms leaves the gateway's own time far below that."""

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.3)
        await answers_text(exchange)

    async with Vendor(slow) as vendor:
        async with serve(providers={"v": {"adapter": "openai", "base_url": vendor.base_url}}) as headgate:
            await headgate.stub.Generate(ask("v/m"), timeout=10)
            samples = await scrape(headgate)
    assert total(samples, "rpc_server_call_duration_seconds_sum") >= 0.3
    assert total(samples, "headgate_call_overhead_seconds_sum") < 0.2


async def test_retries_fallbacks_and_hedges_are_told_apart(serve: Serve) -> None:
    """The cause of an attempt is a label."""
    broken = {"adapter": "mock", "models": ["echo"], "mock": {"failures": [{"status": 500, "times": 2}]}}
    slow = {"adapter": "mock", "models": ["echo"], "mock": {"delay": 0.3}}
    good = {"adapter": "mock", "models": ["echo"]}
    targets = {name: {"provider": name, "model": "echo"} for name in ("broken", "slow", "good")}
    models = {
        "again": {"targets": [targets["broken"]]},
        "hedged": {"targets": [targets["slow"], targets["good"]], "hedge_delay": 0.02},
        "moving": {"targets": [targets["broken"], targets["good"]]},
    }
    routing = {"retry": {"base_delay": 0.01}}
    providers = {"broken": broken, "slow": slow, "good": good}
    async with serve(providers=providers, models=models, routing=routing) as headgate:
        for model in ("moving", "again", "hedged"):
            await headgate.stub.Generate(ask(model), timeout=10)
        samples = await scrape(headgate)
    assert total(samples, "headgate_attempts_total", cause="fallback", provider="good", outcome="ok") == 1
    assert total(samples, "headgate_attempts_total", cause="retry", provider="broken", outcome="ok") == 1
    assert total(samples, "headgate_attempts_total", cause="hedge", provider="good", outcome="ok") == 1
    assert total(samples, "headgate_attempts_total", provider="slow", outcome="superseded") == 1


async def test_gauges_show_what_is_in_flight_and_which_circuit_is_open(serve: Serve) -> None:
    """In flight by method, target and connection; the circuit of a failing target."""

    async def stops(exchange: Exchange) -> None:
        if exchange.json["model"] == "bad":
            await exchange.answer(500, {})
            return
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("Hello")))
        await exchange.caller_closed.wait()

    async with Vendor(stops) as vendor:
        provider: dict[str, Any] = {"adapter": "openai", "base_url": vendor.base_url, "models": ["m", "bad"]}
        provider["breaker"] = {"consecutive_failures": 1, "open_for": 60}
        async with serve(providers={"v": provider}) as headgate:
            call = headgate.stub.StreamGenerate(ask("v/m"), timeout=10)
            await call.read()
            await failing(headgate.stub.Generate(ask("v/bad"), timeout=10))
            samples = await scrape(headgate)
            call.cancel()
            assert await headgate.idle()
            after = await scrape(headgate)
    assert total(samples, "headgate_calls_in_flight", rpc_method="StreamGenerate") == 1
    assert total(samples, "headgate_target_in_flight", provider="v", model="m") == 1
    assert total(samples, "headgate_connections_in_use", provider="v") == 1
    assert total(samples, "headgate_circuit_state", provider="v", model="bad") == 2
    assert total(samples, "headgate_circuit_state", provider="v", model="m") == 0
    for name in ("headgate_calls_in_flight", "headgate_target_in_flight", "headgate_connections_in_use"):
        assert total(after, name) == 0


@pytest.mark.timeout(300)
async def test_callers_cannot_make_series(serve: Serve) -> None:
    """Ten thousand models, as many labels and as many tenants add no series beyond those of one."""
    keys = [new_key() for _ in range(10_001)]
    tenants = {key.id: {"tenant": f"tenant-{key.id}", "hash": hashed(key)} for key in keys}
    auth = {"anonymous": False, "pepper": PEPPER, "keys": tenants}
    limits = {"rules": [{"unit": "requests", "limit": 100, "window": 60, "per": ["tenant", "model"]}]}
    async with serve(providers=DEMO, auth=auth, limits=limits, server={"max_concurrent_calls": 0}) as headgate:
        first = bearer(keys.pop().text)
        await failing(headgate.stub.Generate(ask("demo/first"), metadata=first, timeout=60))
        await failing(headgate.stub.Generate(ask("first"), metadata=first, timeout=60))
        before = set(await scrape(headgate))
        places = asyncio.Semaphore(64)

        async def odd(number: int) -> None:
            async with places:
                model = f"demo/model-{number}" if number % 2 else f"alias-{number}"
                request = ask(model, labels={f"label-{number}": "x"})
                metadata = bearer(keys[number].text)
                await failing(headgate.stub.Generate(request, metadata=metadata, timeout=60))

        await asyncio.gather(*(odd(number) for number in range(10_000)))
        samples = await scrape(headgate)
    assert set(samples) == before
    assert total(samples, "headgate_attempts_total", model="other") == 5001


async def test_metrics_hold_no_word_of_prompts_answers_or_keys(serve: Serve) -> None:
    """Whatever callers and vendors say, and whoever they are, in either format."""
    key, keys = static_key(tenant="CANARY-tenant")

    async def says_much(exchange: Exchange) -> None:
        if exchange.json["model"] == "CANARY-bad":
            words = f"CANARY {exchange.headers['authorization']}"
            await exchange.answer(400, {"error": {"message": words, "type": "CANARY", "code": "CANARY"}})
            return
        await exchange.answer(200, completion("CANARY answer"), {"x-request-id": "CANARY-id"})

    auth = {"anonymous": False, "pepper": PEPPER, "keys": keys, "caller_provider_keys": True}
    limits = {"rules": [{"unit": "requests", "limit": 100, "window": 60, "per": ["tenant", "key", "model"]}]}
    async with Vendor(says_much) as vendor:
        provider = {"adapter": "openai", "base_url": vendor.base_url, "api_key": "sk-CANARY-of-the-vendor"}
        async with serve(providers={"v": provider}, auth=auth, limits=limits) as headgate:
            for model in ("v/m", "v/CANARY-bad", "CANARY-model"):
                request = ask(model, "CANARY prompt", labels={"CANARY": "CANARY"}, end_user_id="CANARY")
                for own in ((), (("x-provider-key-v", "CANARY-own"),)):
                    call = headgate.stub.Generate(request, metadata=(*bearer(key.text), *own), timeout=10)
                    await (call if model == "v/m" else failing(call))
            await failing(headgate.stub.Generate(ask("v/m"), metadata=bearer("hg_CANARY"), timeout=10))
            texts = [(await get(headgate, "/metrics", accept=form))[1] for form in ("", "application/openmetrics-text")]
    for text in texts:
        assert "headgate_attempts_total" in text
        assert "CANARY" not in text
        assert key.id not in text
        assert not re.search(r"[{,](tenant|key_id|label)", text)


async def test_every_metric_that_is_named_is_served(serve: Serve, tmp_path: Path) -> None:
    """names.py is the list: nothing else has our prefixes, and all of it is there after some traffic."""
    rules = [{"unit": "requests", "limit": 100, "window": 60, "per": ["model"]}]
    limits = {"rules": rules, "budgets": [{"amount": 5, "period": "day"}]}
    ledger = {"url": f"sqlite:///{tmp_path}/ledger.db"}
    async with serve(providers=DEMO, limits=limits, ledger=ledger) as headgate:
        await headgate.stub.Generate(ask("demo/echo", "one two"), timeout=10)
        [event async for event in headgate.stub.StreamGenerate(ask("demo/echo", "one two three"), timeout=10)]
        await failing(headgate.stub.Generate(ask("nope"), timeout=10))
        await headgate.application.reload(configured(providers=DEMO, limits=limits))
        _, text, _ = await get(headgate, "/metrics")
    served = {family.name for family in text_string_to_metric_families(text) if family.samples}
    expected = {name.name for name in vars(names).values() if isinstance(name, Name)}
    ours = {name for name in served if re.match(r"(headgate|gen_ai|rpc)_", name) and not name.endswith("_created")}
    assert ours == expected - OF_TLS


async def test_limits_tell_their_decisions_and_their_headroom(serve: Serve) -> None:
    """By the rule's own name, which callers have no influence on."""
    rules = [{"unit": "requests", "limit": 4, "window": 60, "per": ["model"]}, {"unit": "concurrency", "limit": 9}]
    async with serve(providers=DEMO, limits={"rules": rules}) as headgate:
        for _ in range(4):
            await headgate.stub.Generate(ask("demo/echo"), timeout=10)
        await failing(headgate.stub.Generate(ask("demo/echo"), timeout=10))
        samples = await scrape(headgate)
    rule = "requests in 60 s per model"
    assert total(samples, "headgate_limit_decisions_total", rule=rule, decision="allowed") == 4
    assert total(samples, "headgate_limit_decisions_total", rule=rule, decision="refused") == 1
    assert total(samples, "headgate_limit_headroom_ratio", rule=rule) == 0
    assert total(samples, "headgate_limit_headroom_ratio", rule="concurrency") == 1
    assert total(samples, "headgate_limiter_degraded") == 0


async def test_headroom_of_what_nobody_asks_for_is_not_shown() -> None:
    """Its counters have room again by then; of one that is asked, the least of the last seconds is shown."""
    now = 100.0
    headroom = Headroom(lambda: now)

    def shown() -> list[float]:
        (family,) = headroom.collect()
        return [sample.value for sample in family.samples]

    headroom.record("rule", 0.1, 100.0)
    headroom.record("rule", 0.9, 114.0)
    now = 114.0 + HEADROOM_SECONDS
    assert shown() == [0.1]
    headroom.record("rule", 0.8, now)
    assert shown() == [0.8]
    now += HEADROOM_SECONDS + 0.1
    assert shown() == []


async def test_rules_that_differ_in_what_they_are_for_have_their_own_names(serve: Serve) -> None:
    """Or one would hide behind the other."""
    rule = {"unit": "requests", "limit": 4, "window": 60, "per": ["model"]}
    rules = [{**rule, "only": {"model": ["demo/e*"]}}, {**rule, "only": {"model": ["demo/echo"]}, "limit": 8}]
    async with serve(providers=DEMO, limits={"rules": rules}) as headgate:
        await headgate.stub.Generate(ask("demo/echo"), timeout=10)
        samples = await scrape(headgate)
    assert {dict(labels)["rule"] for (name, labels) in samples if name == "headgate_limit_headroom_ratio"} == {
        "requests in 60 s per model, model=demo/e*",
        "requests in 60 s per model, model=demo/echo",
    }


async def test_vendors_have_the_names_that_spans_give_them(serve: Serve) -> None:
    """OpenTelemetry's, in metrics that are OpenTelemetry's; `provider` is the operator's own name."""
    async with serve(providers={"mine": {"adapter": "mock", "issuer": "xai"}}) as headgate:
        await headgate.stub.Generate(ask("mine/echo"), timeout=10)
        samples = await scrape(headgate)
    assert total(samples, "gen_ai_client_operation_duration_seconds_count", gen_ai_provider_name="x_ai") == 1
    assert total(samples, "headgate_attempts_total", provider="mine") == 1


async def test_a_caller_who_leaves_is_no_failure(serve: Serve) -> None:
    """The status page counts the call, and shows no error."""

    async def silent(exchange: Exchange) -> None:
        await exchange.caller_closed.wait()

    async with Vendor(silent) as vendor:
        async with serve(providers={"v": {"adapter": "openai", "base_url": vendor.base_url}}) as headgate:
            call = headgate.stub.StreamGenerate(ask("v/m"), timeout=10)
            assert await eventually(lambda: vendor.exchanges)
            call.cancel()
            assert await headgate.idle()
            seen: dict[str, Any] = {"calls_per_second": []}
            async with asyncio.timeout(5):
                while not sum(seen["calls_per_second"]):  # a second is shown when it is over
                    seen = json.loads((await get(headgate, "/status.json"))[1])
    assert (sum(seen["calls_per_second"]), sum(seen["errors_per_second"]), seen["failures"]) == (1, 0, [])


async def test_openmetrics_is_served_to_who_asks_for_it(demo: Headgate) -> None:
    """Exemplars need it."""
    _, text, headers = await get(demo, "/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


async def test_readiness_follows_the_drain_and_health_does_not(serve: Serve) -> None:
    """/readyz turns at once, /healthz stays, metrics go on until the end."""
    async with serve(providers=DEMO) as headgate:
        assert (await get(headgate, "/readyz"))[:2] == (200, "ready\n")
        hurry = asyncio.Event()
        draining = asyncio.create_task(headgate.application.stop(delay=30, grace=30, hurry=hurry))
        async with asyncio.timeout(5):
            while (await get(headgate, "/readyz"))[0] != 503:
                await asyncio.sleep(0.01)
        assert (await get(headgate, "/healthz"))[:2] == (200, "ok\n")
        assert total(await scrape(headgate), "headgate_draining") == 1
        hurry.set()
        await draining


async def test_the_status_data_is_what_the_page_needs(serve: Serve) -> None:
    """Providers with state and averages, cost by model, the last errors without a word of prompt or vendor."""
    async with serve(providers=DEMO, models={"fast": {"targets": [{"provider": "demo", "model": "echo"}]}}) as headgate:
        await headgate.stub.Generate(ask("fast", "canary-prompt"), timeout=10)
        await failing(headgate.stub.Generate(ask("nope", "canary-prompt"), timeout=10))
        _, text, _ = await get(headgate, "/status.json")
    seen: dict[str, Any] = json.loads(text)
    (provider,) = seen["providers"]
    assert (provider["name"], provider["state"], provider["circuit"]) == ("demo", "serving", "closed")
    assert (provider["success_rate"], provider["total_calls"]) == (1.0, 1)
    (model,) = seen["models"]
    assert (model["model"], model["calls"], model["currency"]) == ("echo", 1, "USD")
    assert model["cost_nanos"] > 0
    (failure,) = seen["failures"]
    assert (failure["reason"], failure["code"], failure["model"]) == ("MODEL_NOT_FOUND", "NOT_FOUND", "nope")
    assert "canary" not in text
    assert len(seen["calls_per_second"]) == len(seen["errors_per_second"]) == 60


async def test_debug_is_served_only_where_it_is_wanted_and_without_secrets(serve: Serve) -> None:
    """Tasks, targets, pools and the configuration, masked."""
    secret = {
        "v": {
            "adapter": "openai",
            "base_url": "http://127.0.0.1:1/v1",
            "api_key": "sk-canary",
            "headers": {"x-a": "canary"},
        }
    }
    async with serve(providers=secret) as headgate:
        assert (await get(headgate, "/debug/configuration"))[0] == 404
    async with serve(providers=secret, admin={"debug": True}) as headgate:
        await failing(headgate.stub.Generate(ask("v/m"), timeout=10))
        shown = {name: await get(headgate, f"/debug/{name}") for name in ("tasks", "targets", "pools", "configuration")}
    assert all(status == 200 for status, _, _ in shown.values())
    assert json.loads(shown["tasks"][1])["count"] > 1
    assert json.loads(shown["targets"][1])["v"][0]["model"] == "m"
    assert json.loads(shown["pools"][1])["v"] == {"used": 0, "limit": 256, "queued": 0}
    assert json.loads(shown["configuration"][1])["providers"]["v"]["base_url"] == "http://127.0.0.1:1/v1"
    assert "canary" not in "".join(text for _, text, _ in shown.values())


async def test_the_listener_reads_nothing_from_callers(demo: Headgate) -> None:
    """Other methods and paths are refused; every answer forbids framing, sniffing and foreign scripts."""
    async with aiohttp.ClientSession() as session:
        async with session.post(f"http://{demo.application.admin_address}/metrics", data=b"x") as answer:
            assert answer.status == 405
    assert (await get(demo, "/nope"))[0] == 404
    for path in ("/", "/status.json", "/nope"):
        _, _, headers = await get(demo, path)
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9464", "127.0.0.1.evil.example", "localhost.evil", "[", ":1"]
)
async def test_a_host_that_is_not_ours_is_refused(demo: Headgate, host: str) -> None:
    """DNS rebinding: a page of another site would read the status as if it were its own."""
    for path in ("/", "/status.json", "/metrics", "/nope"):
        status, text, headers = await get(demo, path, host=host)
        assert (status, "headgate" in text) == (421, False)
        assert headers["x-content-type-options"] == "nosniff"


async def test_a_listener_for_other_machines_goes_by_any_name(serve: Serve) -> None:
    """Prometheus scrapes it by its service's name; who can reach it needs no rebinding."""
    async with serve(providers=DEMO, admin={"listen": "0.0.0.0:0"}) as headgate:
        assert (await get(headgate, "/readyz", host="headgate.monitoring.svc:9464"))[:2] == (200, "ready\n")


@pytest.mark.parametrize("host", ["10.1.2.3:9464", "[::1]:9464", "localhost", "LOCALHOST:9464"])
async def test_probes_and_people_are_answered_by_address(demo: Headgate, host: str) -> None:
    """Kubernetes and Prometheus ask by the address of the pod."""
    assert (await get(demo, "/readyz", host=host))[0] == 200


async def test_the_host_that_is_configured_is_answered(serve: Serve) -> None:
    """The one of admin.listen, whatever it is called."""
    async with serve(providers=DEMO, admin={"listen": f"{socket.gethostname()}:0"}) as headgate:
        assert (await get(headgate, "/readyz", host=f"{socket.gethostname()}:9464"))[0] == 200


async def test_an_admin_port_that_is_taken_stops_the_start(serve: Serve) -> None:
    """With a line that names it; nothing is served half, and nothing is left running."""
    async with serve(providers=DEMO) as headgate:
        address, others = headgate.application.admin_address, asyncio.all_tasks()
        with pytest.raises(OSError, match=rf"cannot listen on {address} \(admin\)"):
            async with serve(providers=DEMO, admin={"listen": address}):
                pass
        await eventually(lambda: asyncio.all_tasks() <= others)


async def test_it_can_be_switched_off(serve: Serve) -> None:
    """Then nothing listens."""
    async with serve(providers=DEMO, admin={"enabled": False}) as headgate:
        assert headgate.application.admin_address == ""
        assert (await headgate.stub.Generate(ask("demo/echo"), timeout=10)).candidates


async def test_the_command_tells_where_it_is() -> None:
    """`headgate serve` prints the address, and HEADGATE_ADMIN_PORT moves it."""
    async with headgate_serve() as headgate:
        (line,) = [line for line in headgate.welcome if "Status page" in line]
        address = re.findall(r"http://(127\.0\.0\.1:\d+)/", line)[0]
        async with aiohttp.ClientSession() as session, session.get(f"http://{address}/readyz") as answer:
            assert answer.status == 200
        async with grpc.aio.insecure_channel(headgate.address) as channel:
            await pb.InferenceServiceStub(channel).Generate(ask("echo"), timeout=10)


async def test_a_refused_configuration_is_counted(serve: Serve) -> None:
    """An alert can tell that a reload failed."""
    async with serve(providers=DEMO) as headgate:
        headgate.application.reload_refused()
        await headgate.application.reload(configured(providers=DEMO))
        samples = await scrape(headgate)
    assert total(samples, "headgate_config_reloads_total", result="refused") == 1
    assert total(samples, "headgate_config_reloads_total", result="applied") == 1
