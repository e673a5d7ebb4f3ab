"""Importing the Python client is quick, and loads nothing that is not asked for."""

from __future__ import annotations

import subprocess
import sys

BUDGET = 2.0
"""Times grpcio's own import: 150 ms of CPU where that takes 75."""
OPTIONAL = ("numpy", "pydantic", "opentelemetry", "langchain_core", "llama_index", "google.rpc.error_details_pb2")


def printed(program: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_clients_is_within_its_budget() -> None:
    """CPU time beyond grpcio's own import, protobuf included; the best of five, because machines are shared."""
    program = """
import time
began = time.process_time()
import grpc, grpc.aio
start = time.process_time()
from headgate import AsyncClient, Client
print((time.process_time() - start) / (start - began))
"""
    assert min(float(printed(program)) for _ in range(5)) < BUDGET


def test_optional_packages_are_not_loaded() -> None:
    """They are installed here, and still wait until they are used."""
    program = f"""
import sys
from headgate import AsyncClient, Client
Client("localhost:1")
print([name for name in {OPTIONAL!r} if name in sys.modules])
"""
    assert printed(program) == "[]"


def test_the_contract_alone_loads_no_client() -> None:
    """`headgate.v1` is for those who want stubs."""
    program = """
import sys
from headgate import v1
print(sorted(name for name in sys.modules if name.startswith("headgate.") and not name.startswith("headgate.v1")))
"""
    assert printed(program) == "[]"
