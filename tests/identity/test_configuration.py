"""The section `auth`: what is refused before anything starts, and what is read from where."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headgate_server.config import Config, ConfigError, load
from headgate_server.config.identity import KeyStore
from headgate_server.reload import named_files
from tests.certificates import Authority
from tests.identity.callers import PEPPER, IdentityProvider
from tests.tools import run

Load = Callable[..., Config]
DEMO = "providers: {demo: {adapter: mock}}\n"
PUBLIC = IdentityProvider().public_pem()
ISSUER = "issuer: i, audiences: [a], tenant: t"
HASH = "0" * 64
ID = "3Zr0hWq9TbYk"


def with_key(settings: str) -> str:
    """The section of one static key."""
    return f"auth: {{pepper: {PEPPER!r}, keys: {{{ID}: {{{settings}}}}}}}"


@pytest.fixture
def configured(tmp_path: Path) -> Load:
    """The configuration of a text, with files beside it: `configured(text, pepper="…")`."""

    def read(text: str, **files: str) -> Config:
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        file = tmp_path / "headgate.yaml"
        file.write_text(DEMO + text)
        return load(file, {})

    return read


def problems(configured: Load, text: str, **files: str) -> list[str]:
    """What is wrong with it, each as `line: key: reason`."""
    with pytest.raises(ConfigError) as unusable:
        configured(text, **files)
    return [f"{problem.line}: {problem.key}: {problem.reason}" for problem in unusable.value.problems]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"auth:\n  keys: {{{ID}: {{hash: {HASH}, tenant: t}}}}", "2: auth: API keys need a pepper"),
        ("auth:\n  pepper: short", "3: auth.pepper: must be at least 32 random characters"),
        (f"auth: {{pepper: {PEPPER!r}, keys: {{x: {{hash: {HASH}, tenant: t}}}}}}", "is not a key's id"),
        (with_key("hash: nope, tenant: t"), "hash: must match pattern"),
        (with_key(f"hash: {HASH}"), "tenant: is required"),
        (with_key(f"hash: {HASH}, tenant: t, expires_at: 2027-01-01T00:00:00"), "expires_at: must have a time zone"),
        (with_key(f"hash: {HASH}, tenant: t, previous_hash: {HASH}"), "previous_expires_at belong together"),
        ("auth: {store: {}}", "auth.store.url: is required"),
        ("auth: {store: {url: mysql://x/y}}", "must be sqlite:///FILE or postgresql://"),
        ("auth: {store: {url: 'sqlite:///k.db', poll_interval: 3}}", "poll_interval: must be less than or equal to 2"),
        (f"auth: {{jwt: [{{{ISSUER}, algorithms: [RS256]}}]}}", "exactly one of jwks_url, public_key and secret"),
        (f"auth: {{jwt: [{{{ISSUER}, algorithms: [], jwks_url: 'https://x'}}]}}", "algorithms: must not be empty"),
        (f"auth: {{jwt: [{{{ISSUER}, algorithms: [none], jwks_url: 'https://x'}}]}}", "algorithms[0]: must be 'RS256'"),
        (
            f"auth: {{jwt: [{{{ISSUER}, algorithms: [RS256, HS256], jwks_url: 'https://x'}}]}}",
            "algorithms: HS256 is for a secret, and must not stand beside a public key",
        ),
        (
            f"auth: {{jwt: [{{{ISSUER}, algorithms: [HS256], public_key_file: public.pem}}]}}",
            "algorithms: HS256 is for a secret",
        ),
        (
            f"auth: {{jwt: [{{{ISSUER}, algorithms: [RS256], secret: {PEPPER!r}}}]}}",
            "algorithms: a secret is for HS256, HS384 and HS512 alone",
        ),
        (f"auth: {{jwt: [{{{ISSUER}, algorithms: [HS512], secret: {PEPPER!r}}}]}}", "at least 64 characters"),
        (f"auth: {{jwt: [{{{ISSUER}, algorithms: [ES256], public_key_file: public.pem}}]}}", "of the kind of its algo"),
        (f"auth: {{jwt: [{{{ISSUER}, algorithms: [RS256], public_key: nonsense}}]}}", "must be a public key in PEM"),
        (
            f"auth: {{jwt: [{{{ISSUER}, algorithms: [RS256], public_key_file: gone}}]}}",
            "public_key_file: cannot be read",
        ),
        (
            "auth: {jwt: [{issuer: i, audiences: [a], algorithms: [RS256], jwks_url: 'https://x'}]}",
            "must have one of tenant and tenant_claim",
        ),
        ("auth: {jwt: [{issuer: i, algorithms: [RS256], jwks_url: 'https://x', tenant: t}]}", "audiences: is required"),
        (
            f"auth: {{jwt: [{', '.join(['{' + ISSUER + ', algorithms: [RS256], jwks_url: https://x}'] * 2)}]}}",
            "the issuer i stands there twice",
        ),
        ("auth: {mtls: [{tenant: t, subject: CN=x}]}", "auth.mtls: needs server.tls.client_ca_file"),
        ("auth: {mtls: [{tenant: t}]}", "must have exactly one of spiffe_id and subject"),
        ("auth: {mtls: [{tenant: t, spiffe_id: 'https://x'}]}", "spiffe_id: must match pattern"),
        ("auth: {anonymos: true}", "auth.anonymos: is not a known key; did you mean anonymous?"),
        ("auth:\n  jwt:\n    - {isuer: i}", "4: auth.jwt[0].isuer: is not a known key; did you mean issuer?"),
        ("server: {tls: {}}", "server.tls.certificate_file: is required"),
        ("server: {tls: {certificate_file: gone, key_file: gone}}", "certificate_file: cannot be used: No such file"),
        ("server: {tls: {certificate_file: public.pem, key_file: public.pem}}", "not both there in PEM"),
        ("server: {listen: '0.0.0.0:1'}", "is open to other machines, and callers are not authenticated"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(configured: Load, text: str, problem: str) -> None:
    """In words for who wrote it."""
    found = problems(configured, text, **{"public.pem": PUBLIC})
    assert [problem in one for one in found].count(True) == 1, found


def test_any_way_in_lets_a_listener_be_reached(configured: Load) -> None:
    """Without `anonymous`, then, nobody is served who does not say who it is."""
    config = configured("server: {listen: '0.0.0.0:1'}\n" + with_key(f"tenant: t, hash: {HASH}"))
    assert (config.auth.authenticates, config.auth.anonymous) == (True, False)


def test_secrets_come_from_files_and_never_print(configured: Load) -> None:
    """Pepper, address of the store, shared secret."""
    url = "postgresql://u:database-password@h/d"
    secret = "shared secret of thirty-two characters"
    config = configured(
        "auth:\n  pepper_file: pepper\n  store: {url_file: url}\n"
        f"  jwt: [{{{ISSUER}, algorithms: [HS256], secret_file: secret}}]",
        pepper=PEPPER + "\n",
        url=url,
        secret=secret,
    )
    store = config.auth.store
    assert isinstance(store, KeyStore)
    assert config.auth.pepper is not None
    assert (config.auth.pepper.get_secret_value(), store.url.get_secret_value()) == (PEPPER, url)
    shown = f"{config!r} {config.model_dump()} {config.model_dump_json()}"
    assert not any(hidden in shown for hidden in (PEPPER, "database-password", secret))


def test_files_count_from_the_configuration_and_are_looked_at(configured: Load, tmp_path: Path) -> None:
    """The database of SQLite, too, stands beside it; a changed pepper is read again."""
    authority = Authority()
    certificate = authority.server()
    config = configured(
        "server: {tls: {certificate_file: c.pem, key_file: k.pem, client_ca_file: ca.pem}}\n"
        "auth: {pepper_file: pepper, store: {url: 'sqlite:///keys.db'}}",
        **{
            "pepper": PEPPER,
            "c.pem": certificate.certificate.decode(),
            "k.pem": certificate.key.decode(),
            "ca.pem": authority.certificate.decode(),
        },
    )
    assert config.server.tls is not None
    assert config.server.tls.client_ca_file == tmp_path / "ca.pem"
    assert config.auth.store is not None
    assert config.auth.store.url.get_secret_value() == f"sqlite:///{tmp_path}/keys.db"
    watched = named_files(tmp_path / "headgate.yaml", config)
    assert {tmp_path / name for name in ("pepper", "c.pem", "k.pem", "ca.pem")} <= watched


WITHOUT = """
import sys
from pathlib import Path

