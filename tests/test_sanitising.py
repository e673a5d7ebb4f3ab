"""What vendors and callers write never controls a terminal or a log, and a vendor's words never reach a caller."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given, strategies as st

from headgate_server.interceptors.status import to_status
from headgate_server.printing import json_safe, printable
from tests.conftest import LogLines, Serve
from tests.headgate_process import ask, failing
from tests.tools import run
from tests.vendor import Exchange, Vendor, completion
from tests.wires import WIRES

PROSE = "these are the vendor's own words"
CONTROLS = "\x1b]0;title\x07\x9b31m\x00\r\u202eevil\u2066\x7f"
UNSAFE = {
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
}
STATUSES = (400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 529)


def everywhere(text: str) -> list[Any]:
    """Error bodies of every vendor's shape, with the text wherever there is room for one."""
    details = [
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": text, "domain": text, "metadata": {"a": text}},
        {"@type": "type.googleapis.com/google.rpc.ResourceInfo", "resourceType": text, "resourceName": text},
        {"@type": "type.googleapis.com/google.rpc.LocalizedMessage", "message": text},
    ]
    fields = {
        "message": text,
        "type": text,
        "code": text,
        "param": text,
        "status": text,
        "details": details,
        "id": text,
    }
    inner = {"innererror": {"code": text, "content_filter_result": {"jailbreak": {"reason": text}}}}
    return [{"error": {**fields, **inner}}, [{"error": fields}], {**fields, "request_id": text}, {"error": text}, text]


@pytest.mark.parametrize("name", WIRES)
def test_no_wire_tells_a_caller_the_vendors_words(name: str) -> None:
    """Whatever the status and the shape of the error, and wherever in it the words stand."""
    wire = WIRES[name]
    headers = {"x-request-id": PROSE, "request-id": PROSE, "retry-after": PROSE, "apim-request-id": PROSE}
    for status in STATUSES:
        for body in everywhere(PROSE):
            error = wire.adapter.error(status, headers, json.dumps(body).encode(), wire.target)
            told = to_status(error, "id-1", [])
            assert PROSE not in f"{told.details} {told.trailing_metadata!r} {error.facts}", (status, body)


@pytest.mark.parametrize("method", ["Generate", "StreamGenerate"])
@pytest.mark.parametrize("text", [PROSE, CONTROLS])
async def test_no_caller_reads_the_vendors_words(serve: Serve, logged: LogLines, method: str, text: str) -> None:
    """Through the front door, in the status, its details and the metadata; the log has none either, above debug."""
    bodies = everywhere(text)

    async def fails(exchange: Exchange) -> None:
        await exchange.answer(400, bodies[len(vendor.exchanges) % len(bodies)])

    async with Vendor(fails) as vendor:
        async with serve(providers={"v": {"adapter": "openai", "base_url": vendor.base_url}}) as headgate:
            for _ in bodies:
                failed = await failing(getattr(headgate.stub, method)(ask("v/m")))
                assert text not in f"{failed.message} {failed.details} {failed.trailer}"
                assert UNSAFE.isdisjoint(failed.message)
                assert failed.message.isascii()
    assert text not in str([line for line in logged.lines if line["log_level"] != "debug"])


@pytest.mark.parametrize("value", [b"caf\xe9", b"\xff\xfe", b"\x1b[2J", b"a b", b"x" * 300])
async def test_a_vendors_header_cannot_spoil_an_answer(serve: Serve, value: bytes) -> None:
    """An id that is no word is left out: one that is not UTF-8 could not even be sent."""

    async def answers(exchange: Exchange) -> None:
        data = json.dumps(completion()).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: " + value
        await exchange.write(head + b"\r\ncontent-length: %d\r\n\r\n" % len(data) + data)

    async with Vendor(answers) as vendor:
        async with serve(providers={"v": {"adapter": "openai", "base_url": vendor.base_url}}) as headgate:
            try:
                answer = await headgate.stub.Generate(ask("v/m"))
            except Exception:  # a control character breaks HTTP itself
                assert (await failing(headgate.stub.Generate(ask("v/m")))).reason.startswith("PROVIDER_")
            else:
                assert answer.attempts[0].provider_request_id == ""


async def test_what_a_caller_names_is_made_harmless_in_errors(serve: Serve) -> None:
    """A model's name comes back in the error's text, in ASCII without controls."""
    async with serve(providers={"demo": {"adapter": "mock"}}) as headgate:
        failed = await failing(headgate.stub.Generate(ask(f"nobody{CONTROLS}")))
    assert failed.reason == "MODEL_NOT_FOUND"
    assert UNSAFE.isdisjoint(failed.message)


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_printable_text_holds_no_control_and_can_be_encoded(text: str) -> None:
    """Of any text at all, halves of characters included; JSON text still says the same."""
    shown = printable(text)
    assert UNSAFE.isdisjoint(shown.replace("\t", "").replace("\n", ""))
    shown.encode()
    document = json.dumps(text, ensure_ascii=False)
    assert UNSAFE.isdisjoint(json_safe(document))
    assert json.loads(json_safe(document)) == text


LOGGING = f"""
import logging, sys, structlog
from headgate_server import logs
from headgate_server.config import Telemetry

CONTROLS = {CONTROLS!r}
logs.configure(Telemetry(log_level="debug", log_format=sys.argv[1]))
log = structlog.get_logger(component="test")
log.info("event", text=CONTROLS + "\\nforged", inner={{CONTROLS: [CONTROLS]}}, half="\\ud800")
logging.getLogger("library").warning("said %s\\nforged", CONTROLS)
hidden = "-".join(("local", "variable"))
try:
    raise RuntimeError(CONTROLS)
except RuntimeError:
    log.exception("failed")
"""


@pytest.mark.parametrize("form", ["json", "console"])
async def test_no_field_of_the_log_can_control_a_terminal_or_forge_a_line(form: str) -> None:
    """In both forms, of our own lines and those of libraries: names, values, exceptions; no local variables."""
    finished = await run(sys.executable, "-c", LOGGING, form)
    assert (finished.code, finished.stdout) == (0, "")
    lines = finished.stderr.split("\n")
    assert UNSAFE.isdisjoint("".join(lines))
    assert not any(line.startswith("forged") for line in lines)
    assert "Traceback" in finished.stderr
    assert "local-variable" not in finished.stderr
    if form == "json":
        first = json.loads(lines[0])
        assert (first["text"], first["half"]) == (f"{CONTROLS}\nforged", "\ud800")
