"""Hot reload: the next call is served by the new configuration, calls in flight by theirs; mistakes change nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import yaml
from headgate import v1 as pb

from headgate_server import reload
from headgate_server.config import load
from headgate_server.reload import LOOK_SECONDS, SETTLE_SECONDS, Reloader, named_files
from headgate_server.runtime import FIRST_SECONDS
from tests.conftest import LogLines
from tests.headgate_process import Headgate, ask, configured, eventually, failing, running
from tests.identity.callers import IdentityProvider, bearer, who
from tests.tools import headgate_serve
from tests.vendor import Exchange, Vendor, answers_text, at, finish_chunk, sse, text_chunk


async def test_calls_in_flight_finish_on_the_old_configuration() -> None:
    """A stream goes on at a provider that the new configuration lacks; its connections close when it has ended."""
    proceed = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("Hello")))
        await proceed.wait()
        await exchange.chunk(sse(text_chunk(" there")) + sse(finish_chunk()) + b"data: [DONE]\n\n")
        await exchange.end()

    async with Vendor(slow) as old, Vendor(answers_text) as new:
        async with running(providers={"old": at(old)}) as headgate:
            stream = aiter(headgate.stub.StreamGenerate(ask("old/m")))
            first = [await anext(stream) for _ in range(3)]
            await headgate.application.reload(configured(providers={"new": at(new)}))
            assert (await headgate.stub.Generate(ask("new/m"))).provider == "new"
            assert (await failing(headgate.stub.Generate(ask("old/m")))).reason == "MODEL_NOT_FOUND"
            assert old.open_connections == 1
            proceed.set()
            rest = [event async for event in stream]
            await eventually(lambda: old.open_connections == 0)
    assert "".join(event.text_delta for event in [*first, *rest]) == "Hello there"
    assert not rest[-1].generation_end.partial


@pytest.mark.parametrize("moment", ["in the stream", "between two targets"])
async def test_calls_in_flight_finish_across_two_reloads(logged: LogLines, moment: str) -> None:
    """What the first reload kept and the second replaced stays open for a call that began before both."""
    proceed = asyncio.Event()

    async def fails_late(exchange: Exchange) -> None:
        await proceed.wait()
        await exchange.answer(500, {})

    async def slow(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(sse(text_chunk("Hello")))
        await proceed.wait()
        await exchange.chunk(sse(text_chunk(" there")) + sse(finish_chunk()) + b"data: [DONE]\n\n")
        await exchange.end()

    async with Vendor(fails_late) as failing_one, Vendor(slow) as kept:
        providers = {"first": at(failing_one), "kept": at(kept, api_key="before")}
        models = {"m": {"targets": [{"provider": name, "model": "x"} for name in providers]}}
        async with running(providers=providers, models=models) as headgate:
            stream = headgate.stub.StreamGenerate(ask("kept/x" if moment == "in the stream" else "m"))
            reading = asyncio.ensure_future(_texts(stream))
            await (kept if moment == "in the stream" else failing_one).exchange()
            await headgate.application.reload(configured(providers=providers))
            providers["kept"] = at(kept, api_key="after")
            await headgate.application.reload(configured(providers=providers))
            await headgate.stub.Health(pb.HealthRequest())
            proceed.set()
            assert await reading == "Hello there"
            assert await headgate.idle()
        await eventually(lambda: kept.open_connections == 0)
    assert logged.errors == []


async def _texts(stream: Any) -> str:
    return "".join([event.text_delta async for event in stream])


async def test_a_provider_that_did_not_change_keeps_connections_and_record() -> None:
    """Pools, tokens and what was learnt of a provider outlive a reload; a changed key begins anew."""
    async with Vendor(answers_text) as kept, Vendor(answers_text) as changed:
        providers = {"kept": at(kept, api_key="k"), "changed": at(changed, api_key="before")}
        async with running(providers=providers) as headgate:
            for _ in range(2):
                for name in providers:
                    await headgate.stub.Generate(ask(f"{name}/m"))
                providers["changed"] = at(changed, api_key="after")
                await headgate.application.reload(configured(providers=providers))
            health = await headgate.stub.Health(pb.HealthRequest())
    assert kept.connections == 1
    assert changed.connections == 2
    assert [exchange.headers["authorization"] for exchange in changed.exchanges] == ["Bearer before", "Bearer after"]
    assert {provider.provider: provider.total_calls for provider in health.providers} == {"kept": 2, "changed": 1}


async def test_a_thousand_calls_across_ten_reloads_lose_nothing(logged: LogLines) -> None:
    """Under load every call has its answer, whichever of two providers its configuration named."""
    async with Vendor(answers_text) as first, Vendor(answers_text) as second:
        sections = [
            {"providers": {f"p{n}": at(vendor)}, "models": {"m": {"targets": [{"provider": f"p{n}", "model": "x"}]}}}
            for n, vendor in enumerate((first, second))
        ]
        async with running(**sections[0]) as headgate:
            calls = asyncio.Semaphore(16)

            async def one(number: int) -> str:
                async with calls:
                    if number % 2:
                        return (await headgate.stub.Generate(ask("m"))).provider
                    events = [event async for event in headgate.stub.StreamGenerate(ask("m"))]
                    assert not events[-1].generation_end.partial
                    return events[0].generation_start.provider

            asked = [asyncio.create_task(one(number)) for number in range(1000)]
            for number in range(10):
                await eventually(lambda n=number: sum(task.done() for task in asked) >= 90 * (n + 1), seconds=60)
                await headgate.application.reload(configured(**sections[(number + 1) % 2]))
            providers = await asyncio.gather(*asked)
            assert await headgate.idle()
            await eventually(lambda: second.open_connections == 0)
    assert {"p0", "p1"} == set(providers)
    assert len(first.exchanges) + len(second.exchanges) == 1000
    assert logged.errors == []


@asynccontextmanager
async def following(folder: Path, vendor: Vendor) -> AsyncIterator[tuple[Headgate, Path]]:
    """A server that follows its configuration file."""
    file = folder / "headgate.yaml"
    file.write_text(as_yaml(vendor, "m"))
    config = load(file, {})
    sections = {name: getattr(config, name) for name in ("providers", "models")}
    async with running(**sections) as headgate:
        reloading = asyncio.create_task(Reloader(file, {}, headgate.application.reload).run(config))
        try:
            yield headgate, file
        finally:
            reloading.cancel()
            await asyncio.gather(reloading, return_exceptions=True)


def as_yaml(vendor: Vendor, *aliases: str, **settings: Any) -> str:
    """A configuration file with these aliases."""
    models = {alias: {"targets": [{"provider": "v", "model": "x"}]} for alias in aliases}
    return yaml.safe_dump({"auth": {"anonymous": "true"}, "providers": {"v": at(vendor, **settings)}, "models": models})


async def names(headgate: Headgate) -> list[str]:
    """The models that are listed."""
    listed = await headgate.stub.ListModels(pb.ListModelsRequest())
    return [model.name for model in listed.models]


async def until_listed(headgate: Headgate, name: str, seconds: float = 10.0) -> None:
    """Waits until the model is listed."""
    async with asyncio.timeout(seconds):
        while name not in await names(headgate):
            await asyncio.sleep(0.02)


async def test_a_changed_file_is_served_and_a_broken_one_changes_nothing(tmp_path: Path, logged: LogLines) -> None:
    """The file is looked at; what is wrong is logged whole with lines, and the last good configuration stays."""
    async with Vendor(answers_text) as vendor, following(tmp_path, vendor) as (headgate, file):
        file.write_text(as_yaml(vendor, "m", "added"))
        await until_listed(headgate, "added")
        file.write_text("providers:\n  v: {adaptor: openai}\nmodels:\n  m: {targets: [{provider: w, model: x}]}\n")
        await eventually(lambda: [line for line in logged.errors if line["event"] == "configuration_refused"], 10)
        assert (await headgate.stub.Generate(ask("added"))).provider == "v"
        file.write_text(as_yaml(vendor, "mended"))
        await until_listed(headgate, "mended")
    (refused,) = [line for line in logged.lines if line["event"] == "configuration_refused"]
    told = "\n".join(refused["problems"])
    assert f"{file}:2: providers.v.adaptor: is not a known key" in told
    assert f"{file}:4: models.m.targets[0].provider: there is no provider w" in told


async def test_a_config_map_that_swaps_its_symlink_is_noticed(tmp_path: Path) -> None:
    """Kubernetes never writes into the file: it points a link at another folder."""
    async with Vendor(answers_text) as vendor, following(tmp_path, vendor) as (headgate, file):
        for number in (1, 2):
            data = tmp_path / f"..data_{number}"
            data.mkdir()
            (data / file.name).write_text(as_yaml(vendor, "m", f"from-{number}"))
            (tmp_path / "..new").symlink_to(data, target_is_directory=True)
            os.replace(tmp_path / "..new", tmp_path / "..data")
            if number == 1:
                file.unlink()
                file.symlink_to(Path("..data") / file.name)
            await until_listed(headgate, f"from-{number}")


async def test_a_secret_in_another_folder_is_looked_at_too(tmp_path: Path) -> None:
    """A rotated key file takes effect although the configuration's own file is the same."""
    secrets, folder = tmp_path / "secrets", tmp_path / "config"
    secrets.mkdir()
    folder.mkdir()
    (secrets / "key").write_text("before")
    async with Vendor(answers_text) as vendor, following(folder, vendor) as (headgate, file):
        file.write_text(as_yaml(vendor, "m", "keyed", api_key_file=str(secrets / "key")))
        await until_listed(headgate, "keyed")
        await headgate.stub.Generate(ask("m"))
        (secrets / "key").write_text("after")
        async with asyncio.timeout(10):
            while vendor.exchanges[-1].headers["authorization"] != "Bearer after":
                await asyncio.sleep(0.05)
                await headgate.stub.Generate(ask("m"))
    assert vendor.exchanges[0].headers["authorization"] == "Bearer before"


