"""`headgate keys`: the API keys of the configured store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]
Config = Annotated[Path | None, Parameter(help="Configuration file; by default the one that HEADGATE_CONFIG names.")]
Several = Annotated[tuple[str, ...], Parameter(negative=())]

keys = App(name="keys", help="Make, list, rotate and revoke API keys.")


@keys.command
def create(
    *,
    tenant: str,
    name: str = "",
    role: Several = (),
    allow_model: Several = (),
    allow_provider: Several = (),
    limits: str = "[]",
    budgets: str = "[]",
    expires_in: str = "",
    static: Annotated[bool, Parameter(negative=())] = False,
    config: Config = None,
    json: AsJson = False,
) -> int:
    """Make a key, and print it: it is shown this once, and kept nowhere.

    Parameters
    ----------
    tenant
        Whom it belongs to.
    name
        What it is for.
    role
        A role of its holder, any number of times.
    allow_model
        An alias or provider/model that it may ask for, `*` standing for anything; any number of times. All by default.
    allow_provider
        A provider that its calls may go to, likewise. All by default.
    limits
        Limits of its own, as a JSON array.
    budgets
        Budgets of its own, likewise, such as [{"amount": 20, "period": "month"}].
    expires_in
        How long it holds, such as 90d, 12h or 30m; for ever by default.
    static
        Print what to put under auth.keys of the configuration, instead of keeping it in the store.
    """
    from headgate_server.cli import key_store

    wanted = key_store.new_key(tenant, name, role, allow_model, allow_provider, limits, budgets, expires_in)
    make = key_store.create_static if static else key_store.create
    return make(config, wanted, as_json=json)


@keys.command(name="list")
def list_(*, tenant: str = "", config: Config = None, json: AsJson = False) -> int:
    """List keys, never their secrets.

    Parameters
    ----------
    tenant
        Of this tenant alone.
    """
    from headgate_server.cli import key_store

    return key_store.list_keys(config, tenant, as_json=json)


@keys.command
def rotate(key_id: str, /, *, grace: str = "24h", config: Config = None, json: AsJson = False) -> int:
    """Give a key a new secret, and print it; all else stays.

    Parameters
    ----------
    key_id
        Its id, which stands between hg_ and the next underscore.
    grace
        How long the old secret holds on, such as 24h; 0s ends it now.
    """
    from headgate_server.cli import key_store

    return key_store.rotate(config, key_id, grace, as_json=json)


@keys.command
def revoke(key_id: str, /, *, config: Config = None, json: AsJson = False) -> int:
    """End a key for good, on every server within seconds.

    Parameters
    ----------
    key_id
        Its id, which stands between hg_ and the next underscore.
    """
    from headgate_server.cli import key_store

    return key_store.revoke(config, key_id, as_json=json)


@keys.command
def migrate(*, config: Config = None) -> int:
    """Make or migrate the store's tables, where the servers do not (auth.store.migrate: false)."""
    from headgate_server.cli import key_store

    return key_store.migrate(config)
