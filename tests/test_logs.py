"""What the log says, and what it must not: by `headgate serve`, or by a process that logs as the server does."""

from __future__ import annotations

import gc
import io
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import grpc.aio
import pytest
from headgate import v1 as pb
from hypothesis import given, strategies as st

from headgate_server import logs
from headgate_server.app import SERVICE
from headgate_server.call import Call, CallRegistry
from headgate_server.config import ConfigError, load
from headgate_server.config.values import Component
from headgate_server.interceptors.access_log import log_call
from headgate_server.interceptors.chain import Chain
from headgate_server.principal import Principal
from headgate_server.redaction import MASK
from headgate_server.runtime import Runtime
from headgate_server.telemetry.masking import is_plain, mask_fields, mask_keys
from headgate_server.telemetry.repetition import MAX_KINDS, WINDOW_SECONDS, Repetition
from tests.conftest import LogLines, Serve
from tests.headgate_process import ask, configured, failing
from tests.tools import ROOT, headgate_serve, run
from tests.vendor import Exchange, Vendor, answers_text, sse, text_chunk

LINES = """
import logging, structlog
from headgate_server import logs
from headgate_server.config import Telemetry
logs.configure(Telemetry({settings}))
log = structlog.get_logger(component="health")
{body}
logs.report_held_back()
"""


async def logged_by(body: str, settings: str = "") -> list[dict[str, Any]]:
    """What this code logs, in a process that logs as the server does."""
    finished = await run(sys.executable, "-c", LINES.format(body=body, settings=settings))
    assert finished.code == 0, finished.stderr
    return [json.loads(line) for line in finished.stderr.splitlines()]


async def test_every_line_of_a_call_tells_request_and_tenant(logged: LogLines) -> None:
    """Also a line that somebody outside of the access log writes, once it is known who calls."""

    def identify(call: Call) -> None:
        call.principal = Principal(tenant="acme")

    class Crashing:
        async def Generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
            raise RuntimeError("a bug")

        StreamGenerate = Embed = ListModels = Health = Generate

    runtime = Runtime(configured(providers={"demo": {"adapter": "mock"}}))
    chain = Chain(SERVICE, CallRegistry(), lambda: runtime, begin=[logs.bind], before_parse=[identify], end=[log_call])
    server = grpc.aio.server(interceptors=[chain])
    servicer: Any = Crashing()
    pb.add_InferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        metadata = (("x-request-id", "r-1"),)
        await failing(pb.InferenceServiceStub(channel).Generate(ask("m"), metadata=metadata))
    await server.stop(1)
    await runtime.close()
    assert {line["event"]: (line["request_id"], line["tenant"]) for line in logged.lines} == {
        "call": ("r-1", "acme"),
        "internal_error": ("r-1", "acme"),
    }


async def test_a_call_is_forgotten_when_it_is_over(serve: Serve) -> None:
    """Its pooled connection lives on, in the context that the call began it in: that must not hold prompts."""
    async with Vendor(answers_text) as vendor:
        async with serve(providers={"v": {"adapter": "openai", "base_url": vendor.base_url}}) as headgate:
            await headgate.stub.Generate(ask("v/m"), metadata=(("x-request-id", "forget-me"),))
            assert await headgate.idle()
            gc.collect()
            held = [thing for thing in gc.get_objects() if type(thing) is Call and thing.request_id == "forget-me"]
            assert vendor.open_connections == 1
    assert held == []


async def test_secrets_of_callers_and_vendors_are_masked_in_every_line(tmp_path: Path) -> None:
    """By the name of a label, by the look of a value, in a vendor's words at level debug."""

    async def repeats_the_key(exchange: Exchange) -> None:
        words = f"bad credentials: {exchange.headers['authorization']}"
        await exchange.answer(401, {"error": {"message": words, "type": "auth"}})

    async with Vendor(repeats_the_key) as vendor:
        file = tmp_path / "headgate.yaml"
        file.write_text(
            "telemetry: {log_level: debug}\nauth: {anonymous: true, caller_provider_keys: true}\nproviders:\n"
            f'  v: {{adapter: openai, base_url: "{vendor.base_url}", api_key: CANARY-of-the-vendor}}\n'
        )
        async with headgate_serve("--config", str(file)) as headgate:
            labels = {"authorization": "CANARY-by-name", "note": "sk-CANARY-by-look", "team": "search"}
            request = ask("v/sk-CANARY-as-a-model", "CANARY prompt", labels=labels)
            async with grpc.aio.insecure_channel(headgate.address) as channel:
                metadata = (("x-api-key", "CANARY-of-the-caller"), ("x-provider-key-v", "CANARY-own"))
                await failing(pb.InferenceServiceStub(channel).Generate(request, metadata=metadata))
            finished = await headgate.stop()
    assert "CANARY" not in finished.stderr
    (call,) = [line for line in map(json.loads, finished.stderr.splitlines()) if line["event"] == "call"]
    assert call["labels"] == {"authorization": MASK, "note": MASK, "team": "search"}
    assert call["model"] == f"v/{MASK}"
    assert "vendor_detail" in finished.stderr


