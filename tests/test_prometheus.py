"""A real Prometheus beside a real Headgate: rules that it accepts, dashboards whose every query has data."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from headgate import v1 as pb

from headgate_server.telemetry import names
from headgate_server.telemetry.names import Name
from tests.conftest import Serve
from tests.headgate_process import Headgate, ask, failing
from tests.tools import ROOT, program, run
from tests.vendor import Exchange, Vendor, answers_text, sse, text_chunk

DASHBOARD = ROOT / "deploy" / "grafana" / "headgate.json"
RULES = ROOT / "deploy" / "prometheus" / "headgate.rules.yaml"
RULES_TEST = ROOT / "tests" / "headgate.rules.test.yaml"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text("utf-8")
WINDOW = "15s"
PROCESS_METRICS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_max_fds"}
PRICED = {"m": {"prices": {"input": "3", "output": "15"}}}


def dashboard_queries() -> list[str]:
    """Every query of every panel, for all jobs and a short window."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert len(found) > 40
    return [query.replace("$__rate_interval", WINDOW).replace("$job", ".*") for query in found]


def rules() -> list[dict[str, Any]]:
    """Every rule of every group."""
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


async def test_promtool_accepts_the_rules() -> None:
    """Syntax, labels and templates."""
    checked = await run(program("promtool", "prometheus"), "check", "rules", str(RULES))
    assert checked.code == 0, checked.stderr
    assert "SUCCESS" in checked.stdout


async def test_alerts_fire_when_they_should() -> None:
    """At the first event of a kind too, and for nothing that callers do themselves."""
    tested = await run(program("promtool", "prometheus"), "test", "rules", str(RULES_TEST))
    assert tested.code == 0, tested.stdout + tested.stderr


