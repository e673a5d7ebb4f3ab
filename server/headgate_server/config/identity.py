"""What can be configured of who may call, and of the listener's TLS."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, SecretStr, field_serializer, model_validator

from headgate_server.config.budgets import Budget
from headgate_server.config.limits import Limit
from headgate_server.config.section import Section
from headgate_server.config.values import (
    BaseUrl,
    CountFromZero,
    DatabaseUrl,
    ListenAddress,
    ProxyUrl,
    Seconds,
    masked_password,
)
from headgate_server.identity import keys

PEPPER_LENGTH = 32
SECRET_LENGTHS = {"HS256": 32, "HS384": 48, "HS512": 64}

Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512"
]


def _key_id(text: str) -> str:
    if len(text) != keys.ID_LENGTH or not text.isalnum() or not text.isascii():
        raise ValueError("is not a key's id: `headgate keys create --static` makes one")
    return text


def _pepper(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < PEPPER_LENGTH:
        raise ValueError(f"must be at least {PEPPER_LENGTH} random characters, such as `openssl rand -hex 32` prints")
    return secret


def _fits(public_key: str, algorithm: str) -> bool:
    import jwt

    if "PRIVATE" in public_key:
        return False
    try:
        jwt.get_algorithm_by_name(algorithm).prepare_key(public_key)
    except (jwt.PyJWTError, TypeError, ValueError):
        return False
    return True


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) and value else value or ()


KeyId = Annotated[str, AfterValidator(_key_id)]
KeyHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Pepper = Annotated[SecretStr, AfterValidator(_pepper)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Globs = tuple[Annotated[str, Field(min_length=1)], ...]
ClaimPath = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_listed)]


class Tls(Section):
    """TLS of the listener. Files that change are taken from the next connection on."""

    certificate_file: Path
    """Certificate and those between it and its authority, in PEM, relative to the configuration file."""
    key_file: Path
    """Its private key, unencrypted, in PEM."""
    client_ca_file: Path | None = None
    """Authorities in PEM. Clients must show a certificate that one of them signed: all, or those of mtls_listen."""
    mtls_listen: ListenAddress | None = None
    """HOST:PORT for clients with certificates; `listen` then asks nobody for one. Needs client_ca_file."""
    minimum_version: Literal["1.2", "1.3"] = "1.2"
    """Oldest TLS that clients may speak."""

    @model_validator(mode="after")
    def _authorities_for_clients(self) -> Tls:
        if self.mtls_listen and not self.client_ca_file:
            raise ValueError("mtls_listen needs client_ca_file: no certificate could be verified")
        return self


class Grant(Section):
    """What a caller may do."""

    roles: tuple[str, ...] = ()
    """Roles."""
    allowed_models: Globs = ()
    """What may be asked for, aliases or provider/model, `*` standing for anything; all by default."""
    allowed_providers: Globs = ()
    """Where its calls may go, likewise; anywhere by default."""
    limits: tuple[Limit, ...] = ()
    """Limits of its own, beside the configured ones."""
    budgets: tuple[Budget, ...] = ()
    """Budgets of its own, likewise."""


class StaticKey(Grant):
    """An API key that stands in the configuration, by its hash."""

    tenant: Name
    """Whom it belongs to."""
    hash: KeyHash
    """HMAC-SHA-256 of the key under the pepper: `headgate keys create --static` prints it."""
    expires_at: AwareDatetime | None = None
    """When it ends, such as 2027-01-31T00:00:00Z."""
    previous_hash: KeyHash | None = None
    """Hash of the key before a rotation, which is good until previous_expires_at."""
    previous_expires_at: AwareDatetime | None = None
    """When that one ends."""

    @model_validator(mode="after")
    def _rotation_is_whole(self) -> StaticKey:
        if (self.previous_hash is None) != (self.previous_expires_at is None):
            raise ValueError("previous_hash and previous_expires_at belong together")
        return self


class KeyStore(Section):
    """API keys and security events in a database, which several servers may share."""

    url: DatabaseUrl
    """sqlite:///FILE, relative to the configuration file, or postgresql://…; with url_file, what that file holds."""
    url_file: Path | None = None
    """File that holds the URL. Not together with url."""
    migrate: bool = True
    """Make and migrate the tables at the start; otherwise `headgate keys migrate` does."""
    poll_interval: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = 1.0
    """How often changes are looked for. A revoked key is refused within this time and that of one query."""


