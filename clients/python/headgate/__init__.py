"""The Python client of Headgate: one typed gRPC contract in front of every model vendor.

    from headgate import Client

    for text in Client("localhost:50051").stream("fast", "Hello").text:
        print(text, end="")

`Client` and `AsyncClient` are the same for threads and for asyncio. `headgate.v1`, mostly imported as `pb`, is the
contract itself; `headgate.errors` draws the tree of failures; `headgate.testing` serves scripted answers to your tests.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headgate import v1 as v1
    from headgate.answer import Answer as Answer
    from headgate.async_client import AsyncClient as AsyncClient, AsyncStream as AsyncStream
    from headgate.client import Client as Client, Stream as Stream
    from headgate.connection import service_config as service_config
    from headgate.content import (
        assistant as assistant,
        audio as audio,
        file as file,
        image as image,
        system as system,
        user as user,
        video as video,
    )
    from headgate.embeddings import vectors as vectors
    from headgate.errors import (
        BudgetExceeded as BudgetExceeded,
        CallFailed as CallFailed,
        DeadlineExceeded as DeadlineExceeded,
        HeadgateError as HeadgateError,
        InvalidOutput as InvalidOutput,
        InvalidRequest as InvalidRequest,
        ModelNotFound as ModelNotFound,
        RateLimited as RateLimited,
        StreamInterrupted as StreamInterrupted,
        TooManyRounds as TooManyRounds,
        Unauthenticated as Unauthenticated,
        Unavailable as Unavailable,
    )
    from headgate.tool_loop import ToolLoop as ToolLoop, ToolRun as ToolRun
    from headgate.tools import Tool as Tool, failed_result as failed_result, result_of as result_of, tool as tool

__version__ = "0.1.0"

_HOMES = {
    "answer": ["Answer"],
    "async_client": ["AsyncClient", "AsyncStream"],
    "client": ["Client", "Stream"],
    "connection": ["service_config"],
    "content": ["assistant", "audio", "file", "image", "system", "user", "video"],
    "errors": [
        "BudgetExceeded",
        "CallFailed",
        "DeadlineExceeded",
        "HeadgateError",
        "InvalidOutput",
        "InvalidRequest",
        "ModelNotFound",
        "RateLimited",
        "StreamInterrupted",
        "TooManyRounds",
        "Unauthenticated",
        "Unavailable",
    ],
    "tool_loop": ["ToolLoop", "ToolRun"],
    "tools": ["Tool", "failed_result", "result_of", "tool"],
    "embeddings": ["vectors"],
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}
__all__ = ["__version__", "v1", *sorted(_MODULES)]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Loads what is asked for: a program that needs the contract alone pays for nothing else."""
        if name == "v1":
            return import_module("headgate.v1")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"headgate.{_MODULES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
