"""The command `headgate`: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from headgate import v1 as pb
from tests.conftest import Serve
from tests.headgate_process import Headgate
from tests.tools import Finished, headgate_serve, run

from headgate_server import __version__
from headgate_server.cli.terminal import AnswerPrinter, printable, table

WEATHER = {"function": {"name": "weather", "parametersSchema": '{"type":"object","properties":{"a":{}},"required":["a"]}'}}
NOBODY = "127.0.0.1:1"


async def headgate(*arguments: str, stdin: str = "", **environment: str) -> Finished:
    """Runs the command to its end."""
    return await run(sys.executable, "-m", "headgate_server", *arguments, stdin=stdin, env=environment)


class Terminal(io.StringIO):
    """A screen."""

    def isatty(self) -> bool:
        return True