async def test_a_configuration_is_tried_again_when_what_it_lacked_appears(tmp_path: Path, logged: LogLines) -> None:
    """Kubernetes may bring the ConfigMap before the Secret: no second change of the file is needed; it is told once."""
    async with Vendor(answers_text) as vendor, following(tmp_path, vendor) as (headgate, file):
        file.write_text(as_yaml(vendor, "m", "keyed", api_key_file="late"))
        await eventually(lambda: [line for line in logged.errors if line["event"] == "configuration_refused"], 10)
        (tmp_path / "late").write_text("came")
        await until_listed(headgate, "keyed", seconds=20)
        await headgate.stub.Generate(ask("keyed"))
    assert vendor.exchanges[-1].headers["authorization"] == "Bearer came"
    assert len([line for line in logged.lines if line["event"] == "configuration_refused"]) == 1


@pytest.mark.parametrize("refused", [False, True])
async def test_a_file_that_is_being_written_is_read_when_it_is_whole(
    tmp_path: Path, logged: LogLines, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """Nothing is refused for what stands in it meanwhile, not even when what was refused before is tried again."""
    monkeypatch.setattr(reload, "RETRY_SECONDS", SETTLE_SECONDS)

    def refusals() -> list[Any]:
        return [line["problems"] for line in logged.lines if line["event"] == "configuration_refused"]

    async with Vendor(answers_text) as vendor, following(tmp_path, vendor) as (headgate, file):
        await asyncio.sleep(LOOK_SECONDS / 2)  # it reads once when it begins
        if refused:
            file.write_text("models: none")
            await eventually(lambda: bool(refusals()), 10)
        for length in range(int(2 * LOOK_SECONDS / (SETTLE_SECONDS / 4))):
            file.write_text("providers: " + "{" * length)
            await asyncio.sleep(SETTLE_SECONDS / 4)
        file.write_text(as_yaml(vendor, "whole"))
        await until_listed(headgate, "whole")
    assert len(refusals()) == refused


def test_the_files_of_a_configuration_are_it_and_those_it_names(tmp_path: Path) -> None:
    """Relative names count from the configuration's folder. The ledger's spool is written to, and never read anew."""
    provider = {"adapter": "openai", "base_url": "http://127.0.0.1:1/v1"}
    config = configured(
        providers={"a": {**provider, "api_key_file": "keys/a"}, "b": {**provider, "ca_file": tmp_path / "ca.pem"}},
        ledger={"url": "postgresql://127.0.0.1/ledger", "url_file": "url", "spool": "spool.db"},
    )
    file = tmp_path / "headgate.yaml"
    assert named_files(file, config) == {file, tmp_path / "keys" / "a", tmp_path / "ca.pem", tmp_path / "url"}


async def test_sighup_reloads_and_what_needs_a_restart_is_said(tmp_path: Path) -> None:
    """The signal works as operators expect; a new listen address is not silently ignored."""
    async with Vendor(answers_text) as vendor:
        file = tmp_path / "headgate.yaml"
        file.write_text(as_yaml(vendor, "m"))
        async with headgate_serve("--config", str(file)) as headgate:
            server = "server: {max_connection_idle: 30}\ntelemetry: {log_level: debug}\n"
            file.write_text(as_yaml(vendor, "m", "added") + server)
            headgate.process.send_signal(signal.SIGHUP)
            async with grpc.aio.insecure_channel(headgate.address) as channel:
                stub = pb.InferenceServiceStub(channel)
                async with asyncio.timeout(10):
                    while "added" not in str(await stub.ListModels(pb.ListModelsRequest())):
                        await asyncio.sleep(0.05)
            finished = await headgate.stop(signal.SIGINT)
    lines = [json.loads(line) for line in finished.stderr.splitlines()]
    told = [line for line in lines if line["event"] == "restart_needed"]
    assert told
    assert told[0]["keys"] == ["server.max_connection_idle", "telemetry"]
    assert finished.code == 0


async def test_sighup_without_a_file_ends_nothing() -> None:
    """The demo has no file to read again; the signal's default would end the process."""
    async with headgate_serve() as headgate:
        headgate.process.send_signal(signal.SIGHUP)
        async with grpc.aio.insecure_channel(headgate.address) as channel:
            answer = await pb.InferenceServiceStub(channel).Generate(ask("echo"))
        finished = await headgate.stop(signal.SIGINT)
    assert answer.candidates
    assert finished.code == 0


async def test_a_file_that_vanished_meanwhile_changes_nothing(tmp_path: Path) -> None:
    """A configuration that was good when it was read may not be when it is applied."""
    async with Vendor(answers_text) as vendor, running(providers={"v": at(vendor)}) as headgate:
        broken = configured(providers={"v": at(vendor, ca_file=tmp_path / "ca.pem")})
        with pytest.raises(OSError, match=r"ca\.pem"):
            await headgate.application.reload(broken)
        assert (await headgate.stub.Generate(ask("v/m"))).candidates[0].message.parts[0].text == "Hello there"


async def test_a_reload_does_not_wait_long_for_what_is_fetched(logged: LogLines) -> None:
    """Neither a token nor a key set that does not come holds up the rest; one that comes late is taken then."""
    proceed = asyncio.Event()
    provider = IdentityProvider()

    async def late(exchange: Exchange) -> None:
        await proceed.wait()
        await exchange.answer(200, {"keys": provider.published})

    async with Vendor(late) as slow:
        credential = {"type": "oauth", "token_url": slow.base_url, "client_id": "i", "client_secret": "s"}
        providers = {
            "demo": {"adapter": "mock"},
            "v": {"adapter": "openai", "base_url": slow.base_url, "credential": credential},
        }
        issuer = provider.settings(jwks_url=slow.base_url)
        config = configured(providers=providers, auth={"anonymous": True, "jwt": [issuer]})
        async with running(providers={"other": {"adapter": "mock"}}) as headgate:
            began = time.monotonic()
            await headgate.application.reload(config)
            assert time.monotonic() - began < FIRST_SECONDS / 2
            assert (await headgate.stub.Generate(ask("demo/echo"))).candidates
            proceed.set()
            assert (await who(headgate, bearer(provider.token()))).candidates


async def test_a_reload_that_is_given_up_leaves_nothing_open() -> None:
    """What it had begun to fetch for the new configuration ends, and the old one serves on."""

    async def never(exchange: Exchange) -> None:
        await exchange.caller_closed.wait()

    async with Vendor(never) as silent:
        issuer = IdentityProvider().settings(jwks_url=silent.base_url)
        config = configured(providers={"demo": {"adapter": "mock"}}, auth={"anonymous": True, "jwt": [issuer]})
        async with running(providers={"other": {"adapter": "mock"}}) as headgate:
            reloading = asyncio.create_task(headgate.application.reload(config))
            await silent.exchange()
            reloading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reloading
            await eventually(lambda: silent.open_connections == 0)
            assert (await headgate.stub.Generate(ask("other/echo"))).candidates