class JwtIssuer(Grant):
    """An identity provider whose tokens are taken. Exactly one of jwks_url, public_key and secret verifies them."""

    issuer: Name
    """The claim `iss`, word for word."""
    audiences: Annotated[tuple[Name, ...], Field(min_length=1)]
    """The claim `aud` must hold one of these."""
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)]
    """Algorithms of signatures; no others are taken, whatever a token says."""
    jwks_url: BaseUrl = ""
    """Address of its JSON Web Key Set."""
    jwks_refresh: Seconds = 300.0
    """How often that is fetched; an unknown key id fetches it at once."""
    ca_file: Path | None = None
    """Certificates to trust there instead of the system's, in PEM, relative to the configuration file."""
    bearer_token_file: Path | None = None
    """Token to show there, read anew each time: Kubernetes wants one."""
    proxy: ProxyUrl | None = Field(default=None, repr=False)
    """HTTP proxy on the way there; by default what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say, and "" for none."""
    public_key: str = ""
    """Public key in PEM; with public_key_file, what that file holds."""
    public_key_file: Path | None = None
    """File that holds it. Not together with public_key."""
    secret: SecretStr | None = None
    """Shared secret, for HS algorithms alone; with secret_file, what that file holds."""
    secret_file: Path | None = None
    """File that holds it. Not together with secret."""
    leeway: Annotated[float, Field(ge=0, le=300)] = 30.0
    """How far the clocks may differ."""
    tenant: str = ""
    """Tenant of all its callers; or tenant_claim."""
    tenant_claim: ClaimPath = ()
    """Claim that names the tenant; a list is a path, such as [kubernetes.io, namespace]."""
    roles_claim: ClaimPath = ()
    """Claim that lists roles, as a list or a text with spaces."""
    subject_claim: ClaimPath = ("sub",)
    """Claim that tells callers of one tenant apart."""

    @model_validator(mode="after")
    def _one_family_of_algorithms(self) -> JwtIssuer:
        """A public key that were taken for a shared secret would let everybody sign."""
        shared = [name for name in self.algorithms if name in SECRET_LENGTHS]
        if self.secret is None:
            if shared:
                raise ValueError(f"algorithms: {shared[0]} is for a secret, and must not stand beside a public key")
            return self
        if len(shared) != len(self.algorithms):
            raise ValueError("algorithms: a secret is for HS256, HS384 and HS512 alone")
        if len(self.secret.get_secret_value()) < (least := max(SECRET_LENGTHS[name] for name in shared)):
            raise ValueError(f"secret: must be at least {least} characters for its algorithm")
        return self

    @model_validator(mode="after")
    def _verifiable(self) -> JwtIssuer:
        if find_spec("jwt") is None or find_spec("cryptography") is None:
            raise ValueError("PyJWT is not installed: pip install 'headgate-server[auth]'")
        if sum(map(bool, (self.jwks_url, self.public_key, self.secret))) != 1:
            raise ValueError("must have exactly one of jwks_url, public_key and secret")
        if bool(self.tenant) == bool(self.tenant_claim):
            raise ValueError("must have one of tenant and tenant_claim")
        if self.public_key and not all(_fits(self.public_key, name) for name in self.algorithms):
            raise ValueError("public_key: must be a public key in PEM, of the kind of its algorithms")
        return self

    @field_serializer("proxy")
    def _mask_proxy(self, proxy: str | None) -> str | None:
        return masked_password(proxy)


class CertificateIdentity(Grant):
    """Whom client certificates stand for, by exactly one of spiffe_id and subject."""

    tenant: Name
    """Whom they belong to."""
    spiffe_id: Annotated[str, Field(pattern=r"^(spiffe://.+)?$")] = ""
    """SPIFFE id; `*` stands for anything within a segment of its path, `**` for any number of segments."""
    subject: str = ""
    """The whole subject as RFC 4514 writes it: CN=billing,O=Example."""

    @model_validator(mode="after")
    def _one_name(self) -> CertificateIdentity:
        if bool(self.spiffe_id) == bool(self.subject):
            raise ValueError("must have exactly one of spiffe_id and subject")
        return self


class FailureLimit(Section):
    """How often callers at one address may fail to say who they are."""

    limit: CountFromZero = 100
    """Failures in a row; beyond them RATE_LIMITED is answered. 0 for no limit."""
    window: Seconds = 60.0
    """Time within which the limit fills anew."""


class Auth(Section):
    """Who may call."""

    anonymous: bool = False
    """Serve callers without credentials. Required to listen on anything but loopback without any other way in."""
    pepper: Pepper | None = None
    """Secret under which API keys are hashed; with pepper_file, what that file holds. Changed, it ends every key."""
    pepper_file: Path | None = None
    """File that holds the pepper, relative to the configuration file. Not together with pepper."""
    keys: dict[KeyId, StaticKey] = {}
    """API keys by id."""
    store: KeyStore | None = None
    """API keys in a database, made by `headgate keys`."""
    jwt: tuple[JwtIssuer, ...] = ()
    """Identity providers."""
    mtls: tuple[CertificateIdentity, ...] = ()
    """Client certificates; the first that fits counts. Needs server.tls.client_ca_file."""
    caller_provider_keys: bool = False
    """Let callers bring their own vendor keys, as x-provider-key-<issuer> metadata."""
    failures: FailureLimit = FailureLimit()
    """How often callers at one address may fail."""

    @property
    def authenticates(self) -> bool:
        """There is a way to say who one is."""
        return bool(self.keys or self.store or self.jwt or self.mtls)

    @model_validator(mode="after")
    def _keys_have_a_pepper(self) -> Auth:
        if (self.keys or self.store) and self.pepper is None:
            raise ValueError("API keys need a pepper: pepper, or pepper_file")
        return self

    @model_validator(mode="after")
    def _issuers_differ(self) -> Auth:
        names = [issuer.issuer for issuer in self.jwt]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"jwt: the issuer {twice} stands there twice")
        return self
