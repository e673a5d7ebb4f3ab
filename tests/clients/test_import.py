"""Importing the Python client is quick, and loads nothing that is not asked for."""

from __future__ import annotations

import subprocess
import sys

BUDGET_MS = 150
OPTIONAL = ("numpy", "pydantic", "opentelemetry", "langchain_core", "llama_index", "google.rpc.error_details_pb2")


def printed(program: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_clients_is_within_its_budget() -> None:
    """CPU time beyond grpcio's own import, protobuf included; the best of five, because machines are shared."""
    program = """
import grpc, grpc.aio, time
start = time.process_time()
from headgate import AsyncClient, Client
print((time.process_time() - start) * 1000)
"""
    assert min(float(printed(program)) for _ in range(5)) < BUDGET_MS


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
