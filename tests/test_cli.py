"""The command `headgate`: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from headgate import v1 as pb

from headgate_server import __version__
from headgate_server.cli.terminal import AnswerPrinter, table
from headgate_server.printing import printable
from tests.conftest import Serve
from tests.headgate_process import Headgate
from tests.tools import Finished, headgate_serve, run

COMMAND = (sys.executable, "-m", "headgate_server")
NOBODY = "127.0.0.1:1"
EARLIER = {"role": "ROLE_USER", "parts": [{"text": "Earlier"}]}
WEATHER = {"function": {"name": "weather", "parametersSchema": '{"type":"object","required":["city"]}'}}


async def command(*arguments: str, stdin: str = "", **environment: str) -> Finished:
    """Runs the command to its end."""
    return await run(*COMMAND, *arguments, stdin=stdin, env=environment)


async def call(headgate: Headgate, *arguments: str, stdin: str = "") -> Finished:
    """Runs `headgate call` against a server."""
    return await command("call", "--address", headgate.address, *arguments, stdin=stdin)


@pytest.fixture
async def failing_server(serve: Serve) -> AsyncIterator[Headgate]:
    """A server whose every stream breaks after two words, and whose answers otherwise take a minute."""
    breaking = {"failures": [{"reset_after": 3, "every": 1}]}
    async with serve(
        providers={
            "breaks": {"adapter": "mock", "mock": breaking},
            "slow": {"adapter": "mock", "mock": {"delay": 60}},
        }
    ) as headgate:
        yield headgate


async def test_help_lists_commands_and_exit_codes() -> None:
    """With nothing to do, it says what it can do."""
    for arguments in ((), ("--help",)):
        shown = await command(*arguments)
        assert shown.code == 0
        assert all(name in shown.stdout for name in ("serve", "check-config", "models", "call", "health", "version"))
        assert "2 usage or" in shown.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("sevre",),
        ("models", "--jsno"),
        ("call", "--deadline", "soon", "--model", "echo", "Hi"),
        ("call", "Hi"),
        ("call", "--model", "echo"),
        ("call", "--data", "{", "Hi"),
        ("call", "--data", '{"modle": "echo"}', "Hi"),
        ("call", "--data", "@nope.json"),
        ("call", "--model", "echo", "--header", "no colon", "Hi"),
        ("call", "--model", "echo", "--header", "key-bin: x", "Hi"),
    ],
)
async def test_wrong_usage_is_explained_and_exits_2(arguments: tuple[str, ...]) -> None:
    """On standard error, before anybody is called."""
    shown = await command(*arguments, HEADGATE_ADDRESS=NOBODY)
    assert (shown.code, shown.stdout) == (2, "")
    assert shown.stderr
    assert "Traceback" not in shown.stderr


async def test_version_names_what_it_stands_on() -> None:
    """As lines, as JSON, and as the usual option."""
    assert f"headgate {__version__}\ncontract headgate.v1\ngrpcio " in (await command("version")).stdout
    assert (await command("--version")).stdout == f"{__version__}\n"
    found = json.loads((await command("version", "--json")).stdout)
    assert found["headgate"] == __version__
    assert set(found) == {"headgate", "contract", "grpcio", "protobuf", "python"}


async def test_check_config_says_what_would_be_served(tmp_path: Path) -> None:
    """By argument or by HEADGATE_CONFIG."""
    file = tmp_path / "headgate.yaml"
    file.write_text("providers: {mine: {adapter: mock}}\n")
    shown = await command("check-config", str(file))
    assert (shown.code, shown.stdout) == (0, "ok: mine on 127.0.0.1:50051; aliases: none\n")
    found = json.loads((await command("check-config", "--json", HEADGATE_CONFIG=str(file), PORT="1")).stdout)
    assert found == {"ok": True, "problems": [], "listen": "127.0.0.1:1", "providers": ["mine"], "models": []}


async def test_check_config_and_serve_print_every_problem_and_exit_2(tmp_path: Path) -> None:
    """Both say the same, a line for each."""
    file = tmp_path / "headgate.yaml"
    file.write_text("server: {listen: nowhere}\nproviders: {opnai: {}}\n")
    problems = [
        f"{file}:1: server.listen: must be HOST:PORT, such as 127.0.0.1:50051",
        f"{file}:2: providers.opnai.adapter: is required, because opnai is not a known host; did you mean openai?",
    ]
    for arguments in (("check-config", str(file)), ("serve", "--config", str(file))):
        shown = await command(*arguments)
        assert (shown.code, shown.stdout) == (2, "")
        assert shown.stderr.splitlines() == problems
    found = await command("check-config", str(file), "--json")
    assert found.code == 2
    assert [problem["line"] for problem in json.loads(found.stdout)["problems"]] == [1, 2]
    assert set(json.loads(found.stdout)["problems"][0]) == {"file", "line", "key", "reason"}


async def test_serve_at_an_address_in_use_is_one_line(tmp_path: Path) -> None:
    """Not a traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        shown = await command("serve", PORT=str(taken.getsockname()[1]))
    assert shown.code == 2
    assert "error: cannot listen on 127.0.0.1:" in shown.stderr
    assert "Traceback" not in shown.stderr


