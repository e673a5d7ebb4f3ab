import { clone, create, type DescMessage, type DescMethodUnary, type Message as ProtoMessage, type MessageInitShape, type MessageShape } from "@bufbuild/protobuf";
import { createClient, type Client as Stub } from "@connectrpc/connect";
import { randomUUID } from "node:crypto";
import { Answer } from "./answer.js";
import { type ClientOptions, connect, type Connection } from "./connection.js";
import { Embeddings, split } from "./embeddings.js";
import { failure, TooManyRounds } from "./errors.js";
import { type Messages, messagesOf } from "./messages.js";
import { isWhole, type Schema, schemaText, valueOf } from "./schema.js";
import { AnswerStream } from "./stream.js";
import { nameOf, resultOf, type Tool } from "./tools.js";
import {
  type EmbedInputSchema,
  EmbedRequestSchema,
  type EmbedResponse,
  FinishReason,
  type GenerateRequest,
  GenerateRequestSchema,
  GenerationConfigSchema,
  type HealthResponse,
  InferenceService,
  type Message,
  MessageSchema,
  type Model,
  ResponseFormatSchema,
  ResponseFormatType,
  Role,
} from "./v1.js";

const REQUEST_ID = "x-request-id";
const TIMEOUT_MS = 600_000;
const MAX_ROUNDS = 10;
const EMBED_BATCH = 1024;
const EMBED_CONCURRENCY = 4;

/** How one call is made. */
export interface CallOptions {
  /** Leaves the call, up to the vendor. */
  signal?: AbortSignal;
  /** Milliseconds until the call fails with DeadlineExceeded; 0 for no deadline; by default the client's. */
  timeoutMs?: number;
  /** Goes as `x-request-id` into logs and traces of the gateway; one is made otherwise. */
  requestId?: string;
  /** Further headers, such as `x-provider-key-openai`. */
  headers?: Record<string, string>;
}

type Fields<Schema extends DescMessage, Given extends string> = Omit<
  Exclude<MessageInitShape<Schema>, ProtoMessage>,
  Given | "$typeName"
>;

/** Every field of GenerateRequest beside model and messages, and how the call is made. */
export type GenerateOptions = Fields<typeof GenerateRequestSchema, "model" | "messages"> & CallOptions;

/** Every field of EmbedRequest beside model and inputs, and how the calls are made. */
export type EmbedOptions = Fields<typeof EmbedRequestSchema, "model" | "inputs"> & CallOptions;

/** What to embed: a text, token ids, or the contract's own message. */
export type EmbedInputLike = string | readonly number[] | MessageInitShape<typeof EmbedInputSchema>;

/** A tool loop. It ends with a call of a tool that has no `run`, which is left to the caller. */
export type ToolOptions = Omit<GenerateOptions, "tools"> & {
  tools: readonly Tool[];
  /** How often the model is asked at most: 10. */
  maxRounds?: number;
};

/** A conversation that has come to its last answer. */
export interface ToolRun {
  answer: Answer;
  /** Those of all rounds, each with its usage. */
  answers: Answer[];
  /** The whole conversation, the last answer included. */
  messages: Message[];
}

/** A client of one Headgate. It keeps its connections open, and connects at its first call. */
export class Client {
  /** connect-es' own client on the same connections, without this class's deadlines and errors. */
  readonly stub: Stub<typeof InferenceService>;
  readonly #connection: Connection;
  readonly #options: ClientOptions;
  readonly #embedBatch: number;
  readonly #embedConcurrency: number;