async def test_a_key_that_a_vendor_repeats_within_a_success_is_masked(tmp_path: Path) -> None:
    """In an answer of status 200, and in a stream before and after its first content, whatever the key looks like."""

    async def repeats_the_key(exchange: Exchange) -> None:
        error = {"error": {"message": f"bad key {exchange.headers['authorization'].split()[1]}", "type": "auth"}}
        if exchange.path.endswith("/embeddings") or not exchange.json.get("stream"):
            await exchange.answer(200, error)
            return
        await exchange.begin()
        if exchange.json["model"] == "late":
            await exchange.chunk(sse(text_chunk("Hello")))
        await exchange.chunk(sse(error))

    async with Vendor(repeats_the_key) as vendor:
        file = tmp_path / "headgate.yaml"
        file.write_text(
            "telemetry: {log_level: debug}\nauth: {anonymous: true, caller_provider_keys: true}\nproviders:\n"
            f'  v: {{adapter: openai, base_url: "{vendor.base_url}", api_key: plainCANARY0123456789}}\n'
            "routing: {retry: {max_attempts: 1}, breaker: {consecutive_failures: 0, min_calls: 1000}}\n"
        )
        async with headgate_serve("--config", str(file)) as headgate:
            async with grpc.aio.insecure_channel(headgate.address) as channel:
                stub = pb.InferenceServiceStub(channel)
                for metadata in ((), (("x-provider-key-v", "ownCANARY0123456789"),)):
                    await failing(stub.Generate(ask("v/m"), metadata=metadata))
                    await failing(stub.Embed(pb.EmbedRequest(model="v/m", inputs=[pb.EmbedInput(text="a")])))
                    await failing(stub.StreamGenerate(ask("v/m"), metadata=metadata))
                    await failing(stub.StreamGenerate(ask("v/late"), metadata=metadata))
            finished = await headgate.stop()
    lines = [json.loads(line) for line in finished.stderr.splitlines()]
    assert sum(MASK in line["detail"] for line in lines if line["event"] == "vendor_detail") == 8
    assert "CANARY" not in finished.stderr


@pytest.mark.parametrize("form", ["json", "console"])
async def test_secrets_that_libraries_or_exceptions_repeat_are_masked(form: str) -> None:
    """What goes through the logging module takes the same way out."""
    body = """
logging.getLogger("lib").error("sent Authorization: Bearer CANARY.abc.def")
log.error("failed", headers={"X-Api-Key": "CANARY", "x-provider-key-openai": "CANARY"}, token="CANARY", tokens=3)
try:
    raise ValueError("no such key hg_CANARYCANARY_0123")
except ValueError:
    log.exception("failed_badly")
    logging.getLogger("lib").exception("failed too")
"""
    finished = await run(sys.executable, "-c", LINES.format(body=body, settings=f'log_format="{form}"'))
    assert finished.code == 0, finished.stderr
    assert finished.stderr.count("ValueError") == 2
    assert "CANARY" not in finished.stderr
    assert "tokens" in finished.stderr


@pytest.mark.parametrize(
    ("level", "levels", "seen"),
    [
        ("info", "{access: warning}", {"serving", "draining", "stopped"}),
        ("warning", "{access: info}", {"call"}),
        ("info", "{}", {"serving", "call", "draining", "stopped"}),
    ],
)
async def test_levels_are_set_by_component(tmp_path: Path, level: str, levels: str, seen: set[str]) -> None:
    """One component may say less than the others, or more."""
    file = tmp_path / "headgate.yaml"
    file.write_text(
        f"server: {{drain_delay: 0}}\ntelemetry: {{log_level: {level}, log_levels: {levels}}}\n"
        "providers: {demo: {adapter: mock}}\n"
    )
    async with headgate_serve("--config", str(file)) as headgate:
        async with grpc.aio.insecure_channel(headgate.address) as channel:
            await pb.InferenceServiceStub(channel).Generate(ask("demo/echo"))
        finished = await headgate.stop()
    assert {json.loads(line)["event"] for line in finished.stderr.splitlines()} == seen


