"""Every failure that a caller can be told, as one tree.

    GatewayError
    ├── InvalidRequest                 INVALID_ARGUMENT     INVALID_REQUEST
    │   └── UnsupportedParameter       INVALID_ARGUMENT     UNSUPPORTED_PARAMETER
    ├── MissingCredentials             UNAUTHENTICATED      MISSING_CREDENTIALS
    ├── InvalidCredentials             UNAUTHENTICATED      INVALID_CREDENTIALS
    ├── TooManyFailures                RESOURCE_EXHAUSTED   RATE_LIMITED
    ├── ModelNotAllowed                PERMISSION_DENIED    MODEL_NOT_ALLOWED
    ├── CallerCredentialsRejected      PERMISSION_DENIED    CALLER_CREDENTIALS_REJECTED
    ├── ModelNotFound                  NOT_FOUND            MODEL_NOT_FOUND
    ├── NoEligibleProvider             FAILED_PRECONDITION  NO_ELIGIBLE_PROVIDER
    │   └── UnpricedTarget             FAILED_PRECONDITION  NO_ELIGIBLE_PROVIDER
    ├── RateLimited                    RESOURCE_EXHAUSTED   RATE_LIMITED
    │   ├── LargerThanLimit            RESOURCE_EXHAUSTED   RATE_LIMITED
    │   └── ProviderLimitReached       RESOURCE_EXHAUSTED   RATE_LIMITED
    │       └── LargerThanProviderLimit RESOURCE_EXHAUSTED  RATE_LIMITED
    ├── BudgetExceeded                 RESOURCE_EXHAUSTED   BUDGET_EXCEEDED
    │   └── ProviderBudgetExceeded     RESOURCE_EXHAUSTED   BUDGET_EXCEEDED
    ├── GatewayOverloaded              UNAVAILABLE          GATEWAY_OVERLOADED
    ├── GatewayDraining                UNAVAILABLE          GATEWAY_DRAINING
    ├── DeadlineExceeded               DEADLINE_EXCEEDED    DEADLINE
    ├── CallCancelled                  CANCELLED            CANCELLED
    ├── InternalError                  INTERNAL             INTERNAL
    ├── StreamInterrupted              ABORTED              STREAM_INTERRUPTED
    └── ProviderError                  UNAVAILABLE          PROVIDER_ERROR
        ├── CircuitOpen                UNAVAILABLE          PROVIDER_ERROR
        ├── ProviderUnreachable        UNAVAILABLE          PROVIDER_UNREACHABLE
        ├── ProviderTimeout            UNAVAILABLE          PROVIDER_TIMEOUT
        ├── ProviderOverloaded         UNAVAILABLE          PROVIDER_OVERLOADED
        ├── ProviderProtocolError      UNAVAILABLE          PROVIDER_PROTOCOL_ERROR
        │   └── ProviderBrokeOff       UNAVAILABLE          PROVIDER_PROTOCOL_ERROR
        ├── ProviderRateLimited        RESOURCE_EXHAUSTED   PROVIDER_RATE_LIMITED
        ├── ProviderQuotaExhausted     RESOURCE_EXHAUSTED   PROVIDER_QUOTA_EXHAUSTED
        ├── ProviderRejectedRequest    INVALID_ARGUMENT     PROVIDER_REJECTED_REQUEST
        ├── ContextLengthExceeded      INVALID_ARGUMENT     CONTEXT_LENGTH_EXCEEDED
        ├── ContentFiltered            INVALID_ARGUMENT     PROVIDER_REJECTED_REQUEST
        ├── ProviderCredentialsRejected FAILED_PRECONDITION PROVIDER_CREDENTIALS_REJECTED
        ├── ProviderModelMissing       FAILED_PRECONDITION  PROVIDER_MODEL_MISSING
        ├── ProviderResourceNotFound   NOT_FOUND            PROVIDER_RESOURCE_NOT_FOUND
        └── OpaqueStateRejected        FAILED_PRECONDITION  OPAQUE_STATE_REJECTED

The text of an error is ours and public; what the vendor said stays in `vendor_detail`, for the log alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from grpc import StatusCode

NAMED_IN_MESSAGE = 3


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with a request: the field's path, such as `messages[0].parts[1].text`, and what is wrong."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that the caller named and the vendor does not have."""

    type: str
    name: str


@dataclass(frozen=True, slots=True)
class ReachedLimit:
    """A limit that has no room: what it counts, for whom, such as `tenant:acme model:fast`, and in words."""

    unit: str
    subject: str
    description: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.description}"


