import { Code, ConnectError } from "@connectrpc/connect";
import { durationMs } from "@bufbuild/protobuf/wkt";
import type { Answer } from "./answer.js";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  QuotaFailureSchema,
  RequestInfoSchema,
  ResourceInfoSchema,
  RetryInfoSchema,
} from "./gen/google/rpc/error_details_pb.js";
import type { Message } from "./v1.js";

/**
 * What this package throws, except TypeError for arguments that cannot be sent.
 *
 * ```text
 * HeadgateError
 * ├── CallFailed                              anything the table does not know
 * │   ├── InvalidRequest                      INVALID_REQUEST: `violations` name the fields
 * │   │   └── UnsupportedParameter            UNSUPPORTED_PARAMETER
 * │   ├── ProviderRejectedRequest             PROVIDER_REJECTED_REQUEST
 * │   │   └── ContextLengthExceeded           CONTEXT_LENGTH_EXCEEDED
 * │   ├── Unauthenticated                     INVALID_CREDENTIALS
 * │   │   └── MissingCredentials              MISSING_CREDENTIALS
 * │   ├── PermissionDenied
 * │   │   ├── ModelNotAllowed                 MODEL_NOT_ALLOWED
 * │   │   └── CallerCredentialsRejected       CALLER_CREDENTIALS_REJECTED
 * │   ├── NotFound
 * │   │   ├── ModelNotFound                   MODEL_NOT_FOUND
 * │   │   └── ProviderResourceNotFound        PROVIDER_RESOURCE_NOT_FOUND: `resource`
 * │   ├── FailedPrecondition
 * │   │   ├── NoEligibleProvider              NO_ELIGIBLE_PROVIDER
 * │   │   ├── ProviderCredentialsRejected     PROVIDER_CREDENTIALS_REJECTED
 * │   │   ├── ProviderModelMissing            PROVIDER_MODEL_MISSING
 * │   │   └── OpaqueStateRejected             OPAQUE_STATE_REJECTED
 * │   ├── ResourceExhausted
 * │   │   ├── RateLimited                     RATE_LIMITED: `retryAfterMs`, `limits`
 * │   │   │   └── ProviderRateLimited         PROVIDER_RATE_LIMITED
 * │   │   ├── BudgetExceeded                  BUDGET_EXCEEDED: `limits`
 * │   │   └── ProviderQuotaExhausted          PROVIDER_QUOTA_EXHAUSTED
 * │   ├── Unavailable
 * │   │   ├── ServerUnreachable               no Headgate answered: no details came with the status
 * │   │   ├── GatewayOverloaded               GATEWAY_OVERLOADED
 * │   │   ├── GatewayDraining                 GATEWAY_DRAINING
 * │   │   └── ProviderError                   PROVIDER_ERROR
 * │   │       ├── ProviderUnreachable         PROVIDER_UNREACHABLE
 * │   │       ├── ProviderOverloaded          PROVIDER_OVERLOADED
 * │   │       ├── ProviderTimeout             PROVIDER_TIMEOUT: `phase`
 * │   │       └── ProviderProtocolError       PROVIDER_PROTOCOL_ERROR
 * │   ├── StreamInterrupted                   STREAM_INTERRUPTED: `partial`
 * │   ├── DeadlineExceeded                    DEADLINE
 * │   ├── CallCancelled                       CANCELLED: left by this side
 * │   └── InternalError                       INTERNAL
 * ├── InvalidOutput                           an answer is not the JSON that was asked for
 * └── TooManyRounds                           a tool loop came to no end
 * ```
 *
 * A refusal, a content filter and a blocked prompt are answers: see `Answer.finishReason`.
 */
export class HeadgateError extends Error {
  override get name(): string {
    return this.constructor.name;
  }
}

/** One thing wrong with a request: the field's path, such as `messages[0].parts[1].text`, and what is wrong. */
export interface Violation {
  field: string;
  description: string;
}

/** A limit or budget without room: for whom, such as `tenant:acme model:fast`, and in words. */
export interface Limit {
  subject: string;
  description: string;
}

/** Something the request named and the vendor does not have. */
export interface Resource {
  type: string;
  name: string;
}

/** What a status says, and the google.rpc details that came with it. */
export interface Failure {
  /** gRPC's code. */
  code: Code;
  /** The word of Headgate's error table; empty when no Headgate answered. */
  reason: string;
  /** Names the call in the server's log: quote it to the operator. */
  requestId: string;
  /** When to send the call again, in milliseconds; undefined when unknown. */
  retryAfterMs?: number;
  violations: Violation[];
  limits: Limit[];
  resource?: Resource;
  /** Metadata of ErrorInfo: provider, model, http_status, provider_code, provider_request_id, … */
  details: Record<string, string>;
  /** What a stream had delivered by then; undefined when nothing had come. */
  partial?: Answer;
}

