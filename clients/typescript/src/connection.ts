import { Code, ConnectError, type Interceptor, type Transport } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import type { ClientHttp2Stream, SecureClientSessionOptions } from "node:http2";
import { connect as connectTcp, isIP, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { CLOSED, RetryingTransport } from "./retry.js";
import { VERSION } from "./version.js";

const DEFAULT_ADDRESS = "localhost:50051";
const MAX_MESSAGE_BYTES = 256 * 1024 * 1024;
const CONNECT_MS = 20_000;
const KEEPALIVE = { pingIntervalMs: 30_000, pingTimeoutMs: 10_000 };

/** How a client reaches its server, and what holds for all its calls. */
export interface ClientOptions {
  /** Goes as `authorization: Bearer`; by default the environment's HEADGATE_API_KEY. */
  apiKey?: string;
  /** Gives the bearer token of each call, for tokens that expire. */
  token?: () => string | Promise<string>;
  /**
   * By default on, except at loopback addresses. Authorities, and this side's certificate for mutual TLS, as
   * `node:tls` has them: `{ ca, cert, key }`.
   */
  tls?: boolean | SecureClientSessionOptions;
  /** Milliseconds that a call may take unless it says otherwise: 600,000; 0 for no deadline. */
  timeoutMs?: number;
  /** Largest message sent or received: 256 MiB. */
  maxMessageBytes?: number;
  /** Inputs that one call of `embed` has at most: 1024. */
  embedBatch?: number;
  /** Calls for one batch of embeddings that run at once: 4. */
  embedConcurrency?: number;
  /** Headers of every call. */
  headers?: Record<string, string>;
  /** Interceptors of connect-es, the outermost first; every attempt passes through them. */
  interceptors?: Interceptor[];
  /** Another transport in place of connections, such as connect-es' `createRouterTransport` in tests. */
  transport?: Transport;
}

/** A transport, and what ends it. */
export interface Connection {
  transport: Transport;
  close: () => void;
}

/** Connects to all addresses at their first call. */
export function connect(address: string | readonly string[] | undefined, options: ClientOptions): Connection {
  if (options.transport) return { transport: options.transport, close: () => {} };
  const given = address ?? (process.env.HEADGATE_ADDRESS || DEFAULT_ADDRESS);
  const addresses = [given].flat().flatMap((one) => one.split(","));
  const secure = options.tls ?? !addresses.every(isLoopback);
  const sessions = addresses.map((one) => sessionOf(one, secure));
  const maxBytes = options.maxMessageBytes ?? MAX_MESSAGE_BYTES;
  const interceptors = [...(options.interceptors ?? []), headersOf(options)];
  const transports = sessions.map((sessionManager) =>
    createGrpcTransport({
      baseUrl: sessionManager.authority,
      sessionManager,
      interceptors: [...interceptors, sessionManager.interceptor],
      readMaxBytes: maxBytes,
      writeMaxBytes: maxBytes,
    }),
  );
  const transport = new RetryingTransport(transports);
  const close = () => {
    transport.close();
    sessions.forEach((session) => session.abort(CLOSED));
  };
  return { transport, close };
}

/** Connections to one address, with two habits of connect-es mended. */
class Session extends Http2SessionManager {
  /** The signal of the call that connect-es is about to make, in the same turn. */
  #signal?: AbortSignal;
  #heard = 0;

  readonly interceptor: Interceptor = (next) => (request) => {
    this.#signal = request.signal;
    return next(request);
  };

  /** A stream whose end has come before it was read stays open when it is left, and keeps Node alive: here it ends. */
  override async request(...call: Parameters<Http2SessionManager["request"]>): Promise<ClientHttp2Stream> {
    const signal = this.#signal;
    const stream = await super.request(...call);
    const end = () => stream.readableEnded || setImmediate(() => stream.destroy()); // once the server has been told
    signal?.addEventListener("abort", end, { once: true });
    return stream;
  }

  /** The keepalive clock is set anew for each piece read: here once a second does. */
  override notifyResponseByteRead(stream: ClientHttp2Stream): void {
    const now = performance.now();
    if (now - this.#heard < 1000) return;
    this.#heard = now;
    super.notifyResponseByteRead(stream);
  }
}

function sessionOf(address: string, secure: boolean | SecureClientSessionOptions): Session {
  if (!/^(\[[^\]/]+\]|[^:/]+):\d+$/.test(address)) {
    throw new TypeError(`${JSON.stringify(address)} is no address: host:port, or several of them`);
  }
  const tls = typeof secure === "object" ? secure : undefined;
  const createConnection = (server: URL) => socketTo(server, tls);
  return new Session(`${secure ? "https" : "http"}://${address}`, KEEPALIVE, { createConnection, ...tls });
}

/** Gives up where gRPC would: Node waits for minutes, and for TLS without end. */
function socketTo({ protocol, hostname, port }: URL, tls?: SecureClientSessionOptions): Socket {
  const host = hostname.replace(/^\[(.*)\]$/, "$1");
  const servername = isIP(host) ? undefined : host;
  const socket =
    protocol === "https:"
      ? connectTls({ servername, ...tls, host, port: Number(port || 443), ALPNProtocols: ["h2"] })
      : connectTcp({ host, port: Number(port || 80) });
  const late = () => socket.destroy(new ConnectError(`no connection after ${CONNECT_MS} ms`, Code.Unavailable));
  const clock = setTimeout(late, CONNECT_MS);
  for (const event of [protocol === "https:" ? "secureConnect" : "connect", "close"]) socket.once(event, () => clearTimeout(clock));
  return socket;
}

function isLoopback(address: string): boolean {
  const host = address.replace(/:\d+$/, "").replace(/^\[(.*)\]$/, "$1");
  return host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
}

function headersOf({ apiKey, token, headers }: ClientOptions): Interceptor {
  if (apiKey && token) throw new TypeError("give apiKey or token, not both");
  const key = token ? undefined : (apiKey ?? process.env.HEADGATE_API_KEY);
  return (next) => async (request) => {
    const bearer = token ? await token() : key;
    if (bearer) request.header.set("authorization", `Bearer ${bearer}`);
    for (const [name, value] of Object.entries(headers ?? {})) request.header.set(name, value);
    request.header.set("user-agent", `headgate-typescript/${VERSION}`);
    return next(request);
  };
}
