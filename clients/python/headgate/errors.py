"""Every failure of a call, as one tree; the reasons are those of Headgate's error table.

    HeadgateError
    ├── CallFailed                              anything the table does not know
    │   ├── InvalidRequest                      INVALID_REQUEST: `violations` name the fields
    │   │   └── UnsupportedParameter            UNSUPPORTED_PARAMETER
    │   ├── ProviderRejectedRequest             PROVIDER_REJECTED_REQUEST
    │   │   └── ContextLengthExceeded           CONTEXT_LENGTH_EXCEEDED
    │   ├── Unauthenticated                     INVALID_CREDENTIALS
    │   │   └── MissingCredentials              MISSING_CREDENTIALS
    │   ├── PermissionDenied
    │   │   ├── ModelNotAllowed                 MODEL_NOT_ALLOWED
    │   │   └── CallerCredentialsRejected       CALLER_CREDENTIALS_REJECTED
    │   ├── NotFound
    │   │   ├── ModelNotFound                   MODEL_NOT_FOUND
    │   │   └── ProviderResourceNotFound        PROVIDER_RESOURCE_NOT_FOUND: `resource`
    │   ├── FailedPrecondition
    │   │   ├── NoEligibleProvider              NO_ELIGIBLE_PROVIDER
    │   │   ├── ProviderCredentialsRejected     PROVIDER_CREDENTIALS_REJECTED
    │   │   ├── ProviderModelMissing            PROVIDER_MODEL_MISSING
    │   │   └── OpaqueStateRejected             OPAQUE_STATE_REJECTED
    │   ├── ResourceExhausted
    │   │   ├── RateLimited                     RATE_LIMITED: `retry_after`, `limits`
    │   │   │   └── ProviderRateLimited         PROVIDER_RATE_LIMITED
    │   │   ├── BudgetExceeded                  BUDGET_EXCEEDED: `limits`
    │   │   └── ProviderQuotaExhausted          PROVIDER_QUOTA_EXHAUSTED
    │   ├── Unavailable
    │   │   ├── ServerUnreachable               no Headgate answered: no details came with the status
    │   │   ├── GatewayOverloaded               GATEWAY_OVERLOADED
    │   │   ├── GatewayDraining                 GATEWAY_DRAINING
    │   │   └── ProviderError                   PROVIDER_ERROR
    │   │       ├── ProviderUnreachable         PROVIDER_UNREACHABLE
    │   │       ├── ProviderOverloaded          PROVIDER_OVERLOADED
    │   │       ├── ProviderTimeout             PROVIDER_TIMEOUT: `phase`
    │   │       └── ProviderProtocolError       PROVIDER_PROTOCOL_ERROR
    │   ├── StreamInterrupted                   STREAM_INTERRUPTED: `partial`
    │   ├── DeadlineExceeded                    DEADLINE
    │   ├── CallCancelled                       CANCELLED: left by this side
    │   └── InternalError                       INTERNAL
    ├── InvalidOutput                           an answer is not what `Answer.parse` was asked for
    └── TooManyRounds                           a tool loop came to no end

A refusal, a content filter and a blocked prompt are answers: see `Answer.finish_reason`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

from grpc import RpcError, StatusCode

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage
    from headgate import v1 as pb
    from headgate.answer import Answer

DOMAIN = "headgate"
DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with a request: the field's path, such as `messages[0].parts[1].text`, and what is wrong."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit or budget without room: for whom, such as `tenant:acme model:fast`, and in words."""

    subject: str
    description: str


@dataclass(frozen=True, slots=True)
class Resource:
    """Something the request named and the vendor does not have."""

    type: str
    name: str


class HeadgateError(Exception):
    """What this package raises, except TypeError and ValueError for arguments that cannot be sent."""


