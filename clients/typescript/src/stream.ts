import { Code, ConnectError, type StreamResponse } from "@connectrpc/connect";
import { Answer } from "./answer.js";
import { failure } from "./errors.js";
import { type Event, eventOf, Fold, textOf } from "./fold.js";
import { statusOf } from "./retry.js";
import type { GenerateRequestSchema, StreamGenerateResponseSchema } from "./v1.js";

type Open = (signal: AbortSignal) => Promise<StreamResponse<typeof GenerateRequestSchema, typeof StreamGenerateResponseSchema>>;

/**
 * An answer as it comes: iterate it for events, `text` for the text, or await `final()` for the whole. The call is made
 * when the stream is first read; leaving a loop early cancels it, up to the vendor.
 *
 * An answer is complete only if its end came and the status is OK: everything else throws an error, which has what came
 * before it in `partial`.
 */
export class AnswerStream implements AsyncIterable<Event>, AsyncDisposable {
  readonly #folded = new Fold();
  readonly #leaving = new AbortController();
  readonly #signal: AbortSignal;
  readonly #open: Open;
  #events?: AsyncGenerator<Event, void, undefined>;
  #error?: Error;

  /** @internal */
  constructor(
    open: Open,
    /** Names the call in the server's log. */
    readonly requestId: string,
    signal?: AbortSignal,
  ) {
    this.#open = open;
    this.#signal = signal ? AbortSignal.any([signal, this.#leaving.signal]) : this.#leaving.signal;
  }

  /** Every event that this release knows. */
  [Symbol.asyncIterator](): AsyncGenerator<Event, void, undefined> {
    return (this.#events ??= this.#read());
  }

  /** The first candidate's text, piece by piece. */
  get text(): AsyncGenerator<string, void, undefined> {
    return this.#text();
  }

  /** Reads what is left; the answer equals what `generate` would have given. */
  async final(): Promise<Answer> {
    for await (const _ of this);
    if (this.#error) throw this.#error;
    if (!this.#folded.complete) {
      this.cancel();
      throw this.#fail(new ConnectError("the stream was left before its end", Code.Canceled));
    }
    return this.#answer();
  }

  /** Leaves the call. */
  cancel(): void {
    this.#leaving.abort();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cancel();
  }

  async *#read(): AsyncGenerator<Event, void, undefined> {
    try {
      const { message } = await this.#open(this.#signal);
      const messages = message[Symbol.asyncIterator]();
      let left = false;
      try {
        for (;;) {
          left = false;
          const next = await messages.next();
          if (next.done) break;
          left = true;
          const event = eventOf(next.value);
          if (!event) continue;
          this.#folded.add(event);
          yield event;
        }
      } finally {
        if (left) {
          this.cancel();
          messages.next().catch(() => {}); // connect-es stops the clock of a call only when its end is read
        }
      }
      if (!this.#folded.complete) throw new ConnectError("the stream ended without the answer's end", Code.Aborted);
    } catch (thrown) {
      throw this.#fail(thrown);
    }
  }

  async *#text(): AsyncGenerator<string, void, undefined> {
    for await (const event of this) {
      const text = textOf(event);
      if (text) yield text;
    }
  }

  #fail(thrown: unknown): Error {
    const status = statusOf(thrown, this.#signal.aborted);
    return (this.#error = failure(status, this.requestId, this.#answer()));
  }

  #answer(): Answer {
    return new Answer(this.#folded.response(), this.requestId);
  }
}
