"""The scripted server serves other languages as a command."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from headgate import Client, DeadlineExceeded, RateLimited, v1 as pb
from headgate.testing import Reply, ScriptedServer, read_script

SCRIPT = {
    "fast": [
        {"text": ["Hel", "lo"], "pause": 0.001},
        {
            "error": {
                "reason": "RATE_LIMITED",
                "message": "slow down",
                "retry_after": 1.5,
                "limits": [{"subject": "tenant:acme", "description": "full"}],
            }
        },
    ],
    "tools": [{"tool_calls": [{"id": "1", "name": "weather", "arguments": "{}"}]}],
    "late": [{"events": [{"generationStart": {"id": "1"}}, {"unknown": True}, {"generationEnd": {}}]}],
    "whole": [{"response": {"id": "7", "candidates": [{"message": {"role": "ROLE_ASSISTANT"}}]}}],
    "*": [{"text": "any"}],
}


async def test_the_command_serves_a_script_and_tells_of_calls(tmp_path: Path) -> None:
    """The first line is the address; each call is told when it comes and when it has ended."""
    file = tmp_path / "script.json"
    file.write_text(json.dumps(SCRIPT))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headgate.testing", "--script", str(file)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        address = json.loads(await process.stdout.readline())["address"]
        await asyncio.to_thread(_call, address)
        output, _ = await process.communicate(b"")
    lines = [json.loads(line) for line in output.splitlines()]
    calls = {line["call"]: line for line in lines if "call" in line}
    ended = {line["ended"]: line["outcome"] for line in lines if "ended" in line}
    assert process.returncode == 0
    assert [calls[number]["method"] for number in range(5)] == ["StreamGenerate", "Generate", *["StreamGenerate"] * 3]
    assert [ended[number] for number in range(5)] == ["OK", "RESOURCE_EXHAUSTED", "OK", "OK", "OK"]
    assert calls[1]["request"]["messages"] == [{"role": "ROLE_USER", "parts": [{"text": "Hi"}]}]
    assert calls[1]["metadata"]["x-request-id"] == "mine"
    assert calls[1]["timeout"] == pytest.approx(600, abs=5)


def _call(address: str) -> None:
    with Client(address) as client:
        assert "".join(client.stream("fast", "Hi").text) == "Hello"
        with pytest.raises(RateLimited) as caught:
            client.generate("fast", "Hi", request_id="mine")
        assert caught.value.retry_after == 1.5
        assert caught.value.limits[0].subject == "tenant:acme"
        assert client.stream("tools", "Hi").final().tool_calls == [pb.ToolCall(id="1", name="weather", arguments="{}")]
        assert client.stream("late", "Hi").final().proto.id == "1"
        assert client.stream("anything", "Hi").final().text == "any"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ([], "object"),
        ({"m": [{"txt": "x"}]}, "txt"),
        ({"m": [{"events": [{"nothing": {}}]}]}, r"m\[0\]"),
        ({"m": [{"error": {"code": "NONE"}}]}, "NONE"),
        ({"m": [{"tool_calls": [{"nme": "x"}]}]}, r"m\[0\]"),
    ],
)
def test_a_script_with_mistakes_is_refused_by_place(tmp_path: Path, script: Any, words: str) -> None:
    """Nothing in it is ignored."""
    file = tmp_path / "script.json"
    file.write_text(json.dumps(script))
    with pytest.raises(ValueError, match=words):
        read_script(file)


def test_pings_of_a_patient_client_are_taken(server: ScriptedServer) -> None:
    """A stream in which nothing comes ends by its deadline: gRPC's own rule breaks it off after three pings."""
    server.script("slow", Reply(text="a", hang=True))
    options = {"grpc.use_local_subchannel_pool": 1, "grpc.keepalive_time_ms": 600}
    with Client(server.address, channel_options=options) as client, pytest.raises(DeadlineExceeded):
        client.stream("slow", "Hi", timeout=4).final()