/** A call that ended with a status other than OK. */
export interface CallFailed extends Failure {}
export class CallFailed extends HeadgateError {
  constructor(message: string, failure: Failure, options?: ErrorOptions) {
    super(message, options);
    Object.assign(this, failure);
  }

  /** The same call may be sent again, after `retryAfterMs` if that is known; never once content has come. */
  get retryable(): boolean {
    return false;
  }

  /** The configured provider that failed; empty when none was asked. */
  get provider(): string {
    return this.details.provider ?? "";
  }

  /** The vendor's model that failed; empty when none was asked. */
  get model(): string {
    return this.details.model ?? "";
  }

  /** How many times vendors were asked. */
  get attempts(): number {
    return Number(this.details.attempt_count ?? 0);
  }
}

/** The request breaks a rule of the contract; `violations` name the fields. */
export class InvalidRequest extends CallFailed {}
/** No target can honour a setting that must not be dropped. */
export class UnsupportedParameter extends InvalidRequest {}
/** The vendor calls the request invalid. */
export class ProviderRejectedRequest extends CallFailed {}
/** The conversation is longer than the model's context window. */
export class ContextLengthExceeded extends ProviderRejectedRequest {}
/** The key or token is not good; the operator's log says why. */
export class Unauthenticated extends CallFailed {}
/** Callers must say who they are: give `apiKey` or `token`. */
export class MissingCredentials extends Unauthenticated {}
/** The caller is known and may not do this. */
export class PermissionDenied extends CallFailed {}
/** The caller may not use the model, whether or not there is one of that name. */
export class ModelNotAllowed extends PermissionDenied {}
/** The vendor refuses the caller's own key, or the operator lets nobody bring one. */
export class CallerCredentialsRejected extends PermissionDenied {}
/** Something the request names does not exist. */
export class NotFound extends CallFailed {}
/** No such alias or provider. */
export class ModelNotFound extends NotFound {}
/** The vendor does not have `resource`. */
export class ProviderResourceNotFound extends NotFound {}
/** The call cannot succeed until something else is changed, mostly by the operator. */
export class FailedPrecondition extends CallFailed {}
/** The routing policy leaves no target. */
export class NoEligibleProvider extends FailedPrecondition {}
/** The vendor refuses the operator's key. */
export class ProviderCredentialsRejected extends FailedPrecondition {}
/** The vendor lacks the model that the operator configured. */
export class ProviderModelMissing extends FailedPrecondition {}
/** The vendor refuses a signature or item id given back to it: send the history without it. */
export class OpaqueStateRejected extends FailedPrecondition {}
/** Something is used up. Without a reason: a message larger than gRPC lets through. */
export class ResourceExhausted extends CallFailed {}

/** A limit has no room: wait `retryAfterMs`; without one the call is larger than the limit ever holds. */
export class RateLimited extends ResourceExhausted {
  override get retryable(): boolean {
    return this.retryAfterMs !== undefined && !this.partial;
  }
}

/** The vendor's own rate limit. */
export class ProviderRateLimited extends RateLimited {}
/** The caller's budget is spent. */
export class BudgetExceeded extends ResourceExhausted {}
/** The operator's quota or credit at the vendor is used up. */
export class ProviderQuotaExhausted extends ResourceExhausted {}

/** Nobody could answer just now; unless there is a `partial`, nothing was delivered. */
export class Unavailable extends CallFailed {
  override get retryable(): boolean {
    return !this.partial;
  }
}

/** No Headgate answered at the address, or the connection broke before anything came. */
export class ServerUnreachable extends Unavailable {}
/** The gateway sheds calls. */
export class GatewayOverloaded extends Unavailable {}
/** The gateway shuts down. */
export class GatewayDraining extends Unavailable {}
/** The vendor failed, or failed so often that it is left alone for a while. */
export class ProviderError extends Unavailable {}
/** The gateway could not connect to the vendor. */
export class ProviderUnreachable extends ProviderError {}
/** The vendor is overloaded. */
export class ProviderOverloaded extends ProviderError {}

/** The vendor was too slow. */
export class ProviderTimeout extends ProviderError {
  /** Which clock ran out: connect, first_token, idle, total or default_deadline. */
  get phase(): string {
    return this.details.phase ?? "";
  }
}

/** The vendor's answer could not be read. */
export class ProviderProtocolError extends ProviderError {}
/**
 * The vendor, or the connection, broke off after content was delivered; `partial` is what came. Starting again is up to
 * you.
 */
export class StreamInterrupted extends CallFailed {}
/** `timeoutMs` passed. */
export class DeadlineExceeded extends CallFailed {}
/** This side left the call. */
export class CallCancelled extends CallFailed {}
/** A bug of the gateway; its log has it under the request id. */
export class InternalError extends CallFailed {}

