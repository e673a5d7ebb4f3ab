"""What `headgate keys` does in the key store, and what it prints of it."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from headgate_server.cli.exits import FAILED, OK, USAGE, Failed
from headgate_server.cli.terminal import table
from headgate_server.cli.times import seconds_of, shown_time
from headgate_server.config import Auth, Budget, ConfigError, Limit, load
from headgate_server.identity.identity import database, pepper
from headgate_server.identity.keys import ApiKey, digest, new_key as new_api_key
from headgate_server.identity.records import NewKey, NoSuchKey
from headgate_server.printing import printable

if TYPE_CHECKING:
    from headgate_server.identity.database import SqlKeyDatabase

T = TypeVar("T")
_LIMITS: TypeAdapter[list[Any]] = TypeAdapter(list[Limit])
_BUDGETS: TypeAdapter[list[Any]] = TypeAdapter(list[Budget])


def new_key(
    tenant: str,
    name: str,
    roles: Sequence[str],
    models: Sequence[str],
    providers: Sequence[str],
    limits: str,
    budgets: str,
    expires_in: str,
) -> NewKey:
    """The key that the command line describes.

    Raises:
        Failed: a part of it is not what it must be.
    """
    if not tenant or not printable(tenant) == tenant:
        raise Failed(USAGE, "error: --tenant: must be printable text")
    own_limits, own_budgets = _array("--limits", limits, _LIMITS), _array("--budgets", budgets, _BUDGETS)
    expires_at = time.time() + seconds_of("--expires-in", expires_in) if expires_in else None
    return NewKey(tenant, name, roles, models, providers, own_limits, own_budgets, expires_at)


def _array(option: str, text: str, kind: TypeAdapter[list[Any]]) -> list[dict[str, Any]]:
    try:
        found = kind.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Failed(USAGE, printable(f"error: {option}: {f'{place}: ' if place else ''}{first['msg']}")) from error
    return [item.model_dump(mode="json", exclude_unset=True) for item in found]


def create(config: Path | None, wanted: NewKey, *, as_json: bool) -> int:
    """Makes a key in the store, and prints it."""
    auth = _auth(config)
    made = _in_store(auth, lambda store: store.create(wanted, pepper(auth), time.time(), _actor()))
    return _print_secret(made, as_json, tenant=wanted.tenant)


def create_static(config: Path | None, wanted: NewKey, *, as_json: bool) -> int:
    """Makes a key, and prints it with the lines of the configuration that let it in."""
    auth = _auth(config)
    if auth.pepper is None:
        raise Failed(USAGE, "error: the configuration has no auth.pepper to hash the key under")
    made = new_api_key()
    entry: dict[str, Any] = {"tenant": wanted.tenant, "hash": digest(pepper(auth), made.text).hex()}
    lists = {
        "roles": wanted.roles,
        "allowed_models": wanted.allowed_models,
        "allowed_providers": wanted.allowed_providers,
        "limits": wanted.limits,
        "budgets": wanted.budgets,
    }
    entry |= {name: list(values) for name, values in lists.items() if values}
    if wanted.expires_at:
        entry["expires_at"] = shown_time(wanted.expires_at)
    if as_json:
        return _print_secret(made, as_json, entry=entry)
    print(f"auth:\n  keys:\n    {made.id}: {json.dumps(entry)}", file=sys.stderr)
    return _print_secret(made, as_json)


def list_keys(config: Path | None, tenant: str, *, as_json: bool) -> int:
    """Prints every key, or those of a tenant."""
    rows = _in_store(_auth(config), lambda store: store.list())
    found = [_listed(row) for row in rows if not tenant or row["tenant"] == tenant]
    if as_json:
        print(json.dumps({"keys": found}))
        return OK
    header = ("ID", "TENANT", "NAME", "STATE", "CREATED", "EXPIRES", "MODELS")
    print(
        table(
            header,
            [
                (
                    key["id"],
                    key["tenant"],
                    key["name"],
                    key["state"],
                    key["created_at"],
                    key["expires_at"] or "never",
                    ", ".join(key["allowed_models"]) or "all",
                )
                for key in found
            ],
        )
    )
    return OK


def rotate(config: Path | None, key_id: str, grace: str, *, as_json: bool) -> int:
    """Gives a key a new secret, and prints it."""
    auth, seconds = _auth(config), seconds_of("--grace", grace)
    made = _in_store(auth, lambda store: store.rotate(key_id, pepper(auth), time.time(), seconds, _actor()))
    return _print_secret(made, as_json, previous_expires_in_seconds=seconds)


def revoke(config: Path | None, key_id: str, *, as_json: bool) -> int:
    """Ends a key."""
    _in_store(_auth(config), lambda store: store.revoke(key_id, time.time(), _actor()))
    print(json.dumps({"id": key_id, "state": "revoked"}) if as_json else f"{key_id} is revoked")
    return OK


def migrate(config: Path | None) -> int:
    """Brings the tables to what this version needs."""
    _in_store(_auth(config), lambda store: store.migrate())
    print("the tables are current")
    return OK


def _auth(config: Path | None) -> Auth:
    try:
        return load(config, os.environ).auth
    except ConfigError as error:
        raise Failed(USAGE, str(error)) from error


def _in_store(auth: Auth, work: Callable[[SqlKeyDatabase], Awaitable[T]]) -> T:
    """Does this in the store, once its tables are there.

    Raises:
        Failed: there is no store, it does not answer, or it has no such key.
    """
    if auth.store is None:
        raise Failed(USAGE, "error: the configuration has no auth.store; --static makes a key for auth.keys")
    from sqlalchemy.exc import SQLAlchemyError

    store = database(auth.store)

    async def prepare_and_work() -> T:
        try:
            await store.prepare()
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(prepare_and_work())
    except NoSuchKey as error:
        raise Failed(FAILED, f"error: there is no key {error}, or it is revoked") from error
    except SQLAlchemyError as error:
        # Not the library's own text, which repeats the statement and its values.
        raise Failed(FAILED, printable(f"error: the key store: {getattr(error, 'orig', error)}")) from error


def _print_secret(key: ApiKey, as_json: bool, **facts: Any) -> int:
    """The key alone on standard output, so that a shell can take it."""
    if as_json:
        print(json.dumps({"id": key.id, "key": key.text, **facts}))
    else:
        print(f"The key {key.id} is shown this once:", file=sys.stderr, flush=True)
        print(key.text)
    return OK


def _listed(row: Mapping[str, Any]) -> dict[str, Any]:
    times = {name: row[name] and shown_time(row[name]) for name in row if name.endswith("_at")}
    return {**row, **times, "state": _state(row, time.time())}


def _state(row: Mapping[str, Any], now: float) -> str:
    if row["revoked_at"] is not None:
        return "revoked"
    if row["expires_at"] is not None and now >= row["expires_at"]:
        return "expired"
    return "active"


def _actor() -> str:
    """Who runs the command, as far as the machine knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container whose user has no name
        return str(os.getuid())