sys.modules[sys.argv[2]] = None
from headgate_server.cli import main

sys.exit(main(["check-config", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    ("text", "package", "extra"),
    [
        (f"auth: {{jwt: [{{{ISSUER}, algorithms: [RS256], jwks_url: 'https://x'}}]}}", "jwt", "auth"),
        (f"auth: {{pepper: {PEPPER!r}, store: {{url: 'sqlite:///k.db'}}}}", "sqlalchemy", "sql"),
        (f"auth: {{pepper: {PEPPER!r}, store: {{url: 'sqlite:///k.db'}}}}", "aiosqlite", "sql"),
        (f"auth: {{pepper: {PEPPER!r}, store: {{url: 'postgresql://h/d'}}}}", "psycopg", "postgres"),
        ("auth: {anonymous: true}", "jwt", ""),
        ("auth: {anonymous: true}", "sqlalchemy", ""),
    ],
)
async def test_a_missing_extra_is_one_line_at_the_start(tmp_path: Path, text: str, package: str, extra: str) -> None:
    """Which says what to install; who does not use it does not need it."""
    file = tmp_path / "headgate.yaml"
    file.write_text(DEMO + text)
    shown = await run(sys.executable, "-c", WITHOUT, str(file), package)
    assert shown.code == (2 if extra else 0), shown.stderr
    if extra:
        (line,) = shown.stderr.splitlines()
        assert line.endswith(f"is not installed: pip install 'headgate-server[{extra}]'")