async def test_the_call_that_serve_prints_works() -> None:
    """A first answer is one paste away."""
    async with headgate_serve() as headgate:
        words = headgate.welcome[-1].split()
        assert words[:2] == ["headgate", "call"]
        shown = await command(*words[1:])
        await headgate.stop()
    assert (shown.code, shown.stdout) == (0, "Hello\n")


async def test_call_prints_the_text_of_the_answer(demo: Headgate) -> None:
    """Streamed or not, the words of the prompt joined by spaces."""
    for options in ((), ("--unary",)):
        shown = await call(demo, "--model", "demo/echo", *options, "Hello", "there")
        assert (shown.code, shown.stdout, shown.stderr) == (0, "Hello there\n", "")


async def test_call_prints_events_as_json_lines(demo: Headgate) -> None:
    """Each line is an event of the contract."""
    shown = await call(demo, "-m", "demo/echo", "--json", "Hi")
    events = [json_format.Parse(line, pb.StreamGenerateResponse()) for line in shown.stdout.splitlines()]
    assert events[0].HasField("generation_start")
    assert "".join(event.text_delta for event in events) == "Hi"
    assert events[-1].generation_end.usage.output_tokens == 1


async def test_call_prints_a_whole_answer_as_one_json_line(demo: Headgate) -> None:
    """With --unary."""
    (line,) = (await call(demo, "-m", "demo/echo", "--json", "--unary", "Hi")).stdout.splitlines()
    answer = json_format.Parse(line, pb.GenerateResponse())
    assert answer.candidates[0].message.parts[0].text == "Hi"


async def test_call_takes_a_request_from_text_file_and_standard_input(demo: Headgate, tmp_path: Path) -> None:
    """--model and a prompt change what --data holds."""
    request = json.dumps({"model": "demo/tools", "tools": [WEATHER], "messages": [EARLIER]})
    file = tmp_path / "request.json"
    file.write_text(request)
    for data, stdin in ((request, ""), (f"@{file}", ""), ("@", request)):
        shown = await call(demo, "-d", data, "Weather?", stdin=stdin)
        assert (shown.code, shown.stdout) == (0, 'weather({"city":"city"})\n'), shown.stderr
    assert (await call(demo, "-d", request, "-m", "demo/echo", "Hi")).stdout == "Hi\n"


async def test_call_explains_a_failure_and_exits_1(demo: Headgate) -> None:
    """Code, reason, message, what is wrong with which field, and the request id that --header gave."""
    shown = await call(demo, "--header", "X-Request-Id: abc-1", "-d", '{"model": "demo/echo"}')
    assert (shown.code, shown.stdout) == (1, "")
    lines = shown.stderr.splitlines()
    assert lines[0].startswith("error: INVALID_ARGUMENT INVALID_REQUEST: ")
    assert lines[1].startswith("  messages: ")
    assert lines[-1] == "  request id: abc-1"


async def test_call_explains_a_failure_as_json(demo: Headgate) -> None:
    """On standard error, so that standard output holds events alone."""
    shown = await call(demo, "--json", "--header", "x-request-id:abc-1", "-m", "nobody/x", "Hi")
    assert (shown.code, shown.stdout) == (1, "")
    error = json.loads(shown.stderr)["error"]
    assert (error["code"], error["reason"], error["request_id"]) == ("NOT_FOUND", "MODEL_NOT_FOUND", "abc-1")


