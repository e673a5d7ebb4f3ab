package headgate

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// CallFailed is a call that ended with a status other than OK. Every error of a call is one, or embeds one:
//
//	CallFailed                          anything the table does not know
//	├── InvalidRequest                  INVALID_REQUEST: Violations name the fields
//	│   └── UnsupportedParameter        UNSUPPORTED_PARAMETER
//	├── ProviderRejectedRequest         PROVIDER_REJECTED_REQUEST
//	│   └── ContextLengthExceeded       CONTEXT_LENGTH_EXCEEDED
//	├── Unauthenticated                 INVALID_CREDENTIALS
//	│   └── MissingCredentials          MISSING_CREDENTIALS
//	├── PermissionDenied
//	│   ├── ModelNotAllowed             MODEL_NOT_ALLOWED
//	│   └── CallerCredentialsRejected   CALLER_CREDENTIALS_REJECTED
//	├── NotFound
//	│   ├── ModelNotFound               MODEL_NOT_FOUND
//	│   └── ProviderResourceNotFound    PROVIDER_RESOURCE_NOT_FOUND: Resource
//	├── FailedPrecondition
//	│   ├── NoEligibleProvider          NO_ELIGIBLE_PROVIDER
//	│   ├── ProviderCredentialsRejected PROVIDER_CREDENTIALS_REJECTED
//	│   ├── ProviderModelMissing        PROVIDER_MODEL_MISSING
//	│   └── OpaqueStateRejected         OPAQUE_STATE_REJECTED
//	├── ResourceExhausted
//	│   ├── RateLimited                 RATE_LIMITED: RetryAfter, Limits
//	│   │   └── ProviderRateLimited     PROVIDER_RATE_LIMITED
//	│   ├── BudgetExceeded              BUDGET_EXCEEDED: Limits
//	│   └── ProviderQuotaExhausted      PROVIDER_QUOTA_EXHAUSTED
//	├── Unavailable
//	│   ├── ServerUnreachable           no Headgate answered: no details came with the status
//	│   ├── GatewayOverloaded           GATEWAY_OVERLOADED
//	│   ├── GatewayDraining             GATEWAY_DRAINING
//	│   └── ProviderError               PROVIDER_ERROR
//	│       ├── ProviderUnreachable     PROVIDER_UNREACHABLE
//	│       ├── ProviderOverloaded      PROVIDER_OVERLOADED
//	│       ├── ProviderTimeout         PROVIDER_TIMEOUT: Phase
//	│       └── ProviderProtocolError   PROVIDER_PROTOCOL_ERROR
//	├── StreamInterrupted               STREAM_INTERRUPTED: Partial
//	├── DeadlineExceeded                DEADLINE
//	├── CallCancelled                   CANCELLED: left by this side
//	└── InternalError                   INTERNAL
//
// errors.As finds an error by its own type and by every type above it. A refusal, a content filter and a blocked
// prompt are answers: see [Answer.FinishReason].
type CallFailed struct {
	// Code is gRPC's code, Reason the word of Headgate's error table; empty when no Headgate answered.
	Code   codes.Code
	Reason string
	// Message is for people.
	Message string
	// RequestID names the call in the server's log: quote it to the operator.
	RequestID string
	// Retryable says that the same call may be sent again, after RetryAfter if that is not 0; never once content has come.
	Retryable  bool
	RetryAfter time.Duration
	// Violations name the fields of the request that are wrong, Limits the limits and budgets without room.
	Violations []Violation
	Limits     []Limit
	// Resource is what the request named and the vendor does not have.
	Resource *Resource
	// Details is the metadata of ErrorInfo: provider, model, http_status, provider_code, provider_request_id, ...
	Details map[string]string
	// Partial is what a stream had delivered by then, empty when nothing had come; nil for other calls.
	Partial *Answer

	status *status.Status
}

// Violation is one thing wrong with a request: the field's path, such as messages[0].parts[1].text, and what is wrong.
type Violation struct{ Field, Description string }

// Limit is a limit or budget without room: for whom, such as "tenant:acme model:fast", and in words.
type Limit struct{ Subject, Description string }