def test_a_component_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """A typing error would silence nothing, silently."""
    file = tmp_path / "headgate.yaml"
    file.write_text("providers: {demo: {adapter: mock}}\ntelemetry:\n  log_levels:\n    acess: error\n")
    with pytest.raises(ConfigError) as refused:
        load(file, {})
    (problem,) = refused.value.problems
    assert (problem.line, problem.key) == (4, "telemetry.log_levels.acess")
    assert "'access'" in problem.reason


def test_components_are_those_of_the_code() -> None:
    """Every logger's component can be given a level, and nothing else can."""
    sources = [file.read_text("utf-8") for file in (ROOT / "server").rglob("*.py")]
    named = {name for source in sources for name in re.findall(r'get_logger\(component="(\w+)"\)', source)}
    assert named == set(get_args(Component))


async def test_one_error_again_and_again_is_logged_so_often_and_then_counted() -> None:
    """By event, provider and reason, libraries by their text; the access log and other errors are not touched."""
    body = """
for n in range(25):
    log.error("unreachable", provider="a", reason="REFUSED", n=n)
    log.info("call", n=n)
    logging.getLogger("lib").warning("lost %s", n)
log.error("unreachable", provider="b", reason="REFUSED")
"""
    lines = await logged_by(body, "log_repeats=10")
    assert [line["n"] for line in lines if line.get("provider") == "a" and "n" in line] == list(range(10))
    assert [line["n"] for line in lines if line["event"] == "call"] == list(range(25))
    assert [line["event"] for line in lines if line.get("logger") == "lib"] == [f"lost {n}" for n in range(10)]
    assert [line["provider"] for line in lines if line["event"] == "unreachable"][-1] == "b"
    held_back = [line for line in lines if line["event"] == "lines_held_back"]
    assert [(line["component"], line["of"], line.get("provider"), line["lines"]) for line in held_back] == [
        ("health", "unreachable", "a", 15),
        ("lib", "lost %s", None, 15),
    ]


async def test_security_events_budgets_and_other_bugs_are_not_held_back() -> None:
    """Forty refused logins are forty lines, forty used-up budgets, too; a second bug is not taken for the first."""
    body = """
security = structlog.get_logger(component="security")
budgets = structlog.get_logger(component="budgets")
for n in range(40):
    budgets.warning("budget_exceeded", n=n)
    security.warning("login_failed", reason="wrong_secret", n=n)
    log.error("internal_error", exc_info=ValueError())
    log.error("internal_error", exc_info=KeyError()) if n == 39 else None
"""
    lines = await logged_by(body, "log_repeats=10")
    for event in ("login_failed", "budget_exceeded"):
        assert [line["n"] for line in lines if line["event"] == event] == list(range(40))
    bugs = [line["exception"] for line in lines if line["event"] == "internal_error"]
    assert ["KeyError" in bug for bug in bugs] == [False] * 10 + [True]
    assert [(line["raised"], line["lines"]) for line in lines if line["event"] == "lines_held_back"] == [
        ("ValueError", 30)
    ]


async def test_nothing_is_held_back_where_the_operator_wants_all() -> None:
    """`log_repeats: 0`."""
    lines = await logged_by('for n in range(25): log.error("unreachable")', "log_repeats=0")
    assert len(lines) == 25


def test_held_back_lines_are_counted_when_their_minute_is_over() -> None:
    """The next minute begins anew, with whoever logs first in it."""
    repetition = Repetition(2)
    assert repetition.ended(100.0) == []
    assert [repetition.passes(("a", "e")) for _ in range(5)] == [True, True, False, False, False]
    assert repetition.passes(("b", "e"))
    assert list(repetition.ended(100.0 + WINDOW_SECONDS - 0.1)) == []
    assert list(repetition.ended(100.0 + WINDOW_SECONDS)) == [(("a", "e"), 3)]
    assert repetition.passes(("a", "e"))
    assert list(repetition.ended(100.0 + 2 * WINDOW_SECONDS)) == []


def test_a_flood_of_different_errors_takes_no_memory() -> None:
    """Beyond a thousand kinds in a minute all others count as one."""
    repetition = Repetition(3)
    passed = sum(repetition.passes(("a", str(n))) for n in range(10 * MAX_KINDS))
    assert passed == MAX_KINDS + 3
    assert [count for _, count in repetition.held_back()] == [9 * MAX_KINDS - 3]


NAMES = st.sampled_from(
    ["Authorization", "x-api-key", "X-Provider-Key-OpenAI", "client_secret", "access_token", "Cookie"]
)
PLAIN_NAMES = st.sampled_from(["model", "tokens", "first_token_ms", "key_id", "team", "secretary"])