async def test_a_broken_stream_shows_what_came_and_exits_1(failing_server: Headgate) -> None:
    """The words that arrived, and then the reason."""
    shown = await call(failing_server, "-m", "breaks/echo", "one two three four")
    assert (shown.code, shown.stdout) == (1, "one two\n")
    assert "error: ABORTED STREAM_INTERRUPTED: " in shown.stderr


async def test_a_deadline_ends_the_call(failing_server: Headgate) -> None:
    """In seconds; the server's call ends too."""
    shown = await call(failing_server, "-m", "slow/echo", "--deadline", "0.3", "Hi")
    assert shown.code == 1
    assert "error: DEADLINE_EXCEEDED" in shown.stderr
    assert await failing_server.idle()


@pytest.mark.parametrize("options", [(), ("--unary",)])
async def test_an_interrupt_cancels_the_call_and_exits_130(failing_server: Headgate, options: tuple[str, ...]) -> None:
    """Control-C reaches the server."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("call", "--address", failing_server.address, "-m", "slow/echo", *options, "Hi"),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        while not len(failing_server.application.calls):
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
    assert (process.returncode, stderr) == (130, b"")
    assert await failing_server.idle()


async def test_an_interrupt_that_the_shell_ignores_is_ignored(failing_server: Headgate) -> None:
    """As behind nohup: the call goes on to its deadline."""
    command = " ".join(map(shlex.quote, COMMAND))
    given = f"call --address {failing_server.address} -m slow/echo --deadline 2 Hi"
    process = await asyncio.create_subprocess_exec("sh", "-c", f"trap '' INT; exec {command} {given}")
    async with asyncio.timeout(30):
        while not len(failing_server.application.calls):
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 1


async def test_the_second_interrupt_ends_a_command_that_nobody_reads(serve: Serve) -> None:
    """The first waits for what it prints."""
    reading, writing = os.pipe()
    text = "word " * 20_000
    async with serve(providers={"demo": {"adapter": "mock"}}) as headgate:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "call", "--address", headgate.address, "-m", "demo/echo", text, stdout=writing
        )
        os.close(writing)
        async with asyncio.timeout(30):
            await asyncio.to_thread(os.read, reading, 1)
            while process.returncode is None:
                process.send_signal(signal.SIGINT)
                await asyncio.sleep(0.5)
    os.close(reading)
    assert process.returncode == 130


@pytest.mark.parametrize("arguments", [("models",), ("health",), ("call", "-m", "echo", "Hi")])
async def test_an_unreachable_server_exits_3(arguments: tuple[str, ...]) -> None:
    """Which is told apart from a call that the gateway refused."""
    shown = await command(*arguments, HEADGATE_ADDRESS=NOBODY)
    assert (shown.code, shown.stdout) == (3, "")
    assert shown.stderr.startswith(f"error: UNAVAILABLE: {NOBODY}: ")
    found = await command(*arguments, "--json", HEADGATE_ADDRESS=NOBODY)
    assert (found.code, json.loads(found.stderr)["error"]["code"]) == (3, "UNAVAILABLE")


async def test_models_lists_all_pages(serve: Serve) -> None:
    """More than a page of the server's default size."""
    names = [f"model-{number:03}" for number in range(150)]
    async with serve(providers={"demo": {"adapter": "mock", "models": names}}) as headgate:
        shown = await command("models", "--address", headgate.address)
        found = await command("models", "--address", headgate.address, "--json")
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["MODEL", *(f"demo/{name}" for name in names)]
    models = json_format.Parse(found.stdout, pb.ListModelsResponse()).models
    assert [model.name for model in models] == [f"demo/{name}" for name in names]


async def test_health_shows_the_server_and_its_providers(demo: Headgate) -> None:
    """As a table and as the contract's JSON."""
    await call(demo, "-m", "demo/echo", "Hi")
    shown = await command("health", "--address", demo.address)
    assert shown.code == 0
    assert shown.stdout.startswith(f"serving: version {__version__}, since ")
    assert shown.stdout.splitlines()[-1].split()[:4] == ["demo", "serving", "1", "100.0%"]
    found = await command("health", "--address", demo.address, "--json")
    assert json_format.Parse(found.stdout, pb.HealthResponse()).providers[0].total_calls == 1


