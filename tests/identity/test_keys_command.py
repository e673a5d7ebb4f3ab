"""`headgate keys`: secrets are shown once, and servers follow."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import yaml
from headgate import v1 as pb

from headgate_server.identity.keys import new_key
from tests.conftest import Serve
from tests.headgate_process import ask, failing
from tests.identity.callers import MOCK, PEPPER, bearer, who
from tests.tools import Finished, grpcurl, headgate_serve, run

KEY = re.compile(r"hg_[0-9A-Za-z]{12}_[0-9A-Za-z]{49}")
SERVICE = "headgate.v1.InferenceService"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with a store of SQLite beside it."""
    return written(tmp_path / "headgate.yaml", url="sqlite:///keys.db")


@pytest.fixture
def unmigrated(tmp_path: Path) -> Path:
    """The same, where servers leave the tables alone."""
    return written(tmp_path / "headgate.yaml", url="sqlite:///keys.db", migrate=False)


def written(file: Path, **store: Any) -> Path:
    """A configuration with this store, in that file."""
    auth = {"pepper": PEPPER, "store": store}
    file.write_text(json.dumps({"server": {"reflection": True}, "auth": auth, "providers": MOCK}))
    return file


async def keys(config: Path, *arguments: str) -> Finished:
    """Runs `headgate keys` to its end."""
    return await run(sys.executable, "-m", "headgate_server", "keys", *arguments, env={"HEADGATE_CONFIG": str(config)})


async def test_a_key_lives_by_command(config: Path) -> None:
    """Made, used by grpcurl and the stubs, rotated, and revoked while a server of its own process runs."""
    made = await keys(config, "create", "--tenant", "acme", "--allow-model", "demo/*", "--expires-in", "90d")
    assert (made.code, KEY.fullmatch(made.stdout.strip()) is not None) == (0, True)
    key = made.stdout.strip()
    assert key not in made.stderr
    async with headgate_serve("--config", str(config)) as headgate:
        request = {"model": "demo/echo", "messages": [{"role": "ROLE_USER", "parts": [{"text": "Hi"}]}]}
        option = ("-H", f"authorization: Bearer {key}")
        assert (await grpcurl(headgate.address, f"{SERVICE}/Generate", request, *option)).code == 0
        name = key.split("_")[1]
        rotated = json.loads((await keys(config, "rotate", name, "--grace", "1h", "--json")).stdout)
        assert rotated["previous_expires_in_seconds"] == 3600
        assert (await keys(config, "revoke", name)).stdout == f"{name} is revoked\n"
        async with grpc.aio.insecure_channel(headgate.address) as channel:
            stub = pb.InferenceServiceStub(channel)
            for secret in (key, rotated["key"]):
                refused = await _refused_in_time(stub, secret)
                assert refused == "INVALID_CREDENTIALS"
        shown = await grpcurl(headgate.address, f"{SERVICE}/Generate", request, *option)
        assert "INVALID_CREDENTIALS" in shown.stderr
        finished = await headgate.stop()
    assert key not in finished.stderr + finished.stdout
    with closing(sqlite3.connect(config.parent / "keys.db")) as database:
        kinds = [kind for (kind,) in database.execute("SELECT kind FROM headgate_security_events ORDER BY id")]
    assert [kind for kind in kinds if kind.startswith("key_")] == ["key_created", "key_rotated", "key_revoked"]
    assert "login_failed" in kinds


async def _refused_in_time(stub: Any, secret: str) -> str:
    """How a call with the key fails, within the five seconds that a revocation may take."""
    async with asyncio.timeout(5):
        while True:
            try:
                await stub.Generate(ask("demo/echo"), metadata=bearer(secret))
            except grpc.aio.AioRpcError:
                return (await failing(stub.Generate(ask("demo/echo"), metadata=bearer(secret)))).reason
            await asyncio.sleep(0.05)


