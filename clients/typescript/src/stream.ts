import { Code, ConnectError, type StreamResponse } from "@connectrpc/connect";
import { Answer } from "./answer.js";
import { failure } from "./errors.js";
import { type Event, eventOf, Fold, textOf } from "./fold.js";
import { statusOf } from "./retry.js";
import type { GenerateRequestSchema, StreamGenerateResponse, StreamGenerateResponseSchema } from "./v1.js";

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
  #messages?: AsyncIterator<StreamGenerateResponse>;
  #begun = false;
  #ended = false;
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
  [Symbol.asyncIterator](): AsyncIterableIterator<Event> {
    return this.#iterate((event) => event);
  }

  /** The first candidate's text, piece by piece. */
  get text(): AsyncIterableIterator<string> {
    return this.#iterate(textOf);
  }

  /** Reads what is left; the answer equals what `generate` would have given. */
  async final(): Promise<Answer> {
    while (await this.#next());
    return this.#answer();
  }

  /** Leaves the call. */
  cancel(): void {
    if (this.#ended) return;
    this.#leaving.abort();
    this.#drain().catch(() => {});
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cancel();
  }

  /** The next event; undefined at the end of a complete answer. */
  async #next(): Promise<Event | undefined> {
    if (this.#error) throw this.#error;
    if (this.#ended) return undefined;
    try {
      this.#messages ??= (await this.#open(this.#signal)).message[Symbol.asyncIterator]();
      for (let next = await this.#messages.next(); !next.done; next = await this.#messages.next()) {
        this.#begun = true;
        const event = eventOf(next.value);
        if (!event) continue;
        this.#folded.add(event);
        return event;
      }
      if (!this.#folded.complete) {
        const code = this.#signal.aborted ? Code.Canceled : Code.Aborted;
        throw new ConnectError("the stream ended without the answer's end", code);
      }
      this.#ended = true;
      return undefined;
    } catch (thrown) {
      this.#ended = true;
      const partial = this.#begun ? this.#answer() : undefined;
      throw (this.#error = failure(statusOf(thrown, this.#signal.aborted), this.requestId, partial));
    }
  }

  /** Reads what has come: connect-es stops the clock of a call, which keeps Node alive, only when its end is read. */
  async #drain(): Promise<void> {
    while (this.#messages && !(await this.#messages.next()).done);
  }

  /** What `pick` makes of events, where it is something. By hand: a generator costs a third more for each event. */
  #iterate<T>(pick: (event: Event) => T): AsyncIterableIterator<T> {
    return {
      [Symbol.asyncIterator]() {
        return this;
      },
      next: async () => {
        for (let event = await this.#next(); event; event = await this.#next()) {
          const value = pick(event);
          if (value) return { done: false, value };
        }
        return { done: true, value: undefined };
      },
      return: async () => {
        this.cancel();
        return { done: true, value: undefined };
      },
    };
  }

  #answer(): Answer {
    return new Answer(this.#folded.response(), this.requestId);
  }
}