class CallFailed(HeadgateError):
    """A call that ended with a status other than OK.

    `code` is gRPC's and `reason` Headgate's; `retry_after` is in seconds; `retryable` says that the same call may be
    sent again. `attempts` is how often vendors were asked, `partial` what a stream had delivered by then, and `details`
    the metadata of ErrorInfo, such as `http_status` and `provider_request_id`. Quote `request_id` to the operator.
    """

    code: StatusCode = StatusCode.UNKNOWN
    reason: str = ""
    again: ClassVar[bool] = False

    def __init__(
        self,
        message: str = "",
        *,
        request_id: str = "",
        retry_after: float | None = None,
        violations: Sequence[Violation] = (),
        limits: Sequence[Limit] = (),
        resource: Resource | None = None,
        details: Mapping[str, str] | None = None,
        partial: Answer | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.retry_after = retry_after
        self.violations: tuple[Violation, ...] = tuple(violations)
        self.limits: tuple[Limit, ...] = tuple(limits)
        self.resource = resource
        self.details: dict[str, str] = dict(details or {})
        self.partial = partial

    @property
    def retryable(self) -> bool:
        """The same call may be sent again, after `retry_after` if that is known; never once content has come."""
        return self.again and self.partial is None

    @property
    def provider(self) -> str:
        """The configured provider that failed; empty when none was asked."""
        return self.details.get("provider", "")

    @property
    def model(self) -> str:
        """The vendor's model that failed; empty when none was asked."""
        return self.details.get("model", "")

    @property
    def attempts(self) -> int:
        """How many times vendors were asked."""
        count = self.details.get("attempt_count", "")
        return int(count) if count.isdecimal() else 0

    def __str__(self) -> str:
        where = f" [request {self.request_id}]" if self.request_id else ""
        return f"{self.reason or self.code.name}: {self.message}{where}"


class InvalidRequest(CallFailed):
    """The request breaks a rule of the contract; `violations` name the fields."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"


class UnsupportedParameter(InvalidRequest):
    """No target can honour a setting that must not be dropped."""

    reason = "UNSUPPORTED_PARAMETER"


class ProviderRejectedRequest(CallFailed):
    """The vendor calls the request invalid."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "PROVIDER_REJECTED_REQUEST"


class ContextLengthExceeded(ProviderRejectedRequest):
    """The conversation is longer than the model's context window."""

    reason = "CONTEXT_LENGTH_EXCEEDED"


class Unauthenticated(CallFailed):
    """The key or token is not good; the operator's log says why."""

    code = StatusCode.UNAUTHENTICATED
    reason = "INVALID_CREDENTIALS"


class MissingCredentials(Unauthenticated):
    """Callers must say who they are: give `api_key` or `token`."""

    reason = "MISSING_CREDENTIALS"


class PermissionDenied(CallFailed):
    """The caller is known and may not do this."""

    code = StatusCode.PERMISSION_DENIED


class ModelNotAllowed(PermissionDenied):
    """The caller may not use the model, whether or not there is one of that name."""

    reason = "MODEL_NOT_ALLOWED"


class CallerCredentialsRejected(PermissionDenied):
    """The vendor refuses the caller's own key, or the operator lets nobody bring one."""

    reason = "CALLER_CREDENTIALS_REJECTED"


class NotFound(CallFailed):
    """Something the request names does not exist."""

    code = StatusCode.NOT_FOUND


class ModelNotFound(NotFound):
    """No such alias or provider."""

    reason = "MODEL_NOT_FOUND"


class ProviderResourceNotFound(NotFound):
    """The vendor does not have `resource`."""

    reason = "PROVIDER_RESOURCE_NOT_FOUND"


class FailedPrecondition(CallFailed):
    """The call cannot succeed until something else is changed, mostly by the operator."""

    code = StatusCode.FAILED_PRECONDITION


class NoEligibleProvider(FailedPrecondition):
    """The routing policy leaves no target."""

    reason = "NO_ELIGIBLE_PROVIDER"


class ProviderCredentialsRejected(FailedPrecondition):
    """The vendor refuses the operator's key."""

    reason = "PROVIDER_CREDENTIALS_REJECTED"


class ProviderModelMissing(FailedPrecondition):
    """The vendor lacks the model that the operator configured."""

    reason = "PROVIDER_MODEL_MISSING"


class OpaqueStateRejected(FailedPrecondition):
    """The vendor refuses a signature or item id given back to it: send the history without it."""

    reason = "OPAQUE_STATE_REJECTED"


class ResourceExhausted(CallFailed):
    """Something is used up. Without details: a message larger than gRPC lets through."""

    code = StatusCode.RESOURCE_EXHAUSTED


class RateLimited(ResourceExhausted):
    """A limit has no room: wait `retry_after` seconds; without one the call is larger than the limit ever holds."""

    reason = "RATE_LIMITED"

    @property
    def retryable(self) -> bool:
        return self.retry_after is not None and self.partial is None


class ProviderRateLimited(RateLimited):
    """The vendor's own rate limit."""

    reason = "PROVIDER_RATE_LIMITED"


class BudgetExceeded(ResourceExhausted):
    """The caller's budget is spent; `retry_after`, if there is one, is when it begins anew."""

    reason = "BUDGET_EXCEEDED"


class ProviderQuotaExhausted(ResourceExhausted):
    """The operator's quota or credit at the vendor is used up."""

    reason = "PROVIDER_QUOTA_EXHAUSTED"


class Unavailable(CallFailed):
    """Nobody could answer just now; unless there is a `partial`, nothing was delivered."""

    code = StatusCode.UNAVAILABLE
    again = True


class ServerUnreachable(Unavailable):
    """No Headgate answered at the address, or the connection broke before anything came."""


class GatewayOverloaded(Unavailable):
    """The gateway sheds calls."""

    reason = "GATEWAY_OVERLOADED"


class GatewayDraining(Unavailable):
    """The gateway shuts down."""

    reason = "GATEWAY_DRAINING"


class ProviderError(Unavailable):
    """The vendor failed, or failed so often that it is left alone for a while."""

    reason = "PROVIDER_ERROR"


class ProviderUnreachable(ProviderError):
    """The gateway could not connect to the vendor."""

    reason = "PROVIDER_UNREACHABLE"


class ProviderOverloaded(ProviderError):
    """The vendor is overloaded."""

    reason = "PROVIDER_OVERLOADED"


class ProviderTimeout(ProviderError):
    """The vendor was too slow."""

    reason = "PROVIDER_TIMEOUT"

    @property
    def phase(self) -> str:
        """Which clock ran out: connect, first_token, idle, total or default_deadline."""
        return self.details.get("phase", "")


class ProviderProtocolError(ProviderError):
    """The vendor's answer could not be read."""

    reason = "PROVIDER_PROTOCOL_ERROR"


class StreamInterrupted(CallFailed):
    """The vendor, or the connection, broke off after content was delivered; `partial` is what came.

    Starting again is up to you.
    """

    code = StatusCode.ABORTED
    reason = "STREAM_INTERRUPTED"


class DeadlineExceeded(CallFailed):
    """`timeout` passed."""

    code = StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE"


class CallCancelled(CallFailed):
    """This side left the call."""

    code = StatusCode.CANCELLED
    reason = "CANCELLED"


class InternalError(CallFailed):
    """A bug of the gateway; its log has it under the request id."""

    code = StatusCode.INTERNAL
    reason = "INTERNAL"


class InvalidOutput(HeadgateError):
    """An answer's text is not the JSON that was asked for: cut off, refused, or against the schema."""

    def __init__(self, message: str, answer: Answer) -> None:
        super().__init__(message)
        self.answer = answer

    def __reduce__(self) -> tuple[type[InvalidOutput], tuple[str, Answer]]:
        return type(self), (str(self), self.answer)


class TooManyRounds(HeadgateError):
    """The model still calls tools after the last round allowed; `messages` are the conversation so far."""

    def __init__(self, message: str, messages: Sequence[pb.Message]) -> None:
        super().__init__(message)
        self.messages: tuple[pb.Message, ...] = tuple(messages)

    def __reduce__(self) -> tuple[type[TooManyRounds], tuple[str, tuple[pb.Message, ...]]]:
        return type(self), (str(self), self.messages)


class Status(Protocol):
    """How errors of grpc and grpc.aio say what happened."""

    def code(self) -> StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Sequence[tuple[str, str | bytes]] | None: ...


def failure(error: RpcError, request_id: str = "", partial: Answer | None = None) -> CallFailed:
    """The error for gRPC's error of a call that was sent with this request id.

    Reasons that are not known here, those of a newer server, become the class of their status code.
    """
    from google.protobuf.message import DecodeError
    from google.rpc.status_pb2 import Status as RpcStatus

    status = cast(Status, error)
    trailer = status.trailing_metadata() or ()
    packed = next((value for name, value in trailer if name == DETAILS and isinstance(value, bytes)), b"")
    try:
        facts = _Facts.read(RpcStatus.FromString(packed).details)
    except DecodeError:
        facts = _Facts()
    if not facts.reason and partial and status.code() in _BROKEN:
        return StreamInterrupted(status.details() or "", request_id=request_id, partial=partial)
    known = _BY_REASON.get(facts.reason) or _by_code(status.code(), answered=bool(facts.reason))
    failed = known(
        status.details() or "",
        request_id=facts.request_id or request_id,
        retry_after=facts.retry_after,
        violations=facts.violations,
        limits=facts.limits,
        resource=facts.resource,
        details=facts.metadata,
        partial=partial,
    )
    failed.code = status.code()
    failed.reason = facts.reason or known.reason
    return failed


def error_for(reason: str) -> type[CallFailed]:
    """The class for a reason; CallFailed when there is none."""
    return _BY_REASON.get(reason, CallFailed)


@dataclass(slots=True)
class _Facts:
    """What google.rpc details say."""

    reason: str = ""
    request_id: str = ""
    retry_after: float | None = None
    violations: tuple[Violation, ...] = ()
    limits: tuple[Limit, ...] = ()
    resource: Resource | None = None
    metadata: Mapping[str, str] | None = None

    @classmethod
    def read(cls, details: Sequence[AnyMessage]) -> _Facts:
        from google.rpc import error_details_pb2 as rpc

        facts = cls()
        info, bad_request, quota = rpc.ErrorInfo(), rpc.BadRequest(), rpc.QuotaFailure()
        retry, request, resource = rpc.RetryInfo(), rpc.RequestInfo(), rpc.ResourceInfo()
        for detail in details:
            if detail.Unpack(info):
                facts.reason, facts.metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad_request):
                facts.violations = tuple(Violation(v.field, v.description) for v in bad_request.field_violations)
            elif detail.Unpack(quota):
                facts.limits = tuple(Limit(v.subject, v.description) for v in quota.violations)
            elif detail.Unpack(retry):
                facts.retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
            elif detail.Unpack(request):
                facts.request_id = request.request_id
            elif detail.Unpack(resource):
                facts.resource = Resource(resource.resource_type, resource.resource_name)
        return facts


def _tree(root: type[CallFailed]) -> list[type[CallFailed]]:
    return [root, *(leaf for branch in root.__subclasses__() for leaf in _tree(branch))]


def _by_code(code: StatusCode, *, answered: bool) -> type[CallFailed]:
    if code is StatusCode.UNAVAILABLE and not answered:
        return ServerUnreachable
    return _BY_CODE.get(code, CallFailed)


_BROKEN = {StatusCode.UNAVAILABLE, StatusCode.INTERNAL, StatusCode.UNKNOWN}
"""What gRPC itself says of a connection that broke; the gateway says it with a reason."""

_BY_REASON = {error.reason: error for error in _tree(CallFailed) if error.reason}
_BY_CODE: dict[StatusCode, type[CallFailed]] = {
    StatusCode.INVALID_ARGUMENT: InvalidRequest,
    StatusCode.UNAUTHENTICATED: Unauthenticated,
    StatusCode.PERMISSION_DENIED: PermissionDenied,
    StatusCode.NOT_FOUND: NotFound,
    StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    StatusCode.UNAVAILABLE: Unavailable,
    StatusCode.ABORTED: StreamInterrupted,
    StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    StatusCode.CANCELLED: CallCancelled,
    StatusCode.INTERNAL: InternalError,
}
