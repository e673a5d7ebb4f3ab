"""What can be configured, with its defaults. Times are in seconds, sizes in bytes (or text such as 32MiB)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, field_serializer, model_validator

from headgate_server.config.identity import Auth, Tls
from headgate_server.config.ledger import Ledger
from headgate_server.config.limits import Limits
from headgate_server.config.section import Section
from headgate_server.config.values import (
    KIB,
    MASK,
    MIB,
    AliasName,
    ApiKey,
    ApiVersion,
    BaseUrl,
    Component,
    Count,
    CountFromZero,
    HeaderName,
    HeaderValue,
    ListenAddress,
    LogLevel,
    LowerCase,
    NumberFromZero,
    Price,
    ProviderName,
    ProxyUrl,
    QuirkOverrides,
    Seconds,
    SecondsFromZero,
    Size,
    StrategyName,
    TokenUrl,
    TransportName,
    masked_password,
)


class Server(Section):
    """The gRPC listener."""

    listen: ListenAddress = "127.0.0.1:50051"
    """HOST:PORT; port 0 takes a free one. The variable PORT overrides the port."""
    tls: Tls | None = None
    """TLS of the listener; plain text by default."""
    probe_listen: ListenAddress | None = None
    """HOST:PORT that serves grpc.health.v1 alone, in plain text: for probes that speak no TLS, as Kubernetes' own."""
    reflection: bool = False
    """Serve the schema by gRPC server reflection."""
    max_request_bytes: Size = ByteSize(32 * MIB)
    """Largest request message; larger ones are refused by the gRPC core."""
    max_reply_bytes: Size = ByteSize(64 * MIB)
    """Largest answer message."""
    max_metadata_bytes: Size = ByteSize(16 * KIB)
    """Largest request metadata."""
    max_concurrent_calls: CountFromZero = 4096
    """Calls in flight in this process; more are refused with GATEWAY_OVERLOADED. 0 for no limit."""
    max_concurrent_rpcs: CountFromZero = 16384
    """The same with health checks and reflection counted; beyond it the gRPC core refuses. 0 for no limit."""
    max_connections: CountFromZero = 10_000
    """Connections to each listener; more are closed at once. 0 for no limit."""
    receive_timeout: Seconds = 30.0
    """How long a request may be on its way in."""
    max_memory_bytes: Annotated[ByteSize, Field(ge=0)] = ByteSize(1024 * MIB)
    """Memory of the process beyond which calls are refused, and slow requests given up. 0 for no limit."""
    max_concurrent_streams: Count = 1000
    """Calls in flight on one HTTP/2 connection; more of them wait in the client."""
    drain_delay: SecondsFromZero = 5.0
    """From readiness NOT_SERVING to closing the listener, so that load balancers notice."""
    drain_grace: SecondsFromZero = 60.0
    """From closing the listener to cancelling the calls still in flight."""
    keepalive_time: Seconds = 30.0
    """Silence on a connection after which it is pinged."""
    keepalive_timeout: Seconds = 10.0
    """How long a ping may stay unanswered before the connection is closed."""
    min_ping_interval: Seconds = 10.0
    """Shortest interval at which clients may ping; faster ones are disconnected."""
    max_connection_idle: Seconds | None = 600.0
    """Close a connection that had no call for so long."""
    max_connection_age: Seconds | None = None
    """Close a connection of this age, so that clients find new instances; none by default."""
    max_connection_age_grace: Seconds = 600.0
    """How long calls may go on after that; longer than the longest stream, which is killed otherwise."""
    handshake_timeout: Seconds = 10.0
    """How long a connection may take to be set up."""


class Admin(Section):
    """The HTTP listener for operators: metrics, health, a status page."""

    enabled: bool = True
    """Serve it at all."""
    listen: ListenAddress = "127.0.0.1:9464"
    """HOST:PORT; port 0 takes a free one. Nobody is asked who they are. HEADGATE_ADMIN_PORT overrides the port."""
    debug: bool = False
    """Serve /debug too: tasks, targets, pools and the configuration without its secrets."""


class Clocks(Section):
    """How long one attempt at a provider may take."""

    connect: Seconds = 5.0
    """Until there is a connection."""
    first_token: Seconds = 120.0
    """From the start to the first content of a stream."""
    idle: Seconds = 60.0
    """Silence within a stream after that."""
    total: Seconds = 600.0
    """From start to end."""


