"""The files that a configuration names: secrets are read from them, and what must be usable is tried."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from ssl import SSLError
from typing import Any

from headgate_server.config.file import Document, Key
from headgate_server.config.ledger import Ledger
from headgate_server.config.values import SQLITE
from headgate_server.transports.connections import ClientCertificate, tls_context


def take_in_files(document: Document, folder: Path) -> None:
    """Reads and tries every file that is named; names count from `folder`."""
    _read_secret_files(document, folder)
    _find_tls_files(document, folder)
    _find_credential_files(document, folder)
    _find_databases(document, folder)


def sections(document: Document, root: str, name: str = "") -> Iterator[tuple[Key, dict[str, Any]]]:
    """What was read of a root, or of the mapping or each mapping of the list under a key of it, right or wrong."""
    found: Any = document.section(root)
    if not name:
        yield (root,), found
        return
    found = found.get(name)
    if isinstance(found, dict):
        yield (root, name), found
    for index, item in enumerate(found if isinstance(found, list) else ()):
        if isinstance(item, dict):
            yield (root, name, index), item


def _providers_read(document: Document) -> Iterator[tuple[Key, dict[str, Any]]]:
    """What was read of each provider, right or wrong."""
    for name, values in document.section("providers").items():
        if isinstance(values, dict):
            yield ("providers", name), values


def _credentials_read(document: Document) -> Iterator[tuple[Key, dict[str, Any]]]:
    """What was read of each provider's credential, right or wrong."""
    for place, provider in _providers_read(document):
        if isinstance(provider.get("credential"), dict):
            yield (*place, "credential"), provider["credential"]


def _read_secret_files(document: Document, folder: Path) -> None:
    """Puts what each api_key_file holds into api_key, and so on for whatever may come from a file."""
    for place, values in _providers_read(document):
        _read_secret(document, folder, place, values, "api_key", "key")
    for place, values in _credentials_read(document):
        _read_secret(document, folder, place, values, "client_secret", "secret")
    for place, values in sections(document, "auth"):
        _read_secret(document, folder, place, values, "pepper", "pepper")
    for place, values in sections(document, "auth", "store"):
        _read_secret(document, folder, place, values, "url", "URL")
    for place, values in sections(document, "ledger"):
        _read_secret(document, folder, place, values, "url", "URL")
    for place, values in sections(document, "limits", "store"):
        _read_secret(document, folder, place, values, "url", "address")
    for place, values in sections(document, "auth", "jwt"):
        _read_secret(document, folder, place, values, "secret", "secret")
        _read_secret(document, folder, place, values, "public_key", "key")


def _read_secret(document: Document, folder: Path, place: Key, values: dict[str, Any], name: str, noun: str) -> None:
    if not values.get(f"{name}_file"):
        return
    key: Key = (*place, f"{name}_file")
    if values.get(name) is not None:
        document.report(key, f"must not stand beside {name}: the {noun} comes from one place")
        return
    try:
        values[name] = (folder / str(values[f"{name}_file"])).read_text("utf-8").strip() or None
    except (OSError, ValueError) as error:
        document.report(key, f"cannot be read: {getattr(error, 'strerror', None) or error}")
        return
    if values[name] is None:
        document.report(key, f"holds no {noun}")


def _find_tls_files(document: Document, folder: Path) -> None:
    """Makes each ca_file and client certificate a path from here, and sees that it can be used."""
    issuers = sections(document, "auth", "jwt")
    for place, values in (*_providers_read(document), *_credentials_read(document), *issuers):
        if not values.get("ca_file"):
            continue
        values["ca_file"] = folder / str(values["ca_file"])
        try:
            tls_context(values["ca_file"])
        except OSError as error:
            reason = "holds no certificate in PEM" if isinstance(error, SSLError) else error.strerror
            document.report((*place, "ca_file"), f"cannot be used: {reason}")
    for place, values in sections(document, "server", "tls"):
        _find_certificate(document, folder, place, values, "certificate_file", "key_file")
        _find_client_authorities(document, folder, place, values)
    for place, values in _providers_read(document):
        if values.get("client_certificate_file"):
            _find_certificate(document, folder, place, values, "client_certificate_file", "client_key_file")


def _find_certificate(
    document: Document, folder: Path, place: Key, values: dict[str, Any], certificate: str, key: str
) -> None:
    for name in (certificate, key):
        if not values.get(name):
            continue
        values[name] = folder / str(values[name])
        try:
            values[name].read_bytes()
        except OSError as error:
            document.report((*place, name), f"cannot be used: {error.strerror}")
            return
    if not values.get(certificate):
        return
    try:
        tls_context(None, ClientCertificate(values[certificate], values.get(key)))
    except SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = f"is not the key of {certificate}"
        else:
            reason = "certificate and unencrypted private key are not both there in PEM"
        document.report((*place, key if values.get(key) else certificate), reason)


def _find_client_authorities(document: Document, folder: Path, place: Key, values: dict[str, Any]) -> None:
    if not values.get("client_ca_file"):
        return
    values["client_ca_file"] = folder / str(values["client_ca_file"])
    try:
        tls_context(values["client_ca_file"])
    except OSError as error:
        reason = "holds no certificate in PEM" if isinstance(error, SSLError) else error.strerror
        document.report((*place, "client_ca_file"), f"cannot be used: {reason}")


def _find_credential_files(document: Document, folder: Path) -> None:
    """Makes the files of each credential paths from here, and sees that they can be used."""
    for place, values in _credentials_read(document):
        for name in ("file", "federated_token_file"):
            if not values.get(name):
                continue
            values[name] = folder / str(values[name])
            try:
                text = values[name].read_text("utf-8")
                if name == "file" and not isinstance(json.loads(text), dict):
                    document.report((*place, name), "is not a JSON object")
            except (OSError, ValueError) as error:
                reason = f"cannot be read: {getattr(error, 'strerror', None) or 'it is not JSON'}"
                document.report((*place, name), reason)
    for place, values in sections(document, "auth", "jwt"):
        if not values.get("bearer_token_file"):
            continue
        values["bearer_token_file"] = folder / str(values["bearer_token_file"])
        try:
            values["bearer_token_file"].read_bytes()
        except OSError as error:
            document.report((*place, "bearer_token_file"), f"cannot be read: {error.strerror}")


def _find_databases(document: Document, folder: Path) -> None:
    """Makes the files of key store and ledger paths from here."""
    for _, values in (*sections(document, "auth", "store"), *sections(document, "ledger")):
        file = str(values.get("url") or "").removeprefix(SQLITE)
        if file != values.get("url") and file:
            values["url"] = f"{SQLITE}{folder / file}"
    if ledger := document.section("ledger"):
        ledger["spool"] = folder / str(ledger.get("spool") or Ledger.model_fields["spool"].default)