async def test_list_shows_keys_and_no_secrets(config: Path) -> None:
    """As a table, and as JSON with all that a key entitles to; of one tenant on request."""
    options = (
        "--tenant",
        "acme",
        "--name",
        "search",
        "--role",
        "admin",
        "--limits",
        '[{"unit": "requests", "limit": 5, "window": 60}]',
        "--budgets",
        '[{"amount": 20, "period": "month"}]',
    )
    first = json.loads((await keys(config, "create", *options, "--json")).stdout)
    second = json.loads((await keys(config, "create", "--tenant", "other", "--json")).stdout)
    table = (await keys(config, "list")).stdout
    assert [line.split()[0] for line in table.splitlines()] == ["ID", first["id"], second["id"]]
    shown = json.loads((await keys(config, "list", "--tenant", "acme", "--json")).stdout)["keys"]
    assert [(key["id"], key["state"], key["roles"], key["limits"]) for key in shown] == [
        (first["id"], "active", ["admin"], [{"unit": "requests", "limit": 5, "window": 60.0}])
    ]
    assert shown[0]["budgets"] == [{"amount": "20", "period": "month"}]
    for output in (table, json.dumps(shown)):
        assert not re.search(r"[0-9a-f]{64}", output)
        assert KEY.search(output) is None


async def test_a_static_key_is_printed_with_its_lines_of_configuration(config: Path, serve: Serve) -> None:
    """Which let it in once they are pasted; nothing is kept anywhere."""
    made = await keys(config, "create", "--static", "--tenant", "acme", "--expires-in", "12h")
    entry = yaml.safe_load(made.stderr.partition("The key")[0])["auth"]["keys"]
    auth = {"anonymous": False, "pepper": PEPPER, "keys": entry}
    async with serve(providers=MOCK, auth=auth) as headgate:
        assert (await who(headgate, bearer(made.stdout.strip()))).candidates
    assert not (config.parent / "keys.db").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("create",), 2, "--tenant"),
        (("create", "--tenant", ""), 2, "--tenant: must be printable text"),
        (("create", "--tenant", "a", "--expires-in", "soon"), 2, "--expires-in: must be a time such as 90d"),
        (("create", "--tenant", "a", "--limits", "{}"), 2, "--limits: Input should be a valid array"),
        (("create", "--tenant", "a", "--budgets", '[{"amount": 1}]'), 2, "--budgets: 0.period: Field required"),
        (("rotate", new_key().id), 1, "there is no key"),
        (("revoke", new_key().id), 1, "there is no key"),
        (("revoke",), 2, "requires an arg"),
    ],
)
async def test_what_cannot_be_done_is_one_line(
    config: Path, arguments: tuple[str, ...], code: int, problem: str
) -> None:
    """With its exit code, and no trace."""
    shown = await keys(config, *arguments)
    assert (shown.code, shown.stdout) == (code, "")
    assert problem in shown.stderr
    assert "Traceback" not in shown.stderr


async def test_a_store_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """Not configured, or not reachable; the database's password is not shown."""
    none = tmp_path / "none.yaml"
    none.write_text(json.dumps({"providers": MOCK}))
    assert "the configuration has no auth.store" in (await keys(none, "list")).stderr
    url = "postgresql://headgate:password-of-the-database@127.0.0.1:1/headgate"
    gone = written(tmp_path / "gone.yaml", url=url)
    shown = await keys(gone, "list")
    assert (shown.code, shown.stdout) == (1, "")
    assert "error: the key store: " in shown.stderr
    assert "password-of-the-database" not in shown.stderr
    assert "Traceback" not in shown.stderr


async def test_tables_can_be_made_by_command_alone(unmigrated: Path) -> None:
    """For operators whose servers may not change a schema: `migrate` makes them once, and again does nothing."""
    assert (await keys(unmigrated, "list")).code == 1
    for _ in range(2):
        assert (await keys(unmigrated, "migrate")).stdout == "the tables are current\n"
    assert (await keys(unmigrated, "list")).code == 0
