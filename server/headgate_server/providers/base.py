"""What every adapter is: pure translation between headgate.v1 and one vendor's wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from headgate import v1 as pb

from headgate_server.errors import GatewayError
from headgate_server.providers.hosts import Host
from headgate_server.sse import Event


@dataclass(frozen=True, slots=True)
class Target:
    """One model at one configured provider.

    `provider` is the configured name, `model` the vendor's own; `issuer` names the vendor in opaque values and
    provider options.
    """

    provider: str
    model: str
    host: Host = field(compare=False)
    issuer: str


@dataclass(slots=True)
class HttpCall:
    """One call to make: `path` is appended to the provider's base URL, `body` is what goes out as JSON."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    warnings: list[pb.Warning] = field(default_factory=list)
    method: str = "POST"


class Stream(Protocol):
    """The state of one vendor stream, nothing else."""

    @property
    def complete(self) -> bool:
        """The vendor said that nothing more comes; the rest of the body is not waited for."""
        ...

    @property
    def usage_reports(self) -> int:
        """How often the vendor has said so far what was used up to then."""
        ...

    def feed(self, events: Sequence[Event]) -> list[pb.StreamGenerateResponse]:
        """All events of one socket read. The first event ever returned is generation_start, followed by content.

        Raises:
            GatewayError: the vendor reports an error within the stream, or what it sent cannot be read.
        """
        ...

    def end(self) -> list[pb.StreamGenerateResponse]:
        """The vendor closed: the last events, generation_end included.

        Raises:
            GatewayError: the stream ended before its end.
        """
        ...

    def interrupt(self, finish: pb.FinishReason.ValueType) -> list[pb.StreamGenerateResponse]:
        """The stream broke: open parts closed as incomplete, candidates ended, generation_end with `partial`."""
        ...


class Adapter(Protocol):
    """A module or package that translates. It does no I/O and reads no environment.

    One whose wire demands a limit of output says in `DEFAULT_MAX_OUTPUT_TOKENS` what it sends where the caller has
    none, a reasoning budget apart.
    """

    @property
    def CAPABILITIES(self) -> frozenset[str]:
        """What this wire can carry, in the words of Model.capabilities."""
        ...

    def headers(self, credential: str | None) -> dict[str, str]:
        """Authentication and version headers."""
        ...

    def encode(self, request: pb.GenerateRequest, target: Target, *, stream: bool) -> HttpCall:
        """The vendor's request.

        Raises:
            UnsupportedParameter: the request holds something that this wire cannot represent.
        """
        ...

    def decode(self, body: bytes, target: Target) -> pb.GenerateResponse:
        """The vendor's whole answer; the gateway adds id, provider, attempts, warnings and cost.

        Raises:
            ProviderProtocolError: the body cannot be read.
        """
        ...

    def Stream(self, target: Target) -> Stream:
        """The state for one stream from this target."""
        ...

    def encode_embed(self, request: pb.EmbedRequest, inputs: Sequence[pb.EmbedInput], target: Target) -> HttpCall:
        """The vendor's request for one sub-batch."""
        ...

    def decode_embed(self, body: bytes, rows: int, target: Target) -> pb.EmbedResponse:
        """One sub-batch: data as row-major little-endian float32, dimensions, rows, usage, model."""
        ...

    def error(self, status: int, headers: Mapping[str, str], body: bytes, target: Target) -> GatewayError:
        """The error of an answer with status 400 or more, or of an error object inside a 200."""
        ...