class Retry(Section):
    """When a target that failed is asked again within the same call. Other targets of the call go first."""

    max_attempts: Count = 4
    """Most attempts at one target, the first included; 1 for no retry."""
    base_delay: Seconds = 1.0
    """Longest wait before the first retry. It doubles with each one, and chance takes anything from 0 up to it."""
    max_delay: Seconds = 8.0
    """Longest wait before any retry."""
    max_retry_after: SecondsFromZero = 30.0
    """Longest wait that a vendor's Retry-After can ask for; a target that wants more is not asked again."""
    budget_ratio: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Retries and hedges for each first attempt at the target, so that a storm cannot double its load."""
    budget_reserve: Annotated[float, Field(ge=0, le=10_000)] = 10.0
    """Most retries and hedges saved up, and so many are there at the start."""


class Breaker(Section):
    """When a target that fails is left alone, for a time that doubles as long as its probes fail."""

    consecutive_failures: CountFromZero = 5
    """Failures in a row that open it; 0 for no breaker."""
    error_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of failures within the window that opens it."""
    min_calls: Count = 20
    """Fewest outcomes within the window for that share to count."""
    window: Seconds = 30.0
    """How far back outcomes count."""
    open_for: Seconds = 5.0
    """How long it stays open at first; then one call goes as a probe."""
    max_open_for: Seconds = 120.0
    """How long it stays open at most."""


class Concurrency(Section):
    """How many attempts at one target may be in flight."""

    limit: CountFromZero = 0
    """Attempts in flight at one target, from this process; 0 for no limit."""
    queue: CountFromZero = 1000
    """Calls that may wait for a place. None waits where the queue would outlast its deadline."""


class Treatment(Section):
    """How targets are treated. What a provider does not say comes from `routing`, what a model does not from both."""

    clocks: Clocks = Clocks()
    """How long one attempt may take."""
    retry: Retry = Retry()
    """When the same target is asked again."""
    breaker: Breaker = Breaker()
    """When a target is left alone."""
    concurrency: Concurrency = Concurrency()
    """How many attempts may be in flight at each target."""

    def over(self, general: Treatment) -> Treatment:
        """This one, with the general one's values for all that it does not say itself."""
        said = {
            name: getattr(general, name).model_copy(update=_said(getattr(self, name)))
            for name in Treatment.model_fields
        }
        return Treatment.model_construct(**said)


def _said(section: Section) -> dict[str, Any]:
    return {name: getattr(section, name) for name in section.model_fields_set}


class MockUsage(Section):
    """Token counts that the mock claims instead of its own; absent ones stay its own."""

    prompt_tokens: CountFromZero | None = None
    """All input."""
    completion_tokens: CountFromZero | None = None
    """All output."""
    cached_tokens: CountFromZero | None = None
    """Of the input, read from a cache."""
    reasoning_tokens: CountFromZero | None = None
    """Of the output, reasoning."""


class MockFailure(Section):
    """One way in which the mock fails, exactly one of `status` to `no_terminator`, and on which calls."""

    status: Annotated[int, Field(ge=300, le=599)] | None = None
    """Answer with this HTTP status and an error body."""
    connect: bool = False
    """No connection."""
    stall: Literal["headers", "body"] | None = None
    """Never answer, or send the headers and then nothing."""
    stall_after: CountFromZero | None = None
    """Send so many chunks of the body, of which the first only opens the answer, and then nothing."""
    reset_after: CountFromZero | None = None
    """Break the connection after so many chunks of the body, in any case before its end."""
    garbage: bool = False
    """Answer with a body that is not JSON."""
    error_event: CountFromZero | None = None
    """Send an error object within a 200, in a stream after so many chunks."""
    no_terminator: bool = False
    """End the body after its content: no finish reason, no usage, no [DONE]."""
    retry_after: SecondsFromZero | None = None
    """Retry-After header, with `status`."""
    times: Count = 1
    """Fail so many calls in a row, then go on with the next failure of the list, and at last with answers."""
    every: Count | None = None
    """Instead of `times`: fail each so many-th call, for ever."""

    @model_validator(mode="after")
    def _one_kind(self) -> MockFailure:
        if len(self._kinds()) != 1:
            raise ValueError(f"must have exactly one of {', '.join(FAILURE_KINDS)}")
        return self

    def _kinds(self) -> list[str]:
        values = {kind: getattr(self, kind) for kind in FAILURE_KINDS}
        return [kind for kind, value in values.items() if value is not None and value is not False]


FAILURE_KINDS = ("status", "connect", "stall", "stall_after", "reset_after", "garbage", "error_event", "no_terminator")


