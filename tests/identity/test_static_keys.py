"""Keys of the configuration that were good for a call: they are asked about again at the next one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from headgate_server.config import Config
from headgate_server.identity.keys import ApiKey, digest, new_key
from tests.conftest import LogLines, Serve
from tests.headgate_process import Headgate, failing
from tests.identity.callers import LATER, MOCK, PEPPER, bearer, changed, hashed, static_key, who

OTHER_PEPPER = "another one of at least 32 characters"


async def reason(headgate: Headgate, secret: str) -> str:
    """Why a call with this secret is refused."""
    return (await failing(who(headgate, bearer(secret)))).reason


async def test_a_key_and_the_grace_of_a_rotation_end_though_they_were_good(serve: Serve, logged: LogLines) -> None:
    """When their time comes; the secret after the rotation stays good."""
    ends = datetime.now(UTC) + timedelta(seconds=5)
    short, short_entry = static_key(expires_at=ends.isoformat())
    now = new_key()
    before = changed(now)
    rotated = {"tenant": "acme", "hash": hashed(now), "previous_expires_at": ends.isoformat()}
    rotated["previous_hash"] = hashed(ApiKey(now.id, before))
    auth = {"pepper": PEPPER, "keys": {**short_entry, now.id: rotated}, "failures": {"limit": 0}}
    async with serve(providers=MOCK, auth=auth) as headgate:
        for _ in range(2):
            for secret in (short.text, before, now.text):
                await who(headgate, bearer(secret))
        await asyncio.sleep((ends - datetime.now(UTC)).total_seconds())
        assert [await reason(headgate, secret) for secret in (short.text, before)] == ["INVALID_CREDENTIALS"] * 2
        await who(headgate, bearer(now.text))
    failed = [line["reason"] for line in logged.lines if line["event"] == "login_failed"]
    assert failed == ["expired", "rotated"]


async def test_a_key_that_was_good_is_hashed_again_under_another_pepper(serve: Serve) -> None:
    """What a reload puts in the place of the old pepper and hashes is what counts."""
    key, entry = static_key(expires_at=LATER)
    gone, gone_entry = static_key()
    kept = {key.id: {"tenant": "acme", "hash": digest(OTHER_PEPPER.encode(), key.text).hex()}}
    server = {"listen": "127.0.0.1:0"}
    async with serve(providers=MOCK, auth={"pepper": PEPPER, "keys": {**entry, **gone_entry}}) as headgate:
        for one in (key, gone):
            await who(headgate, bearer(one.text))
        auth = {"pepper": OTHER_PEPPER, "keys": kept}
        await headgate.application.reload(Config.model_validate({"server": server, "providers": MOCK, "auth": auth}))
        await who(headgate, bearer(key.text))
        assert await reason(headgate, gone.text) == "INVALID_CREDENTIALS"