class GatewayError(Exception):
    """A failure with a place in the contract's error table.

    `other_target` says that the next target may answer; `same_target` that the same one may, when asked once more;
    `retryable` that the caller may send the call again; `retry_after` is in seconds. `facts` become ErrorInfo metadata.
    """

    code: ClassVar[StatusCode] = StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    other_target: ClassVar[bool] = False
    retryable: ClassVar[bool] = False
    same_target: bool = False
    asked: bool = True
    """A vendor was asked, or might have been; False for what kept the gateway from asking."""

    def __init__(
        self,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        resource: Resource | None = None,
        reached_limits: Sequence[ReachedLimit] = (),
        retry_after: float | None = None,
        facts: Mapping[str, str] | None = None,
        vendor_detail: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violations = tuple(violations)
        self.resource = resource
        self.reached_limits = tuple(reached_limits)
        self.retry_after = retry_after
        self.facts: dict[str, str] = dict(facts or {})
        self.vendor_detail = vendor_detail


class InvalidRequest(GatewayError):
    """The request breaks a rule of the contract; `violations` name the fields."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    @classmethod
    def at(cls, field: str, description: str) -> InvalidRequest:
        """The error for one field."""
        return cls(f"{field}: {description}", violations=[Violation(field, description)])

    @classmethod
    def of(cls, violations: Sequence[Violation]) -> InvalidRequest:
        """The error for all of them; its text names the first."""
        named = "; ".join(f"{v.field}: {v.description}" for v in violations[:NAMED_IN_MESSAGE])
        more = f"; and {len(violations) - NAMED_IN_MESSAGE} more" if len(violations) > NAMED_IN_MESSAGE else ""
        return cls(named + more, violations=violations)


class UnsupportedParameter(InvalidRequest):
    """A setting that the target, or this gateway, cannot honour and must not drop."""

    reason = "UNSUPPORTED_PARAMETER"
    other_target = True
    asked = False


class MissingCredentials(GatewayError):
    """Nobody says who calls, and callers must."""

    code = StatusCode.UNAUTHENTICATED
    reason = "MISSING_CREDENTIALS"


class InvalidCredentials(GatewayError):
    """What the caller presents is not good. The public text never says which part of it; the log does."""

    code = StatusCode.UNAUTHENTICATED
    reason = "INVALID_CREDENTIALS"


class TooManyFailures(GatewayError):
    """Too many callers at this address could not say who they are."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"
    retryable = True


class ModelNotAllowed(GatewayError):
    """The caller may not use the model, whether or not there is one of that name."""

    code = StatusCode.PERMISSION_DENIED
    reason = "MODEL_NOT_ALLOWED"


class CallerCredentialsRejected(GatewayError):
    """The vendor does not accept the caller's own key, or the operator does not let callers bring one."""

    code = StatusCode.PERMISSION_DENIED
    reason = "CALLER_CREDENTIALS_REJECTED"


class ModelNotFound(GatewayError):
    """No alias or provider of that name is configured."""

    code = StatusCode.NOT_FOUND
    reason = "MODEL_NOT_FOUND"


class NoEligibleProvider(GatewayError):
    """The routing policy or the targets' capabilities leave no target."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "NO_ELIGIBLE_PROVIDER"


class UnpricedTarget(NoEligibleProvider):
    """Nobody knows what the target costs, a budget applies, and the configuration refuses that."""

    other_target = True
    asked = False


class RateLimited(GatewayError):
    """A limit of the caller has no room for the call; `reached_limits` are all that have none."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"
    asked = False
    retryable = True


class LargerThanLimit(RateLimited):
    """The call alone is more than a limit ever holds."""

    retryable = False


class ProviderLimitReached(RateLimited):
    """A limit on what goes to one provider, or to a fallback's name, has no room; another target may."""

    other_target = True


class LargerThanProviderLimit(ProviderLimitReached):
    """The call alone is more than a limit on one provider, or on a fallback's name, ever holds."""

    retryable = False


class BudgetExceeded(GatewayError):
    """A budget has no money left for the call; `reached_limits` are all limits that have no room."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "BUDGET_EXCEEDED"
    asked = False


class ProviderBudgetExceeded(BudgetExceeded):
    """The budget is one of a provider or a target; another may have money left."""

    other_target = True


class GatewayOverloaded(GatewayError):
    """The gateway sheds this call: too many calls, or no free connection."""

    code = StatusCode.UNAVAILABLE
    reason = "GATEWAY_OVERLOADED"
    other_target = True
    retryable = True


class GatewayDraining(GatewayError):
    """The gateway shuts down."""

    code = StatusCode.UNAVAILABLE
    reason = "GATEWAY_DRAINING"
    retryable = True


class DeadlineExceeded(GatewayError):
    """The caller's own deadline passed."""

    code = StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE"


class CallCancelled(GatewayError):
    """The caller went away. Nobody receives this; it is how the outcome is recorded."""

    code = StatusCode.CANCELLED
    reason = "CANCELLED"


class InternalError(GatewayError):
    """A bug of ours. The text is fixed; the log has the trace."""

    def __init__(self, message: str = "internal error") -> None:
        super().__init__(message)


class StreamInterrupted(GatewayError):
    """The vendor's stream broke after content had been delivered."""

    code = StatusCode.ABORTED
    reason = "STREAM_INTERRUPTED"


class ProviderError(GatewayError):
    """The vendor failed (5xx), or an upstream failure that no leaf below describes better."""

    code = StatusCode.UNAVAILABLE
    reason = "PROVIDER_ERROR"
    other_target = True
    retryable = True
    same_target = True
    callers_clock: bool = False
    """A clock ran out that is the call's, not the target's: the caller shortened it, or it is the default deadline."""


class CircuitOpen(ProviderError):
    """The target failed too often and is not called for a while."""

    same_target = False
    asked = False


class ProviderUnreachable(ProviderError):
    """No connection: name resolution, connect, TLS, or the connection broke before the answer."""

    reason = "PROVIDER_UNREACHABLE"


class ProviderTimeout(ProviderError):
    """One of the gateway's clocks ran out, or the vendor said 408 or 504. The fact `phase` says which."""

    reason = "PROVIDER_TIMEOUT"

    @classmethod
    def by_clock(cls, phase: str, *, callers: bool = False) -> ProviderTimeout:
        """The error of a clock. After a long wait in vain the same target is not asked again."""
        error = cls(f"the provider was too slow ({phase} clock)", facts={"phase": phase})
        error.same_target = False
        error.callers_clock = callers
        return error


class ProviderOverloaded(ProviderError):
    """The vendor is overloaded: 503, 529."""

    reason = "PROVIDER_OVERLOADED"


class ProviderProtocolError(ProviderError):
    """The vendor's answer cannot be read."""

    reason = "PROVIDER_PROTOCOL_ERROR"
    same_target = False


class ProviderBrokeOff(ProviderProtocolError):
    """The connection broke within the answer."""

    same_target = True


class ProviderRateLimited(ProviderError):
    """The vendor's rate limit: 429."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "PROVIDER_RATE_LIMITED"


class ProviderQuotaExhausted(ProviderError):
    """The operator's quota or credit at the vendor is used up."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "PROVIDER_QUOTA_EXHAUSTED"
    retryable = False
    same_target = False


class ProviderRejectedRequest(ProviderError):
    """The vendor calls the request invalid: 400, 422."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "PROVIDER_REJECTED_REQUEST"
    other_target = False
    retryable = False
    same_target = False


class ContextLengthExceeded(ProviderRejectedRequest):
    """The conversation is longer than the model's context window."""

    reason = "CONTEXT_LENGTH_EXCEEDED"


class ContentFiltered(ProviderRejectedRequest):
    """The vendor's content filter blocked the prompt: an outcome of the model, which the caller gets as an answer.

    `provider_metadata` is what the filter found, a JSON object text by issuer, for the caller too.
    """

    provider_metadata: Mapping[str, str] = MappingProxyType({})


class ProviderCredentialsRejected(ProviderError):
    """The vendor does not accept the operator's key: 401, 403."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "PROVIDER_CREDENTIALS_REJECTED"
    retryable = False
    same_target = False


class ProviderModelMissing(ProviderError):
    """The vendor does not have the model that the configuration maps to: 404."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "PROVIDER_MODEL_MISSING"
    retryable = False
    same_target = False


class ProviderResourceNotFound(ProviderError):
    """The vendor does not have a file, response or cache that the caller named."""

    code = StatusCode.NOT_FOUND
    reason = "PROVIDER_RESOURCE_NOT_FOUND"
    other_target = False
    retryable = False
    same_target = False


class OpaqueStateRejected(ProviderError):
    """The vendor does not accept a signature, encrypted reasoning or item id that it was given back."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "OPAQUE_STATE_REJECTED"
    other_target = False
    retryable = False
    same_target = False