async def test_health_of_a_draining_server_exits_1(serve: Serve) -> None:
    """A script can wait on it."""
    hurry = asyncio.Event()
    async with serve(providers={"demo": {"adapter": "mock"}}) as headgate:
        draining = asyncio.create_task(headgate.application.stop(delay=30, grace=30, hurry=hurry))
        await asyncio.sleep(0)
        shown = await command("health", "--address", headgate.address)
        hurry.set()
        await draining
    assert (shown.code, shown.stdout.split(":")[0]) == (1, "draining")


async def test_a_model_cannot_control_the_terminal(demo: Headgate) -> None:
    """Escape sequences are written out on a terminal, and left alone in a pipe."""
    attack = "\x1b]0;title\x07 \x9b31m red\r\tend"
    assert (await call(demo, "-m", "demo/echo", attack)).stdout == f"{attack}\n"
    leader, follower = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *("call", "--address", demo.address, "-m", "demo/echo", attack), stdout=follower
    )
    assert await process.wait() == 0
    os.close(follower)
    assert os.read(leader, 4096).decode() == "\\x1b]0;title\\x07 \\x9b31m red\\x0d\tend\r\n"
    os.close(leader)


async def test_a_reader_that_leaves_early_is_no_error(serve: Serve) -> None:
    """`headgate call … | head` ends quietly."""
    async with serve(providers={"demo": {"adapter": "mock", "mock": {"tokens_per_second": 300}}}) as headgate:
        words = f"{sys.executable} -m headgate_server call --address {headgate.address} -m demo/lorem Go"
        shown = await run("sh", "-c", f"{words} | head -c 5")
    assert (shown.stdout, shown.stderr) == ("lorem", "")


def printed(*events: dict[str, Any]) -> str:
    """What a stream of these events prints."""
    out = io.StringIO()
    printer = AnswerPrinter(out)
    for event in events:
        printer.event(json_format.ParseDict(event, pb.StreamGenerateResponse()))
    printer.end_line()
    return out.getvalue()


def test_interleaved_calls_are_printed_whole() -> None:
    """Each on its own line when it is complete, after the text before it."""
    assert (
        printed(
            {"partStart": {"part": {"text": "Let me "}}},
            {"textDelta": "see"},
            {"partStart": {"part": {"toolCall": {"name": "a"}}}, "partIndex": 1},
            {"partStart": {"part": {"toolCall": {"name": "b"}}}, "partIndex": 2},
            {"argumentsDelta": '{"x"', "partIndex": 1},
            {"argumentsDelta": "{}", "partIndex": 2},
            {"partEnd": {}, "partIndex": 2},
            {"argumentsDelta": ":1}", "partIndex": 1},
            {"partEnd": {}, "partIndex": 1},
            {"partStart": {"part": {"toolCall": {"name": "c", "arguments": "{}"}}, "complete": True}, "partIndex": 3},
        )
        == 'Let me see\nb({})\na({"x":1})\nc({})\n'
    )


def test_other_candidates_thinking_and_unknown_events_are_passed_over() -> None:
    """Only the first answer is text on the screen."""
    assert (
        printed(
            {"reasoningDelta": "hm"},
            {"textDelta": "other", "candidateIndex": 1},
            {},
            {"refusalDelta": "No."},
            {"partStart": {"part": {"media": {"mimeType": "image/png"}}, "complete": True}, "partIndex": 1},
        )
        == "No.\n[image/png]\n"
    )


def test_warnings_and_unusual_ends_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A cut answer does not pass for a whole one."""
    warning = {"code": "unsupported-parameter", "field": "config.top_k", "message": "dropped"}
    shown = printed(
        {"generationStart": {"warnings": [warning]}},
        {"textDelta": "Once"},
        {"candidateEnd": {"finish": {"reason": "FINISH_REASON_MAX_TOKENS"}}},
    )
    assert shown == "Once\n"
    assert capsys.readouterr().err == "warning: config.top_k: dropped\nfinish: max tokens\n"


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0)])
def test_control_characters_are_written_out(code: int) -> None:
    """All of C0, DEL and C1 but tab and line feed."""
    kept = chr(code) in "\t\n"
    assert printable(f"a{chr(code)}é") == ("a" + (chr(code) if kept else f"\\x{code:02x}") + "é")


def test_a_table_is_as_wide_as_its_widest_cells() -> None:
    """And a cell cannot break its row."""
    assert table(("A", "B"), [("long", "x"), ("y\nz", "\x1b")]) == "A     B\nlong  x\ny z   \\x1b"
