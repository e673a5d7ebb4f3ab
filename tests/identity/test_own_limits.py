"""A caller's own limits: of a static key, a stored key, and whoever an identity provider vouches for."""

from __future__ import annotations

from pathlib import Path

from headgate_server.identity.database import SqlKeyDatabase
from headgate_server.identity.records import NewKey
from tests.conftest import Serve
from tests.headgate_process import ask, failing
from tests.identity.callers import MOCK, PEPPER, IdentityProvider, bearer, static_key, who

ONCE = {"unit": "requests", "limit": 1, "window": 3600}


async def test_each_caller_has_its_own_limits_beside_the_configured_ones(serve: Serve, tmp_path: Path) -> None:
    """One call each, whoever they are; a key without limits of its own goes on until the common one."""
    limited, limited_entry = static_key("acme", limits=[ONCE])
    free, free_entry = static_key("acme")
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    database = SqlKeyDatabase(url, migrates=True)
    await database.prepare()
    stored = await database.create(NewKey("other", limits=[ONCE]), PEPPER.encode(), 0.0, "test")
    await database.close()
    identity = IdentityProvider()
    async with identity.server:
        auth = {
            "anonymous": False,
            "pepper": PEPPER,
            "keys": {**limited_entry, **free_entry},
            "store": {"url": url},
            "jwt": [identity.settings(limits=[ONCE])],
        }
        common = {"unit": "requests", "limit": 6, "window": 3600}
        async with serve(providers=MOCK, auth=auth, limits={"rules": [common]}) as headgate:
            for token in (limited.text, stored.text, identity.token()):
                assert (await who(headgate, bearer(token))).candidates
                refused = await failing(headgate.stub.Generate(ask("demo/echo"), metadata=bearer(token)))
                assert refused.reason == "RATE_LIMITED"
                (violation,) = refused.details["QuotaFailure"].violations
                assert violation.subject.startswith("key:")
                assert token not in str(refused.trailer)
            for _ in range(3):
                await who(headgate, bearer(free.text))
            refused = await failing(headgate.stub.Generate(ask("demo/echo"), metadata=bearer(free.text)))
            (violation,) = refused.details["QuotaFailure"].violations
            assert violation.subject == "all callers"