@given(NAMES, PLAIN_NAMES, st.integers(0, 4))
def test_fields_are_masked_by_name_at_any_depth(secret: str, plain: str, depth: int) -> None:
    """Headers in any spelling; what only sounds alike is kept."""
    value: Any = {secret: "CANARY", plain: "kept"}
    for level in range(depth):
        value = [value] if level % 2 else {"inner": value}
    masked = mask_fields({"event": "e", "value": value})
    assert "CANARY" not in repr(masked)
    assert repr(masked).count("kept") == 1
    assert repr(masked).count(repr(MASK)) == 1


def test_lines_without_secrets_are_known_as_such() -> None:
    """Almost all of them: that is what makes masking cheap."""
    line = {
        "event": "call",
        "attempts": [{"provider": "v", "tokens": {"input": 5}}],
        "labels": {"team": "a"},
        "n": None,
    }
    assert is_plain(line)


@pytest.mark.parametrize(
    "value",
    [
        {"x-api-key": "c"},
        [{"inner": ({"password": "c"},)}],
        "refused sk-proj-0123456789abcdef",
        {"sk-proj-0123456789abcdef": "named like a key"},
        [["hg_0123456789ab_0123456789"]],
        ValueError("of a vendor"),
    ],
)
def test_lines_that_may_hold_a_secret_are_looked_at(value: Any) -> None:
    """By a name at any depth, by what a text or a name looks like, or because nobody knows how a value prints."""
    assert not is_plain({"event": "e", "value": value})


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-0123456789abcdef",
        "hg_0123456789ab_0123456789",
        "Bearer 0123456789abcdef",
        "bearer 0123456789abcdef",
        "BEARER 0123456789abcdef",
        "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl",
        "AIzaSy0123456789abcdefghijkl",
        "gsk_0123456789abcdef",
        "xai-0123456789abcdef",
        "hf_0123456789abcdef",
        "nvapi-0123456789abcdef",
        "pplx-0123456789abcdef",
        "csk-0123456789abcdef",
        "fw_0123456789abcdef",
        "r8_0123456789abcdef",
        "key-0123456789abcdef",
        "key_0123456789abcdef",
        "hf-0123456789abcdef",
        "fw-0123456789abcdef",
        "r8-0123456789abcdef",
        "BeArEr 0123456789abcdef",
    ],
)
def test_whatever_looks_like_a_key_is_masked(key: str) -> None:
    """Of Headgate and of vendors, in the middle of a text."""
    assert mask_keys(f'{{"error":"refused {key}"}}') == f'{{"error":"refused {MASK}"}}'


def test_words_that_contain_a_key_by_chance_are_kept() -> None:
    """A task-based model is no key."""
    for text in ("task-based-models", "risk_averse_agents", "a tokenkeeper", "disk-usage-of-today"):
        assert mask_keys(text) == text


async def test_a_key_behind_a_line_feed_is_masked() -> None:
    """JSON writes that as an n, with which the key is a word like any other; so is one behind a tab, and a name's."""
    body = r"""
log.info("e", text="x\nsk-proj-0123456789abcdef", more=["\thf_0123456789abcdef"], of={"sk-proj-0123456789abcdef": 1})
"""
    (line,) = await logged_by(body)
    assert (line["text"], line["more"], line["of"]) == (f"x\n{MASK}", [f"\t{MASK}"], {MASK: 1})


class SlowFile(io.StringIO):
    """Takes a text in two pieces, between which other threads run."""

    def write(self, text: str) -> int:
        middle = len(text) // 2
        taken = super().write(text[:middle])
        time.sleep(0.001)
        return taken + super().write(text[middle:])


def test_lines_of_several_threads_are_whole() -> None:
    """Those that are written together, too, and none is lost or comes twice."""
    file = SlowFile()
    lines = logs.Lines(file)

    def write_together() -> None:
        for number in range(20):
            with lines.together():
                for line in range(5):
                    lines.info(f"together {number}.{line}")

    def write_alone(thread: int) -> None:
        for number in range(50):
            lines.info(f"alone {thread}.{number}")

    with ThreadPoolExecutor() as threads:
        writing = [threads.submit(write_together), *(threads.submit(write_alone, thread) for thread in range(2))]
        for written in writing:
            written.result()
    expected = [f"together {number}.{line}" for number in range(20) for line in range(5)]
    expected += [f"alone {thread}.{number}" for thread in range(2) for number in range(50)]
    assert sorted(file.getvalue().splitlines()) == sorted(expected)
