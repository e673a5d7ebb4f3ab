import { clone, create, toBinary } from "@bufbuild/protobuf";
import {
  type Attempt,
  type Cost,
  CostSchema,
  ElementType,
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
  /** A view into `data` for each input. */
  readonly vectors: Float32Array[];

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
    this.data = new Float32Array(rows * this.dimensions);
    let offset = 0;
    for (const response of responses) {
      const numbers = numbersOf(response);
      this.data.set(numbers, offset);
      offset += numbers.length;
    }
    if (offset !== this.data.length) throw new TypeError(`${offset} numbers for ${rows} rows of ${this.dimensions}`);
    const row = (index: number) => this.data.subarray(index * this.dimensions, (index + 1) * this.dimensions);
    this.vectors = Array.from({ length: rows }, (_, index) => row(index));
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
  const sizes = request.inputs.map((input) => toBinary(EmbedInputSchema, input).length);
  const batches: EmbedRequest[] = [];
  let size = MAX_BYTES;
  request.inputs.forEach((input, index) => {
    size += sizes[index]!;
    let last = batches.at(-1);
    if (!last || size > MAX_BYTES || last.inputs.length === inputs) {
      batches.push((last = create(EmbedRequestSchema, { ...request, inputs: [] })));
      size = sizes[index]!;
    }
    last.inputs.push(input);
  });
  return batches.length > 1 ? batches : [request];
}

function numbersOf({ data, elementType, vectors }: EmbedResponse): ArrayLike<number> {
  if (vectors.length) return vectors.flatMap(({ values }) => values);
  switch (elementType) {
    case ElementType.INT8:
      return new Int8Array(data.buffer, data.byteOffset, data.byteLength);
    case ElementType.FLOAT16:
      return halves(data);
    default:
      return new Float32Array(aligned(data, 4));
  }
}

/** The bytes where a typed array may begin; the contract and every platform of Node are little-endian. */
function aligned(data: Uint8Array, size: number): ArrayBufferLike {
  const whole = data.byteLength - (data.byteLength % size);
  return data.slice(0, whole).buffer;
}

function halves(data: Uint8Array): Float32Array {
  return Float32Array.from(new Uint16Array(aligned(data, 2)), (half) => {
    const [exponent, fraction] = [(half >> 10) & 0x1f, half & 0x3ff];
    const magnitude =
      exponent === 0
        ? fraction * 2 ** -24
        : exponent === 0x1f
          ? fraction ? NaN : Infinity
          : (1 + fraction / 1024) * 2 ** (exponent - 15);
    return half >> 15 ? -magnitude : magnitude;
  });
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
