"""Which trace a call belongs to: a caller's is continued, vendors are told, and who is not sampled sends nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc.aio
import pytest
from headgate import v1 as pb
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from headgate_server.config import ConfigError, load
from tests.collector import Collector, collecting
from tests.conftest import LogLines, Serve
from tests.headgate_process import ask
from tests.tools import headgate_serve
from tests.vendor import Exchange, Vendor, answers_text, at

TRACES = {"traces": {"enabled": True}}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
CALLERS = (
    ("traceparent", f"00-{TRACE}-{SPAN}-01"),
    ("tracestate", "vendor=opaque"),
    ("baggage", "user=alice"),
)


async def test_a_callers_trace_is_continued_up_to_the_vendor(serve: Serve, collector: Collector) -> None:
    """The call's span is the caller's child, the vendor gets the attempt's as parent; baggage stays with us."""
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}, telemetry=TRACES) as headgate:
        await headgate.stub.Generate(ask("v/m"), metadata=CALLERS)
    (attempt,) = collector.attempts
    assert (collector.call.trace_id, collector.call.parent_id) == (TRACE, SPAN)
    assert collector.call.trace_state == "vendor=opaque"
    sent = vendor.exchanges[0].headers
    assert sent["traceparent"].startswith(f"00-{TRACE}-{attempt.span_id}-")
    assert int(sent["traceparent"][-2:], 16) & 1
    assert sent["tracestate"] == "vendor=opaque"
    assert "baggage" not in sent


async def test_each_attempt_has_its_own_parent_for_the_vendor(serve: Serve, collector: Collector) -> None:
    """A retry is told apart from the first attempt in the vendor's own traces."""
    failed = False

    async def fails_once(exchange: Exchange) -> None:
        nonlocal failed
        if failed:
            return await answers_text(exchange)
        failed = True
        return await exchange.answer(500, {"error": {"message": "x", "type": "server_error"}})

    routing = {"retry": {"max_attempts": 2, "base_delay": 0.01}}
    async with Vendor(fails_once) as vendor:
        async with serve(providers={"v": at(vendor)}, telemetry=TRACES, routing=routing) as headgate:
            await headgate.stub.Generate(ask("v/m"))
    parents = [exchange.headers["traceparent"].split("-")[2] for exchange in vendor.exchanges]
    assert parents == [span.span_id for span in collector.attempts]


async def test_vendors_are_not_told_where_the_operator_says_so(serve: Serve, collector: Collector) -> None:
    """`propagate: false` holds with traces and without."""
    for enabled in (True, False):
        silent = {"traces": {"enabled": enabled, "propagate": False}}
        async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}, telemetry=silent) as headgate:
            await headgate.stub.Generate(ask("v/m"), metadata=CALLERS)
        assert not {"traceparent", "tracestate", "baggage"} & vendor.exchanges[0].headers.keys()


async def test_without_traces_a_callers_trace_passes_through(serve: Serve, logged: LogLines) -> None:
    """Word for word, and the log has its id; what is no trace context is not passed on."""
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}) as headgate:
        await headgate.stub.Generate(ask("v/m"), metadata=CALLERS)
        await headgate.stub.Generate(ask("v/m"), metadata=(("traceparent", f"00-{'0' * 32}-{SPAN}-01"),))
        await headgate.stub.Generate(ask("v/m"))
    passed, wrong, none = (exchange.headers for exchange in vendor.exchanges)
    assert (passed["traceparent"], passed["tracestate"]) == (CALLERS[0][1], CALLERS[1][1])
    assert "baggage" not in passed
    assert not {"traceparent", "tracestate"} & {*wrong, *none}
    assert [line.get("trace_id") for line in logged.calls] == [TRACE, None, None]