class MockOptions(Section):
    """How the built-in mock behaves."""

    delay: SecondsFromZero = 0.0
    """Until the headers of the answer."""
    tokens_per_second: NumberFromZero = 0.0
    """Pace of a stream; 0 sends all of it at once."""
    words: Count = 50
    """Length of what `lorem` writes, unless the request's limit is lower."""
    reasoning: str = ""
    """Thinking to send before the answer."""
    dimensions: Count = 256
    """Dimensions of what `embed` returns, unless the request asks for a number."""
    finish_reason: str = ""
    """Finish reason to claim instead of the true one."""
    usage: MockUsage = MockUsage()
    """Token counts to claim."""
    failures: tuple[MockFailure, ...] = ()
    """Failures to go through, in order."""


class Prices(Section):
    """Prices of a million tokens, in units of the currency. A class without a price counts at its whole's."""

    input: Price
    """Input."""
    output: Price | None = None
    """Output."""
    cache_read: Price | None = None
    """Input read from the vendor's prompt cache."""
    cache_write: Price | None = None
    """Input written to it with the vendor's default TTL."""
    cache_write_1h: Price | None = None
    """Input written to it for an hour."""
    audio_input: Price | None = None
    """Audio input."""
    image_input: Price | None = None
    """Image input."""
    audio_output: Price | None = None
    """Audio output."""
    reasoning: Price | None = None
    """Reasoning."""
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    """ISO 4217 code."""


class ModelCard(Section):
    """What the operator knows of a model, before any public list."""

    display_name: str = ""
    """Name for people."""
    context_window: Count | None = None
    """Most tokens of input and output together."""
    max_output_tokens: Count | None = None
    """Most tokens of output."""
    prices: Prices | None = None
    """What its tokens cost."""


class GoogleCredential(Section):
    """Tokens of Google Cloud, fetched and refreshed."""

    type: Literal["google"]
    """Whose tokens."""
    file: Path | None = None
    """Key of a service account, or configuration of a workload identity; by default Application Default Credentials."""


class TokenService(Section):
    """Where tokens are fetched."""

    ca_file: Path | None = None
    """Certificates for it to be trusted by instead of the system's, in PEM, relative to the configuration file."""
    proxy: ProxyUrl | None = Field(default=None, repr=False)
    """HTTP proxy on the way to it; by default what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say, and "" for none."""

    @field_serializer("proxy")
    def _mask_proxy(self, proxy: str | None) -> str | None:
        return masked_password(proxy)


class EntraCredential(TokenService):
    """Tokens of Microsoft Entra ID, fetched and refreshed: of an application, which has a secret or a federated token,
    or else of the managed identity of the machine."""

    type: Literal["entra"]
    """Whose tokens."""
    tenant_id: Annotated[str, Field(pattern=r"^[0-9A-Za-z.-]*$")] = ""
    """The application's tenant."""
    client_id: str = ""
    """The application, or a user-assigned managed identity."""
    client_secret: ApiKey | None = None
    """The application's secret; with client_secret_file, what that file holds."""
    client_secret_file: Path | None = None
    """File that holds the secret, relative to the configuration file. Not together with client_secret."""
    federated_token_file: Path | None = None
    """File with a token that stands for the secret, read anew each time: ${AZURE_FEDERATED_TOKEN_FILE} in AKS."""
    identity_endpoint: BaseUrl = "http://169.254.169.254/metadata/identity/oauth2/token"
    """Where a managed identity's tokens come from: ${IDENTITY_ENDPOINT} in App Service and Container Apps."""
    identity_header: ApiKey | None = None
    """What that endpoint asks for: ${IDENTITY_HEADER} in App Service and Container Apps."""
    authority: BaseUrl = "https://login.microsoftonline.com"
    """Address of Entra ID; other clouds have others."""
    scope: str = "https://cognitiveservices.azure.com/.default"
    """What the token is for."""

    @property
    def token_url(self) -> str:
        """Where an application's tokens come from; empty for a managed identity."""
        of_application = self.client_secret or self.federated_token_file
        return f"{self.authority}/{self.tenant_id}/oauth2/v2.0/token" if of_application else ""

    @model_validator(mode="after")
    def _one_identity(self) -> EntraCredential:
        if self.client_secret and self.federated_token_file:
            raise ValueError("federated_token_file is instead of client_secret, not beside it")
        if self.token_url and not (self.tenant_id and self.client_id):
            raise ValueError("an application needs tenant_id and client_id")
        return self