// Resource is something that a vendor does not have.
type Resource struct{ Type, Name string }

func (e *CallFailed) Error() string {
	word := e.Reason
	if word == "" {
		word = e.Code.String()
	}
	return fmt.Sprintf("headgate: %s: %s [request %s]", word, e.Message, e.RequestID)
}

// GRPCStatus is the status as it came, for status.Code and status.FromError.
func (e *CallFailed) GRPCStatus() *status.Status { return e.status }

// Provider is the configured provider that failed; empty when none was asked.
func (e *CallFailed) Provider() string { return e.Details["provider"] }

// Attempts is how many times vendors were asked.
func (e *CallFailed) Attempts() int {
	count, _ := strconv.Atoi(e.Details["attempt_count"]) // absent when no vendor was asked
	return count
}

// Phase is the clock that ran out: connect, first_token, idle, total or default_deadline.
func (e *ProviderTimeout) Phase() string { return e.Details["phase"] }

// Is lets errors.Is find context.DeadlineExceeded.
func (e *DeadlineExceeded) Is(target error) bool { return target == context.DeadlineExceeded }

// Is lets errors.Is find context.Canceled.
func (e *CallCancelled) Is(target error) bool { return target == context.Canceled }

type (
	// InvalidRequest breaks a rule of the contract; Violations name the fields.
	InvalidRequest struct{ CallFailed }
	// UnsupportedParameter is a setting that no target can honour and that must not be dropped.
	UnsupportedParameter struct{ InvalidRequest }
	// ProviderRejectedRequest is a request that the vendor calls invalid.
	ProviderRejectedRequest struct{ CallFailed }
	// ContextLengthExceeded is a conversation longer than the model's context window.
	ContextLengthExceeded struct{ ProviderRejectedRequest }
	// Unauthenticated means that the key or token is not good; the operator's log says why.
	Unauthenticated struct{ CallFailed }
	// MissingCredentials means that callers must say who they are.
	MissingCredentials struct{ Unauthenticated }
	// PermissionDenied means that the caller is known and may not do this.
	PermissionDenied struct{ CallFailed }
	// ModelNotAllowed means that the caller may not use the model, whether or not there is one of that name.
	ModelNotAllowed struct{ PermissionDenied }
	// CallerCredentialsRejected means that the vendor refuses the caller's own key, or nobody may bring one.
	CallerCredentialsRejected struct{ PermissionDenied }
	// NotFound means that something the request names does not exist.
	NotFound struct{ CallFailed }
	// ModelNotFound means that there is no such alias or provider.
	ModelNotFound struct{ NotFound }
	// ProviderResourceNotFound means that the vendor does not have Resource.
	ProviderResourceNotFound struct{ NotFound }
	// FailedPrecondition means that something else must change first, mostly by the operator.
	FailedPrecondition struct{ CallFailed }
	// NoEligibleProvider means that the routing policy leaves no target.
	NoEligibleProvider struct{ FailedPrecondition }
	// ProviderCredentialsRejected means that the vendor refuses the operator's key.
	ProviderCredentialsRejected struct{ FailedPrecondition }
	// ProviderModelMissing means that the vendor lacks the model that the operator configured.
	ProviderModelMissing struct{ FailedPrecondition }
	// OpaqueStateRejected means that the vendor refuses a signature or item id: send the history without it.
	OpaqueStateRejected struct{ FailedPrecondition }
	// ResourceExhausted means that something is used up. Without Reason: a message larger than gRPC lets through.
	ResourceExhausted struct{ CallFailed }
	// RateLimited is a limit without room. Without RetryAfter the call is larger than the limit ever holds.
	RateLimited struct{ ResourceExhausted }
	// ProviderRateLimited is the vendor's own rate limit.
	ProviderRateLimited struct{ RateLimited }
	// BudgetExceeded means that the caller's budget is spent.
	BudgetExceeded struct{ ResourceExhausted }
	// ProviderQuotaExhausted means that the operator's quota or credit at the vendor is used up.
	ProviderQuotaExhausted struct{ ResourceExhausted }
	// Unavailable means that nobody could answer just now; if Retryable, nothing was delivered.
	Unavailable struct{ CallFailed }
	// ServerUnreachable means that no Headgate answered at the address, or the connection broke before anything came.
	ServerUnreachable struct{ Unavailable }
	// GatewayOverloaded means that the gateway sheds calls.
	GatewayOverloaded struct{ Unavailable }
	// GatewayDraining means that the gateway shuts down.
	GatewayDraining struct{ Unavailable }
	// ProviderError means that the vendor failed, or fails so often that it is left alone for a while.
	ProviderError struct{ Unavailable }
	// ProviderUnreachable means that the gateway could not connect to the vendor.
	ProviderUnreachable struct{ ProviderError }
	// ProviderOverloaded means that the vendor is overloaded.
	ProviderOverloaded struct{ ProviderError }
	// ProviderTimeout means that the vendor was too slow.
	ProviderTimeout struct{ ProviderError }
	// ProviderProtocolError means that the vendor's answer could not be read.
	ProviderProtocolError struct{ ProviderError }
	// StreamInterrupted is an answer that the vendor, or the connection, broke off; Partial is what came. Starting again
	// is up to you.
	StreamInterrupted struct{ CallFailed }
	// DeadlineExceeded means that the deadline passed.
	DeadlineExceeded struct{ CallFailed }
	// CallCancelled means that this side left the call.
	CallCancelled struct{ CallFailed }
	// InternalError is a bug of the gateway; its log has it under the request id.
	InternalError struct{ CallFailed }
)

