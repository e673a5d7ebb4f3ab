"""The TypeScript and Go clients: their own suites against the scripted server, and TLS against a real Headgate."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.clients.programs import GO, TYPESCRIPT, run_go, run_typescript
from tests.headgate_process import running
from tests.identity.callers import MOCK, PEPPER, static_key
from tests.tools import node_packages, program, run

pytestmark = pytest.mark.xdist_group("typescript")  # one at a time builds the TypeScript client
ENVIRONMENT = {"HEADGATE_PYTHON": sys.executable, "HEADGATE_ADDRESS": "", "HEADGATE_API_KEY": ""}


async def test_the_typescript_client_keeps_its_rules() -> None:
    """Its suite: types by `tsc --strict`, then node:test."""
    npm = program("npm", "npm")
    node_packages()
    finished = await run(npm, "test", "--prefix", str(TYPESCRIPT), env=ENVIRONMENT)
    assert finished.code == 0, finished.stdout + finished.stderr
    assert "# skipped 0" in finished.stdout


async def test_the_go_client_keeps_its_rules() -> None:
    """Its suite, by `go test`."""
    go = program("go", "golang")
    finished = await run(go, "test", "-C", str(GO), "-count=1", "-v", "./...", env=ENVIRONMENT)
    assert finished.code == 0, finished.stdout + finished.stderr
    assert "--- SKIP" not in finished.stdout


TYPESCRIPT_TLS = """
import { Client, ServerUnreachable } from "@headgate/client";
import { readFileSync } from "node:fs";

const [ca, cert, key] = ["ca", "own.pem", "own.key"].map((name) => readFileSync(name));
const client = new Client(undefined, { tls: { ca, cert, key }, apiKey: process.env.KEY });
console.log((await client.generate("demo/echo", "let in")).text);
const stranger = new Client(undefined, { tls: { ca }, apiKey: process.env.KEY });
await stranger.generate("demo/echo", "Hi", { timeoutMs: 5000 }).catch((error: unknown) => {
  console.log(error instanceof ServerUnreachable);
});
"""
GO_TLS = """
answer, err := client.Generate(ctx, headgate.Ask("demo/echo", "let in"))
if err != nil {
	return err
}
fmt.Println(answer.Text())
stranger, err := headgate.New("", headgate.WithTLSFiles("ca", "", ""), headgate.WithAPIKey(os.Getenv("KEY")))
if err != nil {
	return err
}
_, err = stranger.Generate(ctx, headgate.Ask("demo/echo", "Hi"))
var unreachable *headgate.ServerUnreachable
fmt.Println(errors.As(err, &unreachable))
"""
GO_TLS_CONNECT = """
client, err := headgate.New(
	"", headgate.WithTLSFiles("ca", "own.pem", "own.key"), headgate.WithAPIKey(os.Getenv("KEY")),
)
"""


@pytest.mark.parametrize("language", ["typescript", "go"])
async def test_mutual_tls_and_a_key_let_in(language: str, tmp_path: Path) -> None:
    """A server that asks for certificates and keys is reached with both, and not without a certificate."""
    authority = Authority()
    server, own = authority.server(), authority.client()
    key, keys = static_key()
    pems = {"ca": authority.certificate, "cert": server.certificate, "key": server.key}
    for name, pem in {**pems, "own.pem": own.certificate, "own.key": own.key}.items():
        (tmp_path / name).write_bytes(pem)
    files = {"certificate_file": "cert", "key_file": "key", "client_ca_file": "ca"}
    tls = {setting: str(tmp_path / name) for setting, name in files.items()}
    async with running(server={"tls": tls}, auth={"pepper": PEPPER, "keys": keys}, providers=MOCK) as headgate:
        env = {"HEADGATE_ADDRESS": headgate.address, "KEY": key.text}
        if language == "typescript":
            output = await run_typescript({}, TYPESCRIPT_TLS, tmp_path, env)
        else:
            output = await run_go({"TLS": GO_TLS}, GO_TLS_CONNECT, tmp_path, env)
    assert output.split()[-3:] == ["let", "in", "true"]