class OAuthCredential(TokenService):
    """Tokens by OAuth client credentials, fetched and refreshed."""

    type: Literal["oauth"]
    """Whose tokens."""
    token_url: TokenUrl
    """Where they come from."""
    client_id: Annotated[str, Field(min_length=1)]
    """Who asks."""
    client_secret: ApiKey
    """The secret; with client_secret_file, what that file holds."""
    client_secret_file: Path | None = None
    """File that holds the secret, relative to the configuration file. Not together with client_secret."""
    auth_method: Literal["client_secret_post", "client_secret_basic"] = "client_secret_post"
    """Where id and secret stand: in the body, or in the authorization header."""
    scope: str = ""
    """Scopes to ask for, separated by spaces."""
    audience: str = ""
    """Audience to ask for, where the service wants one."""


CREDENTIALS: dict[str | int, type[Section]] = {
    "google": GoogleCredential,
    "entra": EntraCredential,
    "oauth": OAuthCredential,
}
Credential = Annotated[GoogleCredential | EntraCredential | OAuthCredential, Field(discriminator="type")]


class Provider(Treatment):
    """One vendor account, or a server of your own that speaks a known wire."""

    host: str = ""
    """Known host whose address and wire it borrows; by default the provider's own name, where that is one."""
    adapter: str = ""
    """Wire it speaks, such as openai; by default the host's."""
    base_url: BaseUrl = ""
    """Address that paths are appended to; by default the host's."""
    issuer: str = ""
    """Vendor's name in provider options and opaque values; by default the host's, or the provider's own name."""
    api_key: ApiKey | None = None
    """Key for the vendor; with api_key_file, what that file holds."""
    api_key_file: Path | None = None
    """File that holds the key, relative to the configuration file. Not together with api_key."""
    credential: Credential | None = None
    """Tokens instead of a key; by default the host's."""
    api_version: ApiVersion = ""
    """Dated API of Azure, with the deployment in the path; by default its v1 API, which has no date."""
    headers: dict[HeaderName, HeaderValue] = Field(default={}, repr=False)
    """Extra headers of every request; treated as secrets."""
    transport: TransportName = "aiohttp"
    """What makes the HTTP calls: aiohttp, or httpx2, which is an extra."""
    ca_file: Path | None = None
    """Certificates to trust instead of the system's, in PEM, relative to the configuration file."""
    client_certificate_file: Path | None = None
    """Certificate to show to a vendor that asks for one, in PEM, relative to the configuration file."""
    client_key_file: Path | None = None
    """Its private key, unencrypted, in PEM; by default in the certificate's file."""
    proxy: ProxyUrl | None = Field(default=None, repr=False)
    """HTTP proxy; by default what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say, and "" for none."""
    by_model: dict[str, Treatment] = {}
    """How single models of it are treated otherwise, by the vendor's name of the model."""
    max_connections: Count = 256
    """Calls in flight to it; more are refused, or go to the next target."""
    embed_concurrency: Count = 4
    """Sub-batches of one Embed call in flight at a time."""
    quirks: QuirkOverrides = {}
    """Departures from the host's row: the fields of Quirks in providers/hosts.py."""
    models: tuple[str, ...] = ()
    """Models to list for it in ListModels; others can be called all the same."""
    catalog: dict[str, ModelCard] = {}
    """Facts and prices by model; they go before the public price list, and the models are listed."""
    mock: MockOptions | None = None
    """Behaviour of the mock; only for the adapter mock."""

    @model_validator(mode="after")
    def _mock_is_for_the_mock(self) -> Provider:
        if self.mock is not None and self.adapter != "mock":
            raise ValueError("mock is only for the adapter mock")
        return self

    @model_validator(mode="after")
    def _one_credential(self) -> Provider:
        if self.credential is not None and self.api_key is not None:
            raise ValueError("credential is instead of api_key, not beside it")
        return self

    @model_validator(mode="after")
    def _a_key_has_a_certificate(self) -> Provider:
        if self.client_key_file and not self.client_certificate_file:
            raise ValueError("client_key_file needs client_certificate_file")
        return self

    @field_serializer("headers")
    def _mask_headers(self, headers: dict[str, str]) -> dict[str, str]:
        return dict.fromkeys(headers, MASK)

    @field_serializer("proxy")
    def _mask_proxy(self, proxy: str | None) -> str | None:
        return masked_password(proxy)


