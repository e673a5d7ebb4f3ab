import { clone, create, toBinary } from "@bufbuild/protobuf";
import {
  type Attempt,
  type Cost,
  CostSchema,
  ElementType,
  type EmbedInput,
  type EmbedRequest,
  EmbedRequestSchema,
  EmbedInputSchema,
  type EmbedResponse,
  type Usage,
  UsageSchema,
  type Warning,
} from "./v1.js";

/** How large a call of several inputs is at most. */
const MAX_BYTES = 4 * 1024 * 1024;

/** One vector for each input, in the inputs' order. */
export class Embeddings {
  /** All numbers, row by row. Those of INT8 and FLOAT16 are widened, not scaled. */
  readonly data: Float32Array;
  readonly dimensions: number;

  /** @internal */
  constructor(
    /** The answers of all calls that it took, in the inputs' order. */
    readonly responses: readonly EmbedResponse[],
    /** Name the calls in the server's log, in the inputs' order. */
    readonly requestIds: readonly string[],
  ) {
    this.dimensions = responses[0]!.dimensions;
    if (responses.some(({ dimensions }) => dimensions !== this.dimensions)) {
      throw new TypeError("the answers have vectors of different sizes");
    }
    const rows = responses.reduce((sum, { rows }) => sum + rows, 0);
    this.data = joined(responses.map(numbersOf));
    if (this.data.length !== rows * this.dimensions) {
      throw new TypeError(`${this.data.length} numbers for ${rows} rows of ${this.dimensions}`);
    }
  }

  /** A view into `data` for each input. */
  get vectors(): Float32Array[] {
    const rows = this.data.length / Math.max(this.dimensions, 1);
    const row = (index: number) => this.data.subarray(index * this.dimensions, (index + 1) * this.dimensions);
    return Array.from({ length: rows }, (_, index) => row(index));
  }

  /** The model that answered, as the vendor names it. */
  get model(): string {
    return this.responses[0]!.model;
  }

  /** The configured provider that answered. */
  get provider(): string {
    return this.responses[0]!.provider;
  }

  /** Tokens of all calls; what one of them does not know is unknown. */
  get usage(): Usage | undefined {
    const all = this.responses.flatMap(({ usage }) => usage ?? []);
    if (all.length < this.responses.length) return undefined;
    const total = create(UsageSchema, { estimated: all.some(({ estimated }) => estimated) });
    return addNumbers(total, all, UsageSchema.fields.filter(({ localName }) => localName.endsWith("Tokens")));
  }

  /** What all calls cost; undefined when one's is not known. */
  get cost(): Cost | undefined {
    const all = this.responses.flatMap(({ cost }) => cost ?? []);
    if (all.length < this.responses.length || all.some(({ currencyCode }) => currencyCode !== all[0]!.currencyCode)) {
      return undefined;
    }
    return addNumbers(clone(CostSchema, all[0]!), all, CostSchema.fields.filter(({ localName }) => localName.endsWith("Nanos")));
  }

  /** Every upstream attempt of all calls. */
  get attempts(): Attempt[] {
    return this.responses.flatMap(({ attempts }) => attempts);
  }

  /** Settings that were dropped or changed, each once. */
  get warnings(): Warning[] {
    const all = this.responses.flatMap(({ warnings }) => warnings);
    return [...new Map(all.map((warning) => [`${warning.code} ${warning.field} ${warning.message}`, warning])).values()];
  }
}

/** The request in pieces of at most so many inputs and, with more than one input, MAX_BYTES. */
export function split(request: EmbedRequest, inputs: number): EmbedRequest[] {
  const batches: EmbedInput[][] = [];
  let size = MAX_BYTES;
  for (const input of request.inputs) {
    const own = sizeOf(input);
    size += own;
    if (size > MAX_BYTES || batches.at(-1)!.length === inputs) {
      batches.push([]);
      size = own;
    }
    batches.at(-1)!.push(input);
  }
  return batches.length > 1 ? batches.map((some) => create(EmbedRequestSchema, { ...request, inputs: some })) : [request];
}

/** Bytes of an input; of a text the most that they may be, which needs no encoding. */
function sizeOf(input: EmbedInput): number {
  return input.input.case === "text" ? 3 * input.input.value.length : toBinary(EmbedInputSchema, input).length;
}

/** An answer's numbers, copied, because views of a message's bytes may begin at odd places. */
function numbersOf({ data, elementType, vectors }: EmbedResponse): Float32Array {
  if (vectors.length) return Float32Array.from(vectors.flatMap(({ values }) => values));
  if (elementType === ElementType.INT8) return Float32Array.from(new Int8Array(data.slice().buffer));
  if (elementType === ElementType.FLOAT16) return Float32Array.from(new Uint16Array(data.slice().buffer), numberOfHalf);
  return new Float32Array(data.slice().buffer); // the contract is little-endian, and so is every platform of Node
}

function joined(pieces: readonly Float32Array[]): Float32Array {
  if (pieces.length === 1) return pieces[0]!;
  const whole = new Float32Array(pieces.reduce((sum, { length }) => sum + length, 0));
  let offset = 0;
  for (const piece of pieces) {
    whole.set(piece, offset);
    offset += piece.length;
  }
  return whole;
}

function numberOfHalf(half: number): number {
  const sign = half >> 15 ? -1 : 1;
  const exponent = (half >> 10) & 0x1f;
  const fraction = half & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function addNumbers<T extends Usage | Cost>(total: T, all: readonly T[], fields: readonly { localName: string }[]): T {
  const sum = total as Record<string, unknown>;
  for (const { localName } of fields) {
    const numbers = all.map((one) => (one as Record<string, unknown>)[localName] as number | undefined);
    sum[localName] = numbers.some((number) => number === undefined)
      ? undefined
      : numbers.slice(1).reduce((a, b) => a! + b!, numbers[0]);
  }
  return total;
}