async def test_what_alerts_wait_for_begins_at_zero(demo: Headgate) -> None:
    """Prometheus sees no increase in a series that is born with its first event."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{demo.application.admin_address}/metrics") as answer:
            served = (await answer.text()).splitlines()
    assert 'headgate_config_reloads_total{result="refused"} 0.0' in served
    for method in ("Generate", "StreamGenerate", "Embed", "ListModels", "Health"):
        assert f'headgate_call_errors_total{{reason="INTERNAL",rpc_method="{method}"}} 0.0' in served


def test_every_alert_has_its_runbook() -> None:
    """An alert links to a heading of docs/operations.md, and no heading is left without alert."""
    alerts = [rule["alert"] for rule in rules() if "alert" in rule]
    for rule in rules():
        if "alert" in rule:
            assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
            assert rule["labels"]["severity"] in ("page", "ticket")
    assert re.findall(r"^### (\w+)$", OPERATIONS, re.MULTILINE) == alerts


def test_dashboard_and_rules_name_only_metrics_that_exist() -> None:
    """And every metric of ours is on the dashboard."""
    ours = {name.name for name in vars(names).values() if isinstance(name, Name)}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    queries = [*dashboard_queries(), *(rule["expr"] for rule in rules())]
    used = set(re.findall(r"\b(?:headgate|gen_ai|rpc|process)_\w+(?=[{\[)\s]|$)", " ".join(queries)))
    used = {
        re.sub(r"_(bucket|count|sum|total)$", "", name) if name not in ours | PROCESS_METRICS else name for name in used
    }
    labels = {label for name in vars(names).values() if isinstance(name, Name) for label in name.labels}
    assert used - labels <= ours | PROCESS_METRICS
    assert ours <= used
    assert set(re.findall(r"headgate:\w+:\w+", " ".join(queries))) <= recorded


async def vendor_of_all_sorts(exchange: Exchange) -> None:
    """Answers, fails, limits, or breaks off, by the model that is asked."""
    body = exchange.json if exchange.method == "POST" else {}
    match body.get("model"):
        case "bad":
            await exchange.answer(500, {"error": {"type": "server_error"}})
        case "limited":
            await exchange.answer(429, {"error": {"type": "rate_limit"}}, {"retry-after": "20"})
        case "breaking":
            await exchange.begin()
            await exchange.chunk(sse(text_chunk("Hello")))
            await asyncio.sleep(0.02)
            exchange.reset()
        case _:
            await answers_text(exchange)


async def mixed_traffic(headgate: Headgate) -> None:
    """Plain and streamed calls, embeddings, failures, fallbacks, cancels; a few of each."""
    for _ in range(3):
        await headgate.stub.Generate(ask("v/m"), timeout=10)
        [event async for event in headgate.stub.StreamGenerate(ask("moving"), timeout=10)]
        await headgate.stub.Embed(pb.EmbedRequest(model="demo/embed", inputs=[pb.EmbedInput(text="a")]), timeout=10)
        for model in ("v/bad", "v/limited", "nope"):
            await failing(headgate.stub.Generate(ask(model), timeout=0.5))
        await failing(headgate.stub.StreamGenerate(ask("v/breaking"), timeout=10))
        call = headgate.stub.StreamGenerate(ask("v/m"), timeout=10)
        await call.read()
        call.cancel()


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[str]:
    """Prometheus with our rules, scraping that address every second; its own address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "headgate", "static_configs": [{"targets": [target]}]}],
    }
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    process = await asyncio.create_subprocess_exec(
        program("prometheus", "prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield address
    finally:
        process.terminate()
        await process.wait()


async def asked(session: aiohttp.ClientSession, address: str, path: str, **query: str) -> Any:
    """What Prometheus answers, or None while it cannot."""
    try:
        async with session.get(f"http://{address}/api/v1/{path}", params=query) as answer:
            return (await answer.json())["data"] if answer.status == 200 else None
    except aiohttp.ClientError:
        return None


async def test_every_query_of_the_dashboard_has_data(serve: Serve, tmp_path: Path) -> None:
    """Under mixed traffic, scraped by a real Prometheus, no panel is empty, and every rule evaluates."""
    async with Vendor(vendor_of_all_sorts) as vendor:
        provider = {
            "adapter": "openai",
            "base_url": vendor.base_url,
            "models": ["bad", "limited", "breaking"],
            "catalog": PRICED,
        }
        models = {"moving": {"targets": [{"provider": "v", "model": "bad"}, {"provider": "v", "model": "m"}]}}
        providers = {"v": provider, "demo": {"adapter": "mock", "models": ["embed"]}}
        limits = {
            "rules": [{"unit": "requests", "limit": 10_000, "window": 60, "per": ["model"]}],
            "budgets": [{"amount": 1000, "period": "day", "per": ["tenant"]}],
        }
        ledger = {"url": f"sqlite:///{tmp_path}/ledger.db"}
        async with serve(providers=providers, models=models, limits=limits, ledger=ledger) as headgate:
            async with prometheus(tmp_path, headgate.application.admin_address) as address:
                async with aiohttp.ClientSession() as session, asyncio.timeout(90):
                    empty = dashboard_queries()
                    while empty:
                        await mixed_traffic(headgate)
                        await asyncio.sleep(1)
                        results = {query: await asked(session, address, "query", query=query) for query in empty}
                        empty = [query for query, data in results.items() if not data or not data["result"]]
                    groups = (await asked(session, address, "rules"))["groups"]
    evaluated = [rule for group in groups for rule in group["rules"]]
    assert len(evaluated) == len(rules())
    assert [rule["lastError"] for rule in evaluated if rule.get("lastError")] == []


@pytest.mark.parametrize("panel", ["Circuits", "Calls by method"])
def test_the_dashboard_is_for_any_prometheus(panel: str) -> None:
    """Its data source and its job are variables."""
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    (found,) = [candidate for candidate in dashboard["panels"] if candidate.get("title") == panel]
    assert found["datasource"]["uid"] == "${datasource}"
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "job"]
