"""The floor: a bare grpc.aio server that echoes bytes, and streams as many messages as it is asked for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import grpc.aio

MESSAGE = b"\x0a\x06 word0h\x00"


async def echo(request: bytes, _context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    """Answers what was asked."""
    return request


async def count(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    """Writes `messages` messages, with `pause` seconds between them."""
    wish = json.loads(request)
    for number in range(wish["messages"]):
        if number and wish["pause"]:
            await asyncio.sleep(wish["pause"])
        await context.write(MESSAGE)


async def serve() -> None:
    """Serves on a free port of loopback, which it prints."""
    server = grpc.aio.server()
    behaviours: Any = {
        "Unary": grpc.unary_unary_rpc_method_handler(echo),
        "Stream": grpc.unary_stream_rpc_method_handler(count),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", behaviours),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"Echo serves 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve())
    else:
        uvloop.run(serve())