  /**
   * @param address `host:port`, or several of them, which take turns; by default the environment's HEADGATE_ADDRESS, or
   * else localhost:50051.
   */
  constructor(address?: string | readonly string[], options: ClientOptions = {}) {
    const { embedBatch = EMBED_BATCH, embedConcurrency = EMBED_CONCURRENCY } = options;
    if (!(embedBatch >= 1 && embedConcurrency >= 1)) throw new TypeError("a batch has at least one input and one call at once");
    [this.#embedBatch, this.#embedConcurrency] = [embedBatch, embedConcurrency];
    this.#connection = connect(address, options);
    this.#options = options;
    this.stub = createClient(InferenceService, this.#connection.transport);
  }

  /** A whole answer; it equals the fold of the stream. */
  async generate(model: string, messages: Messages, options: GenerateOptions = {}): Promise<Answer> {
    const [request, how] = requestOf(model, messages, options);
    const { message, requestId } = await this.#unary(InferenceService.method.generate, request, how);
    return new Answer(message, requestId);
  }

  /** The stream of an answer. */
  stream(model: string, messages: Messages, options: GenerateOptions = {}): AnswerStream {
    const [request, how] = requestOf(model, messages, options);
    const { requestId, header, timeoutMs } = this.#call(how);
    const method = InferenceService.method.streamGenerate;
    const open = (signal: AbortSignal) =>
      this.#connection.transport.stream(method, signal, timeoutMs, header, once(request));
    return new AnswerStream(open, requestId, how.signal);
  }

  /**
   * JSON by a schema, as a value of its type: of zod and the like, or a plain JSON Schema. InvalidOutput says what came
   * instead.
   */
  async generateJson<T>(
    model: string,
    messages: Messages,
    schema: Schema<T>,
    options: GenerateOptions = {},
  ): Promise<{ value: T; answer: Answer }> {
    const form = { type: ResponseFormatType.JSON_SCHEMA, name: "answer", schema: schemaText(schema), strict: true };
    const config = clone(GenerationConfigSchema, create(GenerationConfigSchema, options.config));
    config.responseFormat ??= create(ResponseFormatSchema, form);
    const answer = await this.generate(model, messages, { ...options, config });
    return { value: await valueOf(schema, answer), answer };
  }

  /**
   * Generates, runs the tools that the model calls, several at once, tells it their results, and so on, until it answers
   * without a call that one of them can answer. Answers go into the history as they came, so that reasoning and
   * signatures go back byte for byte.
   */
  async runTools(model: string, messages: Messages, options: ToolOptions): Promise<ToolRun> {
    const { tools, maxRounds = MAX_ROUNDS, ...others } = options;
    const byName = new Map(tools.map((tool) => [nameOf(tool.definition), tool]));
    const asked = { ...others, tools: tools.map(({ definition }) => definition) };
    const conversation = messagesOf(messages);
    const answers: Answer[] = [];
    while (answers.length < maxRounds) {
      const answer = await this.generate(model, conversation, asked);
      answers.push(answer);
      if (answer.message) conversation.push(answer.message);
      if (answer.finishReason === FinishReason.PAUSE) continue;
      const calls = answer.toolCalls;
      const leaves = calls.some(({ name }) => byName.has(name) && !byName.get(name)!.run);
      if (!calls.length || leaves || !isWhole(answer)) return { answer, answers, messages: conversation };
      const parts = await Promise.all(calls.map((call) => resultOf(byName.get(call.name), { call, signal: options.signal })));
      conversation.push(create(MessageSchema, { role: Role.TOOL, parts }));
    }
    throw new TooManyRounds(`the model still calls tools after ${maxRounds} rounds`, conversation);
  }

  /** A vector for each input: all or nothing. Many inputs go in several calls. */
  async embed(model: string, inputs: readonly EmbedInputLike[], options: EmbedOptions = {}): Promise<Embeddings> {
    const { signal, timeoutMs, requestId, headers, ...fields } = options;
    const request = create(EmbedRequestSchema, { ...fields, model, inputs: inputs.map(inputOf) });
    const failing = new AbortController();
    const leaving = signal ? AbortSignal.any([signal, failing.signal]) : failing.signal;
    const how = { timeoutMs, requestId, headers, signal: leaving };
    const batches = split(request, this.#embedBatch);
    const answers: { message: EmbedResponse; requestId: string }[] = [];
    const pending = batches.entries();
    const work = async () => {
      for (const [index, batch] of pending) answers[index] = await this.#unary(InferenceService.method.embed, batch, how);
    };
    const workers = Math.min(batches.length, this.#embedConcurrency);
    try {
      await Promise.all(Array.from({ length: workers }, work));
    } catch (error) {
      failing.abort();
      throw error;
    }
    return new Embeddings(answers.map(({ message }) => message), answers.map(({ requestId }) => requestId));
  }

  /** Every alias and model that the caller may name, by name. */
  async models(options: CallOptions = {}): Promise<Model[]> {
    const models: Model[] = [];
    let pageToken = "";
    do {
      const { message } = await this.#unary(InferenceService.method.listModels, { pageSize: 1000, pageToken }, options);
      models.push(...message.models);
      pageToken = message.nextPageToken;
    } while (pageToken);
    return models;
  }

  /** The operator's view of the server and its providers. */
  async health(options: CallOptions = {}): Promise<HealthResponse> {
    return (await this.#unary(InferenceService.method.health, {}, options)).message;
  }

  /** Closes the connections; calls in flight fail. */
  close(): void {
    this.#connection.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  async #unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    input: MessageInitShape<I>,
    options: CallOptions,
  ): Promise<{ message: MessageShape<O>; requestId: string }> {
    const { requestId, header, timeoutMs } = this.#call(options);
    try {
      const answer = await this.#connection.transport.unary(method, options.signal, timeoutMs, header, input);
      return { message: answer.message, requestId: answer.header.get(REQUEST_ID) ?? requestId };
    } catch (thrown) {
      throw failure(thrown, requestId);
    }
  }

  #call({ timeoutMs, requestId = randomUUID(), headers }: CallOptions) {
    const header = { [REQUEST_ID]: requestId, ...headers };
    return { requestId, header, timeoutMs: timeoutMs ?? this.#options.timeoutMs ?? TIMEOUT_MS };
  }
}

function requestOf(model: string, messages: Messages, options: GenerateOptions): [GenerateRequest, CallOptions] {
  const { signal, timeoutMs, requestId, headers, ...fields } = options;
  const request = create(GenerateRequestSchema, { ...fields, model, messages: messagesOf(messages) });
  return [request, { signal, timeoutMs, requestId, headers }];
}

function inputOf(input: EmbedInputLike): MessageInitShape<typeof EmbedInputSchema> {
  if (typeof input === "string") return { input: { case: "text", value: input } };
  return isTokens(input) ? { input: { case: "tokenIds", value: { values: [...input] } } } : input;
}

function isTokens(input: EmbedInputLike): input is readonly number[] {
  return Array.isArray(input);
}

async function* once<T>(message: T): AsyncGenerator<T> {
  yield message;
}