// Embedding stands for "is a": each branch answers errors.As for itself and hands on to the branch it embeds.

func (e *CallFailed) As(target any) bool     { return is(e, target) }
func (e *InvalidRequest) As(target any) bool { return is(e, target) || e.CallFailed.As(target) }
func (e *ProviderRejectedRequest) As(target any) bool {
	return is(e, target) || e.CallFailed.As(target)
}
func (e *Unauthenticated) As(target any) bool    { return is(e, target) || e.CallFailed.As(target) }
func (e *PermissionDenied) As(target any) bool   { return is(e, target) || e.CallFailed.As(target) }
func (e *NotFound) As(target any) bool           { return is(e, target) || e.CallFailed.As(target) }
func (e *FailedPrecondition) As(target any) bool { return is(e, target) || e.CallFailed.As(target) }
func (e *ResourceExhausted) As(target any) bool  { return is(e, target) || e.CallFailed.As(target) }
func (e *RateLimited) As(target any) bool        { return is(e, target) || e.ResourceExhausted.As(target) }
func (e *Unavailable) As(target any) bool        { return is(e, target) || e.CallFailed.As(target) }
func (e *ProviderError) As(target any) bool      { return is(e, target) || e.Unavailable.As(target) }

func is[T any](err *T, target any) bool {
	wanted, ok := target.(**T)
	if ok {
		*wanted = err
	}
	return ok
}

type failure interface {
	error
	failed() *CallFailed
}

func (e *CallFailed) failed() *CallFailed { return e }

func made[T any, P interface {
	*T
	failure
}]() failure {
	return P(new(T))
}

