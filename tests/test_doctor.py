"""`headgate doctor`: what is not well is found before callers find it, and it is said what to do."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.redis_server import redis_server
from tests.tools import Finished, run
from tests.vendor import Exchange, Vendor

MOCK = {"demo": {"adapter": "mock"}}
PEPPER = "x" * 32
Found = Sequence[Mapping[str, Any]]


async def doctor(folder: Path, *options: str, **sections: Any) -> Finished:
    """Runs it with this configuration."""
    file = folder / "headgate.yaml"
    file.write_text(json.dumps({"auth": {"anonymous": True}, "providers": MOCK, **sections}))
    return await run(sys.executable, "-m", "headgate_server", "doctor", str(file), *options)


async def findings(folder: Path, **sections: Any) -> tuple[int, Mapping[str, Found]]:
    """The exit code, and what it found, by what was looked at."""
    shown = await doctor(folder, "--json", **sections)
    assert shown.stderr == ""
    answer = json.loads(shown.stdout)
    assert answer["ok"] is (shown.code == 0)
    found = defaultdict(list)
    for finding in answer["findings"]:
        found[finding["check"]].append(finding)
    return shown.code, found


async def models_listed(exchange: Exchange) -> None:
    """A vendor that knows one key, and whose clock is an hour late."""
    right = exchange.headers["authorization"] == "Bearer right"
    late = {"date": formatdate(time.time() - 3600, usegmt=True)}
    await exchange.answer(200 if right else 401, {"data": []} if right else {"error": {"message": "no"}}, late)


async def test_all_is_well_without_a_vendor_a_database_or_redis(tmp_path: Path) -> None:
    """Exit code 0, one line for each thing that was looked at, and nothing to do."""
    shown = await doctor(tmp_path, server={"max_connections": 100})
    lines = shown.stdout.splitlines()
    assert (shown.code, shown.stderr) == (0, "")
    assert lines[0].split() == ["STATE", "CHECK", "OF", "FOUND"]
    assert [line.split()[0] for line in lines[1:]] == ["ok"] * 3
    assert "What to do" not in shown.stdout


async def test_vendors_keys_and_clocks(tmp_path: Path) -> None:
    """A key that is refused, a vendor that is not there, and a clock that is not ours; no key is printed."""
    async with Vendor(models_listed) as vendor:
        at = {"adapter": "openai", "base_url": vendor.base_url}
        providers = {
            "well": {**at, "api_key": "right"},
            "refused": {**at, "api_key": "a-wrong-key"},
            "gone": {"adapter": "openai", "base_url": "http://127.0.0.1:1/v1"},
        }
        code, looked = await findings(tmp_path, providers=providers)
        for_people = await doctor(tmp_path, providers=providers)
    found, clocks = looked["vendor"], looked["clock"]
    states = {finding["subject"]: finding["state"] for finding in found}
    details = {finding["subject"]: finding["detail"] for finding in found}
    advice = {finding["subject"]: finding["advice"] for finding in found}
    assert code == for_people.code == 1
    assert states == {"well": "ok", "refused": "failed", "gone": "failed"}
    assert details["refused"].startswith("PROVIDER_CREDENTIALS_REJECTED")
    assert "replace its api_key" in advice["refused"]
    assert "HTTPS_PROXY" in advice["gone"]
    assert [(clock["subject"], clock["state"]) for clock in clocks] == [("well", "warning")]
    assert re.search(r"36\d\d s ahead of it", clocks[0]["detail"])
    assert "- vendor, refused: replace its api_key" in for_people.stdout
    assert "a-wrong-key" not in for_people.stdout + str(found)


async def test_redis(tmp_path: Path) -> None:
    """There, and gone."""
    with redis_server() as server:
        limits = {"store": {"type": "redis", "url": server.url, "timeout": 5}}
        code, found = await findings(tmp_path, limits=limits)
        assert (code, found["redis"][0]["state"], found["clock"][0]["state"]) == (0, "ok", "ok")
        server.kill()
        code, found = await findings(tmp_path, limits=limits)
    assert (code, found["redis"][0]["state"]) == (1, "failed")
    assert "counts by itself" in found["redis"][0]["advice"]


async def test_the_database_is_looked_at_and_left_alone(tmp_path: Path) -> None:
    """Its tables are missing where an operator migrates, and current once that is done; no file is made by looking."""
    auth = {"pepper": PEPPER, "store": {"url": "sqlite:///keys.db", "migrate": False}}
    code, found = await findings(tmp_path, auth=auth)
    (store,) = found["database"]
    assert (code, store["state"], store["advice"]) == (1, "failed", "run `headgate keys migrate`")
    assert not (tmp_path / "keys.db").exists()
    migrated = await run(
        sys.executable, "-m", "headgate_server", "keys", "migrate", "--config", str(tmp_path / "headgate.yaml")
    )
    assert migrated.code == 0, migrated.stderr
    code, found = await findings(tmp_path, auth=auth)
    assert (code, found["database"][0]["state"]) == (0, "ok")
    nowhere = {"url": "postgresql://nobody@127.0.0.1:1/none"}
    code, found = await findings(tmp_path, auth={**auth, "store": nowhere}, ledger={**nowhere, "spool": "spool.db"})
    assert code == 1
    for database, subject in zip(found["database"], ("auth.store", "ledger"), strict=True):
        assert (database["subject"], database["state"]) == (subject, "failed")
        assert f"{subject}.url" in database["advice"]


@pytest.mark.parametrize(
    ("days", "state", "code"), [(90, "ok", 0), (3, "warning", 0), (-3, "failed", 1)], ids=["good", "soon", "expired"]
)
async def test_certificates_are_told_by_when_they_expire(tmp_path: Path, days: int, state: str, code: int) -> None:
    """Two weeks ahead, and afterwards."""
    certificate = Authority().server(lasts=timedelta(days=days, hours=1))
    (tmp_path / "tls.crt").write_bytes(certificate.certificate)
    (tmp_path / "tls.key").write_bytes(certificate.key)
    tls = {"certificate_file": "tls.crt", "key_file": "tls.key"}
    ended, looked = await findings(tmp_path, server={"tls": tls})
    (found,) = looked["certificate"]
    assert (ended, found["subject"], found["state"]) == (code, "server.tls", state)
    assert ("renew it" in found["advice"]) is (state != "ok")


async def test_too_few_open_files_are_a_warning(tmp_path: Path) -> None:
    """A server of so many connections would run out of them."""
    code, looked = await findings(tmp_path, server={"max_connections": 2**40})
    (found,) = looked["open files"]
    assert (code, found["state"]) == (0, "warning")
    assert "server.max_connections" in found["advice"]


async def test_a_configuration_that_cannot_be_used_exits_2(tmp_path: Path) -> None:
    """With its problems, as check-config has them; nothing else is looked at."""
    shown = await doctor(tmp_path, "--json", server={"listen": "nowhere"})
    answer = json.loads(shown.stdout)
    assert (shown.code, answer["ok"], answer["findings"]) == (2, False, [])
    assert answer["problems"][0]["key"] == "server.listen"
    assert (await doctor(tmp_path, server={"listen": "nowhere"})).code == 2