/** An answer's text is not the JSON that was asked for: cut off, refused, or against the schema. */
export class InvalidOutput extends HeadgateError {
  constructor(
    message: string,
    readonly answer: Answer,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** The model still calls tools after the last round allowed; `messages` are the conversation so far. */
export class TooManyRounds extends HeadgateError {
  constructor(
    message: string,
    readonly messages: readonly Message[],
  ) {
    super(message);
  }
}

const BY_REASON: Record<string, typeof CallFailed> = {
  INVALID_REQUEST: InvalidRequest,
  UNSUPPORTED_PARAMETER: UnsupportedParameter,
  PROVIDER_REJECTED_REQUEST: ProviderRejectedRequest,
  CONTEXT_LENGTH_EXCEEDED: ContextLengthExceeded,
  INVALID_CREDENTIALS: Unauthenticated,
  MISSING_CREDENTIALS: MissingCredentials,
  MODEL_NOT_ALLOWED: ModelNotAllowed,
  CALLER_CREDENTIALS_REJECTED: CallerCredentialsRejected,
  MODEL_NOT_FOUND: ModelNotFound,
  PROVIDER_RESOURCE_NOT_FOUND: ProviderResourceNotFound,
  NO_ELIGIBLE_PROVIDER: NoEligibleProvider,
  PROVIDER_CREDENTIALS_REJECTED: ProviderCredentialsRejected,
  PROVIDER_MODEL_MISSING: ProviderModelMissing,
  OPAQUE_STATE_REJECTED: OpaqueStateRejected,
  RATE_LIMITED: RateLimited,
  PROVIDER_RATE_LIMITED: ProviderRateLimited,
  BUDGET_EXCEEDED: BudgetExceeded,
  PROVIDER_QUOTA_EXHAUSTED: ProviderQuotaExhausted,
  GATEWAY_OVERLOADED: GatewayOverloaded,
  GATEWAY_DRAINING: GatewayDraining,
  PROVIDER_ERROR: ProviderError,
  PROVIDER_UNREACHABLE: ProviderUnreachable,
  PROVIDER_OVERLOADED: ProviderOverloaded,
  PROVIDER_TIMEOUT: ProviderTimeout,
  PROVIDER_PROTOCOL_ERROR: ProviderProtocolError,
  STREAM_INTERRUPTED: StreamInterrupted,
  DEADLINE: DeadlineExceeded,
  CANCELLED: CallCancelled,
  INTERNAL: InternalError,
};

/** For reasons of newer servers, and for what gRPC itself refuses. */
const BY_CODE: Partial<Record<Code, typeof CallFailed>> = {
  [Code.InvalidArgument]: InvalidRequest,
  [Code.Unauthenticated]: Unauthenticated,
  [Code.PermissionDenied]: PermissionDenied,
  [Code.NotFound]: NotFound,
  [Code.FailedPrecondition]: FailedPrecondition,
  [Code.ResourceExhausted]: ResourceExhausted,
  [Code.Unavailable]: Unavailable,
  [Code.Aborted]: StreamInterrupted,
  [Code.DeadlineExceeded]: DeadlineExceeded,
  [Code.Canceled]: CallCancelled,
  [Code.Internal]: InternalError,
};

/** What gRPC itself says of a connection that broke; the gateway says it with a reason. */
const BROKEN = [Code.Unavailable, Code.Internal, Code.Unknown];

/** The error for whatever a call that was sent with this request id threw. */
export function failure(thrown: unknown, requestId: string, partial?: Answer): Error {
  if (thrown instanceof HeadgateError) return thrown;
  const status = ConnectError.from(thrown);
  const info = status.findDetails(ErrorInfoSchema)[0];
  const interrupted = partial && !info && BROKEN.includes(status.code);
  const retry = status.findDetails(RetryInfoSchema)[0];
  const resource = status.findDetails(ResourceInfoSchema)[0];
  const unreachable = status.code === Code.Unavailable && !info;
  const code = interrupted ? Code.Aborted : status.code;
  const known = BY_REASON[info?.reason ?? ""] ?? BY_CODE[code] ?? CallFailed;
  const kind = unreachable && !interrupted ? ServerUnreachable : known;
  return new kind(
    status.rawMessage,
    {
      code,
      reason: info?.reason ?? "",
      requestId: status.findDetails(RequestInfoSchema)[0]?.requestId || requestId,
      retryAfterMs: retry?.retryDelay && durationMs(retry.retryDelay),
      violations: status.findDetails(BadRequestSchema)[0]?.fieldViolations ?? [],
      limits: status.findDetails(QuotaFailureSchema)[0]?.violations ?? [],
      resource: resource && { type: resource.resourceType, name: resource.resourceName },
      details: info?.metadata ?? {},
      partial,
    },
    { cause: thrown },
  );
}
