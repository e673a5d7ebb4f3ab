"""The example of retrieval-augmented generation runs offline, on real embeddings, through a real Headgate."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from headgate import Client, HeadgateError

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "rag"
HEADGATE = ROOT / ".venv" / "bin" / "headgate"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Headgate with the example's configuration before a real MiniLM."""
    if not HEADGATE.exists():
        pytest.skip(f"no {HEADGATE}: run `make venv`")
    port = free_port()
    minilm = subprocess.Popen(
        [sys.executable, EXAMPLE / "minilm.py", str(free_port())],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert minilm.stdout is not None
    url = minilm.stdout.readline().strip()
    headgate = subprocess.Popen(
        [HEADGATE, "serve", "--config", EXAMPLE / "headgate.yaml"],
        env={**os.environ, "MINILM_URL": url, "PORT": str(port), "HEADGATE_ADMIN_PORT": "0", "LOG_LEVEL": "error"},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield served(f"localhost:{port}")
    finally:
        for process in (headgate, minilm):
            process.kill()
            process.communicate()


def served(address: str) -> str:
    """The address, once it answers."""
    with Client(address) as client:
        for _ in range(100):
            try:
                client.health()
            except HeadgateError:
                time.sleep(0.1)
            else:
                return address
    raise AssertionError("headgate did not start")


def test_what_is_asked_is_found_and_told_to_the_model(address: str) -> None:
    """The nearest note by meaning, not by its words, comes first, and the answer is made of it."""
    question, found = "Where do pets like to rest?", "Cats sleep"
    asked = subprocess.run(
        [sys.executable, EXAMPLE / "ask.py", question],
        env={**os.environ, "HEADGATE_ADDRESS": address},
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 0, asked.stderr
    best, _, rest = asked.stdout.partition("\n")
    assert best[6:].startswith(found)
    assert found in rest.partition("Context information")[2]
    assert question in rest


def test_real_embeddings_are_of_unit_length(address: str) -> None:
    """384 numbers a row, near for what means the same."""
    with Client(address) as client:
        matrix = client.embed("minilm", ["A cat sleeps.", "The kitten is napping.", "Interest rates rose."])
    assert matrix.shape == (3, 384)
    assert (matrix**2).sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-3)
    assert matrix[0] @ matrix[1] > matrix[0] @ matrix[2] + 0.3
