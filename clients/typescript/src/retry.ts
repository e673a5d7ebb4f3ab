import type { DescMessage, DescMethodStreaming, DescMethodUnary, MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, type ContextValues, type StreamResponse, type Transport, type UnaryResponse } from "@connectrpc/connect";
import { setTimeout as sleep } from "node:timers/promises";
import { ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { SERVICE_CONFIG } from "./gen/service_config.js";

const { retryPolicy } = SERVICE_CONFIG.methodConfig[0]!;
const { maxTokens, tokenRatio } = SERVICE_CONFIG.retryThrottling;
const RECONNECT_MS = 1000;
const MAX_RECONNECT_MS = 10_000;

/** An address, and how long it is passed over because nobody answered there. */
class Backend {
  downUntil = 0;
  #failures = 0;

  constructor(readonly transport: Transport) {}

  answered(): void {
    this.downUntil = this.#failures = 0;
  }

  failed(): void {
    this.downUntil = performance.now() + Math.min(RECONNECT_MS * 2 ** this.#failures++, MAX_RECONNECT_MS);
  }
}

/**
 * Round robin over addresses, and the retries of the service config, which connect-es has not: UNAVAILABLE is sent again
 * as long as no headers have come, after a random delay or the server's `grpc-retry-pushback-ms`. An address where
 * nobody answers is passed over for a while, and its calls go to the next at once.
 */
export class RetryingTransport implements Transport {
  readonly #backends: readonly Backend[];
  #next = 0;
  #tokens = maxTokens;
  #closed = false;

  constructor(transports: readonly Transport[]) {
    this.#backends = transports.map((transport) => new Backend(transport));
  }

  unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    signal: AbortSignal | undefined,
    timeoutMs: number | undefined,
    header: HeadersInit | undefined,
    input: MessageInitShape<I>,
    contextValues?: ContextValues,
  ): Promise<UnaryResponse<I, O>> {
    return this.#answered(signal, timeoutMs, (transport, left) =>
      transport.unary(method, signal, left, header, input, contextValues),
    );
  }

  async stream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodStreaming<I, O>,
    signal: AbortSignal | undefined,
    timeoutMs: number | undefined,
    header: HeadersInit | undefined,
    input: AsyncIterable<MessageInitShape<I>>,
    contextValues?: ContextValues,
  ): Promise<StreamResponse<I, O>> {
    const messages: MessageInitShape<I>[] = [];
    for await (const message of input) messages.push(message);
    return this.#answered(signal, timeoutMs, (transport, left) =>
      transport.stream(method, signal, left, header, each(messages), contextValues),
    );
  }

  /** Sends nothing any more. */
  close(): void {
    this.#closed = true;
  }

  /** What the call gives once its headers have come. */
  async #answered<Response>(
    signal: AbortSignal | undefined,
    timeoutMs: number | undefined,
    call: (transport: Transport, timeoutMs: number | undefined) => Promise<Response>,
  ): Promise<Response> {
    const deadline = timeoutMs ? performance.now() + timeoutMs : Infinity;
    for (let attempt = 1; ; attempt++) {
      if (this.#closed) throw new ConnectError("the client was closed", Code.Canceled);
      const backend = this.#pick();
      const left = timeoutMs && Math.max(1, Math.ceil(deadline - performance.now()));
      try {
        const response = await call(backend.transport, left);
        backend.answered();
        this.#tokens = Math.min(maxTokens, this.#tokens + tokenRatio);
        return response;
      } catch (thrown) {
        const status = statusOf(thrown, this.#closed || signal?.aborted === true);
        const delay = this.#delay(status, backend, attempt);
        if (delay === undefined || performance.now() + delay >= deadline) throw status;
        await sleep(delay, undefined, { signal });
      }
    }
  }

  #pick(): Backend {
    const now = performance.now();
    for (const _ of this.#backends) {
      const backend = this.#backends[this.#next++ % this.#backends.length]!;
      if (backend.downUntil <= now) return backend;
    }
    return this.#backends.reduce((first, other) => (other.downUntil < first.downUntil ? other : first));
  }

  /** Milliseconds until the next attempt; undefined for none. */
  #delay(status: ConnectError, backend: Backend, attempt: number): number | undefined {
    if (status.code !== Code.Unavailable) return undefined;
    if (!status.findDetails(ErrorInfoSchema).length) {
      backend.failed();
      const isOther = this.#backends.some(({ downUntil }) => downUntil <= performance.now());
      if (isOther && attempt < retryPolicy.maxAttempts + this.#backends.length) return 0;
    }
    this.#tokens = Math.max(0, this.#tokens - 1);
    if (attempt >= retryPolicy.maxAttempts || this.#tokens <= maxTokens / 2) return undefined;
    const pushback = status.metadata.get("grpc-retry-pushback-ms");
    if (pushback !== null) return /^\d+$/.test(pushback) ? Number(pushback) || 1 : undefined;
    const { initialBackoff, maxBackoff, backoffMultiplier } = retryPolicy;
    const longest = Math.min(parseFloat(initialBackoff) * backoffMultiplier ** (attempt - 1), parseFloat(maxBackoff));
    return Math.random() * longest * 1000 || 1;
  }
}

/** What gRPC would call it: connections that cannot be made, or that break without this side leaving, are UNAVAILABLE. */
export function statusOf(thrown: unknown, left: boolean): ConnectError {
  const status = ConnectError.from(thrown);
  // Node tells of a stream whose connection has broken as of one that was cancelled.
  const broken = status.code === Code.Canceled || isOfConnection(status.cause);
  if (left || !broken || status.findDetails(ErrorInfoSchema).length) return status;
  return new ConnectError(status.rawMessage, Code.Unavailable, status.metadata, undefined, status.cause);
}

function isOfConnection(cause: unknown): boolean {
  for (let error = cause; error instanceof Error; error = error.cause) {
    const { code, syscall } = error as NodeJS.ErrnoException;
    if (syscall || /^(ECONN|EPIPE|ETIMEDOUT|ERR_HTTP2_|ERR_STREAM_|ERR_SSL_|ERR_TLS_|CERT_|UNABLE_)/.test(code ?? "")) return true;
  }
  return false;
}

async function* each<T>(messages: readonly T[]): AsyncGenerator<T> {
  yield* messages;
}
