"""`python -m bench.clients`: what Client and AsyncClient cost beside the stubs that they stand on.

Printed are CPU-µs of the calling process per call, client and stub by turns against one scripted server in another
process, and the median of their ratios. A stub call is what a program without the client would write: it builds the
same request, has a deadline, a bearer token and a request id, and joins a stream's text. A stream has 64 deltas.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from statistics import median

import grpc
import grpc.aio
from headgate import AsyncClient, Client, v1 as pb

DELTAS = 64
TEXT = "Say what a call costs. " * 30
SCRIPT = {"plain": [{"text": TEXT}], "stream": [{"text": ["word "] * DELTAS}], "embed": [{"dimensions": 1536}]}
INPUTS = ["something to embed"] * 100
METADATA = (("authorization", "Bearer k"), ("x-request-id", "0123456789abcdef"))
TIMEOUT = 60.0

Step = Callable[[], object]
AsyncStep = Callable[[], Awaitable[object]]


@contextmanager
def scripted_server() -> Iterator[str]:
    """The address of a scripted server in another process."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as script:
        json.dump(SCRIPT, script)
        script.flush()
        command = [sys.executable, "-m", "headgate.testing", "--script", script.name, "--quiet"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["address"]
            process.stdin.close()


def generate_request(model: str) -> pb.GenerateRequest:
    message = pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text=TEXT)])
    return pb.GenerateRequest(model=model, messages=[message], config=pb.GenerationConfig(temperature=0.5))


def embed_request() -> pb.EmbedRequest:
    return pb.EmbedRequest(model="embed", inputs=[pb.EmbedInput(text=text) for text in INPUTS])


def sync_steps(client: Client, stub: pb.InferenceServiceStub) -> dict[str, tuple[Step, Step]]:
    """Each kind of call by the stub and by the client."""

    def stream_by_stub() -> str:
        events = stub.StreamGenerate(generate_request("stream"), timeout=TIMEOUT, metadata=METADATA)
        return "".join([event.text_delta for event in events if event.text_delta])

    return {
        "unary": (
            lambda: stub.Generate(generate_request("plain"), timeout=TIMEOUT, metadata=METADATA),
            lambda: client.generate("plain", TEXT, temperature=0.5),
        ),
        "stream": (stream_by_stub, lambda: "".join(client.stream("stream", TEXT, temperature=0.5).text)),
        "embed": (
            lambda: stub.Embed(embed_request(), timeout=TIMEOUT, metadata=METADATA),
            lambda: client.embed_response("embed", INPUTS),
        ),
    }


def async_steps(client: AsyncClient, stub: pb.InferenceServiceAsyncStub) -> dict[str, tuple[AsyncStep, AsyncStep]]:
    """The same for asyncio."""

    async def unary_by_stub() -> pb.GenerateResponse:
        return await stub.Generate(generate_request("plain"), timeout=TIMEOUT, metadata=METADATA)

    async def stream_by_stub() -> str:
        events = stub.StreamGenerate(generate_request("stream"), timeout=TIMEOUT, metadata=METADATA)
        return "".join([event.text_delta async for event in events if event.text_delta])

    async def stream_by_client() -> str:
        return "".join([text async for text in client.stream("stream", TEXT, temperature=0.5).text])

    async def embed_by_stub() -> pb.EmbedResponse:
        return await stub.Embed(embed_request(), timeout=TIMEOUT, metadata=METADATA)

    return {
        "unary": (unary_by_stub, lambda: client.generate("plain", TEXT, temperature=0.5)),
        "stream": (stream_by_stub, stream_by_client),
        "embed": (embed_by_stub, lambda: client.embed_response("embed", INPUTS)),
    }


def cpu(step: Step, calls: int) -> float:
    """CPU-µs of a call."""
    start = time.process_time()
    for _ in range(calls):
        step()
    return (time.process_time() - start) / calls * 1e6


async def cpu_async(step: AsyncStep, calls: int) -> float:
    """CPU-µs of a call."""
    start = time.process_time()
    for _ in range(calls):
        await step()
    return (time.process_time() - start) / calls * 1e6


def show(name: str, pairs: list[tuple[float, float]]) -> None:
    stub, client = (median(values) for values in zip(*pairs, strict=True))
    ratio = median(client / stub for stub, client in pairs)
    print(f"{name:<16}{stub:>10.0f}{client:>10.0f}{ratio - 1:>+10.1%}")


async def measure_async(address: str, rounds: int, calls: int) -> None:
    async with AsyncClient(address, api_key="k") as client, grpc.aio.insecure_channel(address) as channel:
        for name, (by_stub, by_client) in async_steps(client, pb.InferenceServiceStub(channel)).items():
            await cpu_async(by_stub, calls)
            await cpu_async(by_client, calls)
            show(
                f"async {name}",
                [(await cpu_async(by_stub, calls), await cpu_async(by_client, calls)) for _ in range(rounds)],
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.clients", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--calls", type=int, default=30, help="in each round: short ones find both in the same weather")
    arguments = parser.parse_args()
    print(f"{'CPU-µs per call':<16}{'stub':>10}{'client':>10}{'overhead':>10}")
    with scripted_server() as address:
        with Client(address, api_key="k") as client, grpc.insecure_channel(address) as channel:
            for name, (by_stub, by_client) in sync_steps(client, pb.InferenceServiceStub(channel)).items():
                cpu(by_stub, arguments.calls)
                cpu(by_client, arguments.calls)
                pairs = [
                    (cpu(by_stub, arguments.calls), cpu(by_client, arguments.calls)) for _ in range(arguments.rounds)
                ]
                show(f"sync {name}", pairs)
        asyncio.run(measure_async(address, arguments.rounds, arguments.calls))


if __name__ == "__main__":
    main()