async def test_a_call_that_its_caller_does_not_sample_sends_nothing(
    serve: Serve, collector: Collector, logged: LogLines
) -> None:
    """No span leaves, yet the vendor learns of the trace and of the decision, and the log has the trace's id."""
    unsampled = (("traceparent", f"00-{TRACE}-{SPAN}-00"),)
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}, telemetry=TRACES) as headgate:
        await headgate.stub.Generate(ask("v/m"), metadata=unsampled)
        async for _ in headgate.stub.StreamGenerate(ask("v/m"), metadata=unsampled):
            pass
    assert collector.spans == []
    for exchange in vendor.exchanges:
        version, trace, span, flags = exchange.headers["traceparent"].split("-")
        assert (version, trace) == ("00", TRACE)
        assert span != SPAN
        assert not int(flags, 16) & 1
    assert [line["trace_id"] for line in logged.calls] == [TRACE, TRACE]


@pytest.mark.parametrize("sampler", ["traceidratio", "parentbased_traceidratio"])
async def test_a_share_of_calls_is_sampled_by_their_ids(
    serve: Serve, collector: Collector, logged: LogLines, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """Those that OpenTelemetry's own sampler takes, so that services along a trace agree."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.3")
    async with serve(providers={"demo": {"adapter": "mock"}}, telemetry=TRACES) as headgate:
        await asyncio.gather(*(headgate.stub.Generate(ask("demo/echo")) for _ in range(100)))
    ids = {line["trace_id"] for line in logged.calls}
    expected = {
        name
        for name in ids
        if TraceIdRatioBased(0.3).should_sample(None, int(name, 16), "").decision is Decision.RECORD_AND_SAMPLE
    }
    assert len(ids) == 100
    assert 0 < len(expected) < 100
    assert {span.trace_id for span in collector.spans} == expected


async def test_every_line_of_a_sampled_call_has_its_trace_id(
    serve: Serve, collector: Collector, logged: LogLines
) -> None:
    """So that a trace leads to its lines, and a line to its trace."""
    async with Vendor(answers_text) as vendor, serve(providers={"v": at(vendor)}, telemetry=TRACES) as headgate:
        await headgate.stub.Generate(ask("v/m"))
    assert [line["trace_id"] for line in logged.calls] == [collector.call.trace_id]
    assert collector.call.attributes["headgate.request.id"] == logged.calls[0]["request_id"]


def served_by(vendor: Vendor, tmp_path: Path, traces: str = "{enabled: true}") -> tuple[str, str]:
    """The options of a `headgate serve` whose provider `v` is this vendor."""
    file = tmp_path / "headgate.yaml"
    file.write_text(
        f"server: {{drain_delay: 0}}\ntelemetry: {{traces: {traces}}}\nproviders:\n  v: {{adapter: openai, "
        f'base_url: "{vendor.base_url}"}}\n'
    )
    return "--config", str(file)


async def call_once(address: str, metadata: tuple[tuple[str, str], ...] = ()) -> None:
    """One plain call."""
    async with grpc.aio.insecure_channel(address) as channel:
        await pb.InferenceServiceStub(channel).Generate(ask("v/m"), metadata=metadata)


async def test_opentelemetrys_variables_are_honoured(tmp_path: Path) -> None:
    """Service name, resource, headers and propagators, by `headgate serve`, which sends what is left at its end."""
    async with collecting() as collector, Vendor(answers_text) as vendor:
        environment = {
            **collector.environment,
            "OTEL_SERVICE_NAME": "llm-edge",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test,service.version=9",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-collector-key=open",
            "OTEL_PROPAGATORS": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
        }
        async with headgate_serve(*served_by(vendor, tmp_path), env=environment) as headgate:
            await call_once(headgate.address, CALLERS)
            assert collector.spans == []
            finished = await headgate.stop()
    assert finished.code == 0
    assert (
        collector.call.resource.items()
        >= {
            "service.name": "llm-edge",
            "deployment.environment.name": "test",
            "service.version": "9",
        }.items()
    )
    assert collector.metadata[0]["x-collector-key"] == "open"
    assert collector.call.trace_id != TRACE


@pytest.mark.parametrize(
    "variables",
    [{"OTEL_TRACES_SAMPLER": "always_off"}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}],
    ids=lambda variables: "".join(variables),
)
async def test_nothing_is_sent_where_a_variable_says_so(tmp_path: Path, variables: dict[str, str]) -> None:
    """A sampler that takes nothing, an SDK switched off, no exporter: the call is served all the same."""
    async with collecting() as collector, Vendor(answers_text) as vendor:
        environment = {**collector.environment, **variables}
        async with headgate_serve(*served_by(vendor, tmp_path), env=environment) as headgate:
            await call_once(headgate.address)
            finished = await headgate.stop()
    assert finished.code == 0
    assert collector.spans == []
    assert len(vendor.exchanges) == 1


async def test_traces_go_over_http_too(tmp_path: Path) -> None:
    """By OTEL_EXPORTER_OTLP_PROTOCOL, or `protocol` in the file."""
    received = Collector()

    async def takes_traces(exchange: Exchange) -> None:
        assert exchange.path == "/v1/traces"
        received.take(exchange.body)
        await exchange.answer(200, ExportTraceServiceResponse().SerializeToString())

    async with Vendor(takes_traces) as http, Vendor(answers_text) as vendor:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": http.base_url.removesuffix("/v1"),
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
        async with headgate_serve(*served_by(vendor, tmp_path), env=environment) as headgate:
            await call_once(headgate.address)
            await headgate.stop()
    assert received.call.attributes["rpc.response.status_code"] == "OK"
    assert len(received.attempts) == 1


async def test_a_collector_that_is_not_there_delays_the_end_for_seconds_only(tmp_path: Path) -> None:
    """The server stops in time, says what is lost, and calls do not notice."""
    async with Vendor(answers_text) as vendor:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
        async with headgate_serve(*served_by(vendor, tmp_path), env=environment) as headgate:
            await call_once(headgate.address)
            finished = await headgate.stop()  # waits for half a minute at most
    assert finished.code == 0
    events = [json.loads(line)["event"] for line in finished.stderr.splitlines()]
    assert "traces_lost" in events
    assert events[-1] == "stopped"


@pytest.mark.parametrize(
    ("traces", "variables", "problem"),
    [
        ("{enabled: true, exporters: [nope]}", {}, "telemetry.traces.exporters: there is no exporter nope"),
        ("{enabled: true}", {"OTEL_TRACES_EXPORTER": "nope"}, "OTEL_TRACES_EXPORTER: there is no exporter nope"),
        ("{enabled: true}", {"OTEL_EXPORTER_OTLP_PROTOCOL": "pigeon"}, "OTEL_EXPORTER_OTLP_PROTOCOL: must be 'grpc'"),
        ("{enabled: maybe}", {}, "telemetry.traces.enabled"),
    ],
)
def test_what_cannot_be_had_is_said_at_the_start(
    tmp_path: Path, traces: str, variables: dict[str, str], problem: str
) -> None:
    """check-config and serve name the key, or the variable, in one line."""
    file = tmp_path / "headgate.yaml"
    file.write_text(f"telemetry: {{traces: {traces}}}\nproviders: {{demo: {{adapter: mock}}}}\n")
    with pytest.raises(ConfigError) as refused:
        load(file, variables)
    assert len(refused.value.problems) == 1
    assert problem in str(refused.value)


def test_variables_of_traces_are_not_judged_while_there_are_none(tmp_path: Path) -> None:
    """They are often set for every container of a cluster."""
    file = tmp_path / "headgate.yaml"
    file.write_text("providers: {demo: {adapter: mock}}\n")
    config = load(file, {"OTEL_TRACES_EXPORTER": "nope", "OTEL_EXPORTER_OTLP_PROTOCOL": "pigeon"})
    assert not config.telemetry.traces.enabled


async def test_an_unknown_propagator_ends_the_start_with_one_line(tmp_path: Path) -> None:
    """The SDK would end it with a traceback."""
    async with Vendor(answers_text) as vendor:
        with pytest.raises(
            AssertionError, match="did not start: error: traces cannot be sent: Propagator nope"
        ) as ended:
            async with headgate_serve(*served_by(vendor, tmp_path), env={"OTEL_PROPAGATORS": "nope"}):
                pass
    assert "Traceback" not in str(ended.value)