var byReason = map[string]func() failure{
	"INVALID_REQUEST":               made[InvalidRequest],
	"UNSUPPORTED_PARAMETER":         made[UnsupportedParameter],
	"PROVIDER_REJECTED_REQUEST":     made[ProviderRejectedRequest],
	"CONTEXT_LENGTH_EXCEEDED":       made[ContextLengthExceeded],
	"INVALID_CREDENTIALS":           made[Unauthenticated],
	"MISSING_CREDENTIALS":           made[MissingCredentials],
	"MODEL_NOT_ALLOWED":             made[ModelNotAllowed],
	"CALLER_CREDENTIALS_REJECTED":   made[CallerCredentialsRejected],
	"MODEL_NOT_FOUND":               made[ModelNotFound],
	"PROVIDER_RESOURCE_NOT_FOUND":   made[ProviderResourceNotFound],
	"NO_ELIGIBLE_PROVIDER":          made[NoEligibleProvider],
	"PROVIDER_CREDENTIALS_REJECTED": made[ProviderCredentialsRejected],
	"PROVIDER_MODEL_MISSING":        made[ProviderModelMissing],
	"OPAQUE_STATE_REJECTED":         made[OpaqueStateRejected],
	"RATE_LIMITED":                  made[RateLimited],
	"PROVIDER_RATE_LIMITED":         made[ProviderRateLimited],
	"BUDGET_EXCEEDED":               made[BudgetExceeded],
	"PROVIDER_QUOTA_EXHAUSTED":      made[ProviderQuotaExhausted],
	"GATEWAY_OVERLOADED":            made[GatewayOverloaded],
	"GATEWAY_DRAINING":              made[GatewayDraining],
	"PROVIDER_ERROR":                made[ProviderError],
	"PROVIDER_UNREACHABLE":          made[ProviderUnreachable],
	"PROVIDER_OVERLOADED":           made[ProviderOverloaded],
	"PROVIDER_TIMEOUT":              made[ProviderTimeout],
	"PROVIDER_PROTOCOL_ERROR":       made[ProviderProtocolError],
	"STREAM_INTERRUPTED":            made[StreamInterrupted],
	"DEADLINE":                      made[DeadlineExceeded],
	"CANCELLED":                     made[CallCancelled],
	"INTERNAL":                      made[InternalError],
}

// byCode is for reasons of newer servers, and for what gRPC itself refuses.
var byCode = map[codes.Code]func() failure{
	codes.InvalidArgument:    made[InvalidRequest],
	codes.Unauthenticated:    made[Unauthenticated],
	codes.PermissionDenied:   made[PermissionDenied],
	codes.NotFound:           made[NotFound],
	codes.FailedPrecondition: made[FailedPrecondition],
	codes.ResourceExhausted:  made[ResourceExhausted],
	codes.Unavailable:        made[Unavailable],
	codes.Aborted:            made[StreamInterrupted],
	codes.DeadlineExceeded:   made[DeadlineExceeded],
	codes.Canceled:           made[CallCancelled],
	codes.Internal:           made[InternalError],
}

// broken are what gRPC itself says of a connection that broke; the gateway says it with a reason.
var broken = []codes.Code{codes.Unavailable, codes.Internal, codes.Unknown}

// interruptedOr is ABORTED, as the gateway would say it, for a stream whose connection broke after content.
func interruptedOr(err error) error {
	from := status.Convert(err)
	if slices.Contains(broken, from.Code()) && factsOf(from, "").Reason == "" {
		return status.Error(codes.Aborted, from.Message())
	}
	return err
}

// errorOf is the error for a failed call that was sent with this request id.
func errorOf(err error, requestID string) error {
	facts := factsOf(status.Convert(err), requestID)
	build, known := byReason[facts.Reason]
	if !known {
		build, known = byCode[facts.Code]
	}
	if !known {
		build = made[CallFailed]
	}
	if facts.Code == codes.Unavailable && facts.Reason == "" {
		build = made[ServerUnreachable]
	}
	made := build()
	*made.failed() = facts
	return made
}

func factsOf(from *status.Status, requestID string) CallFailed {
	facts := CallFailed{Code: from.Code(), Message: from.Message(), RequestID: requestID, status: from}
	retryAfterKnown := false
	for _, detail := range from.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			facts.Reason, facts.Details = detail.Reason, detail.Metadata
		case *errdetails.RequestInfo:
			facts.RequestID = detail.RequestId
		case *errdetails.RetryInfo:
			facts.RetryAfter, retryAfterKnown = detail.RetryDelay.AsDuration(), true
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				facts.Violations = append(facts.Violations, Violation{violation.Field, violation.Description})
			}
		case *errdetails.QuotaFailure:
			for _, violation := range detail.Violations {
				facts.Limits = append(facts.Limits, Limit{violation.Subject, violation.Description})
			}
		case *errdetails.ResourceInfo:
			facts.Resource = &Resource{detail.ResourceType, detail.ResourceName}
		}
	}
	rateLimited := facts.Reason == "RATE_LIMITED" || facts.Reason == "PROVIDER_RATE_LIMITED"
	facts.Retryable = facts.Code == codes.Unavailable || rateLimited && retryAfterKnown
	return facts
}