class TargetReference(Section):
    """One model at one configured provider."""

    provider: str
    """Name of a provider of this configuration."""
    model: Annotated[str, Field(min_length=1)]
    """The vendor's name of the model; `*` in it is what the `*` of the alias stood for."""
    weight: Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)] = 1.0
    """Share of the calls, where the strategy or affinity_key shares them out; 0 for only when all others fail."""
    arm: str = ""
    """Name of the target in an experiment; the answer and the log tell it."""


class Alias(Section):
    """A name for callers, and what it stands for. One `*` in the name stands for any text."""

    targets: Annotated[tuple[TargetReference, ...], Field(min_length=1)]
    """Where calls go: the next is tried when one fails before its first content."""
    strategy: StrategyName = "priority"
    """Which target goes first: priority (as listed), weighted, least-busy, latency or cost."""
    hedge_delay: Seconds | None = None
    """Delay after which a second target is asked too, and the first to answer is taken; by default never."""


class RoutingRule(Section):
    """Sends calls with certain labels to another model than the one they ask for. The first rule that fits holds."""

    labels: Annotated[dict[str, str], Field(min_length=1)]
    """Labels that a call must bear, by name; `*` in a value stands for any text."""
    models: tuple[str, ...] = ()
    """Models that the rule is for, `*` for any text; by default every alias, but no provider/model."""
    model: Annotated[str, Field(min_length=1)]
    """Alias, or provider/model, that such calls go to."""


class HealthChecks(Section):
    """Looking after providers that have no traffic, by asking for their list of models."""

    interval: SecondsFromZero = 30.0
    """Idle time after which a provider is asked; 0 for never."""
    timeout: Seconds = 5.0
    """How long it may take to answer."""


class Routing(Treatment):
    """Which targets calls go to, and how targets are treated unless their provider says otherwise."""

    default_deadline: Seconds = 600.0
    """How long a call may take whose caller set no deadline; the answer has a warning then."""
    max_attempts: Count = 8
    """Most upstream attempts for one call; a caller's max_attempts can only lower it."""
    rules: tuple[RoutingRule, ...] = ()
    """Where calls with certain labels go."""
    health: HealthChecks = HealthChecks()
    """Looking after idle providers."""


class Traces(Section):
    """Traces, by OpenTelemetry; needs the extra [otel]. Its SDK is configured by its own variables, OTEL_*."""

    enabled: bool = False
    """Record calls and send them. How many is for OTEL_TRACES_SAMPLER to say; by default all."""
    propagate: bool = True
    """Tell vendors which trace a call belongs to, by `traceparent`; a caller's own is passed on without traces too."""
    content: bool = False
    """Record prompts and answers too."""
    content_limit: Count = 16384
    """Most characters of a prompt, and of an answer, that are recorded; bytes of media never are."""
    exporters: tuple[str, ...] = ("otlp",)
    """Where traces go: otlp, console, none. The variable OTEL_TRACES_EXPORTER overrides it."""
    protocol: Literal["grpc", "http/protobuf"] = "grpc"
    """How otlp sends them. OTEL_EXPORTER_OTLP_TRACES_PROTOCOL and OTEL_EXPORTER_OTLP_PROTOCOL override it."""


class Telemetry(Section):
    """Logs and traces."""

    log_level: LogLevel = "info"
    """Least level that is logged. The variable LOG_LEVEL overrides it."""
    log_levels: dict[Component, LogLevel] = {}
    """Other levels for single components, by the `component` of their lines."""
    log_repeats: CountFromZero = 10
    """Lines a minute of one warning or error; then only their number is logged. 0 for all of them."""
    log_format: Annotated[Literal["json", "console"], LowerCase] = "json"
    """JSON lines, or text for people. The variable LOG_FORMAT overrides it."""
    traces: Traces = Traces()
    """What is recorded of calls, and where it is sent."""


class Config(Section):
    """The whole configuration."""

    server: Server = Server()
    """The gRPC listener."""
    admin: Admin = Admin()
    """The HTTP listener for operators."""
    auth: Auth = Auth()
    """Who may call."""
    limits: Limits = Limits()
    """How much callers may use."""
    ledger: Ledger | None = None
    """A row for each call and for each upstream attempt; none by default."""
    providers: dict[ProviderName, Provider] = {}
    """Vendor accounts by name; callers write `name/model`."""
    models: dict[AliasName, Alias] = {}
    """Aliases by name."""
    routing: Routing = Routing()
    """Which targets calls go to, and how targets are treated."""
    telemetry: Telemetry = Telemetry()
    """Logs and traces."""
