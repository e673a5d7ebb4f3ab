import { clone, create } from "@bufbuild/protobuf";
import {
  type Candidate,
  CandidateSchema,
  type GenerateResponse,
  GenerateResponseSchema,
  type GenerationEnd,
  type GenerationStart,
  type LogProbs,
  LogProbsSchema,
  type Part,
  type PartEnd,
  PartSchema,
  Role,
  type StreamGenerateResponse,
} from "./v1.js";

/**
 * One event of a stream, a union by `case`: `textDelta`, `reasoningDelta`, `argumentsDelta`, `partStart`, `partEnd`,
 * `generationStart`, `candidateEnd`, `generationEnd`, `refusalDelta`, `citation`, `mediaDelta`.
 */
export type Event = Extract<StreamGenerateResponse["event"], { case: string }> &
  Pick<StreamGenerateResponse, "candidateIndex" | "partIndex" | "logprobs">;

/** The event of a message; undefined for one of a later release. */
export function eventOf(message: StreamGenerateResponse): Event | undefined {
  const { event, candidateIndex, partIndex, logprobs } = message;
  if (!event.case) return undefined;
  return { case: event.case, value: event.value, candidateIndex, partIndex, logprobs } as Event; // faster than spreading
}

/** The answer that events amount to, whole or as far as it came. */
export function fold(events: Iterable<Event>): GenerateResponse {
  const folded = new Fold();
  for (const event of events) folded.add(event);
  return folded.response();
}

/** The text of the first candidate that an event adds; empty for every other event. */
export function textOf(event: Event): string {
  if (event.candidateIndex) return "";
  if (event.case === "textDelta") return event.value;
  const content = event.case === "partStart" ? event.value.part?.content : undefined;
  return content?.case === "text" ? content.value : "";
}

/** Collects a stream. */
export class Fold {
  /** The end of the answer has come, and it is not partial. */
  complete = false;
  readonly #head = create(GenerateResponseSchema);
  readonly #candidates: { candidate: Candidate; parts: OpenPart[] }[] = [];

  add(event: Event): void {
    switch (event.case) {
      case "generationStart":
        return this.#start(event.value);
      case "generationEnd":
        return this.#end(event.value);
      case "candidateEnd": {
        const { candidate } = this.#candidate(event.candidateIndex);
        candidate.finish = event.value.finish;
        candidate.providerMetadata = event.value.providerMetadata;
        return;
      }
      case "partStart":
        this.#candidate(event.candidateIndex).parts[event.partIndex] = new OpenPart(event.value.part);
        return;
      default:
        (this.#candidate(event.candidateIndex).parts[event.partIndex] ??= new OpenPart()).add(event);
    }
  }

  /** The answer so far; adding may go on after it. */
  response(): GenerateResponse {
    const response = clone(GenerateResponseSchema, this.#head);
    this.#candidates.forEach(({ candidate, parts }) => {
      const copy = clone(CandidateSchema, candidate);
      copy.message!.parts = parts.map((part) => part.joined()).filter(Boolean);
      response.candidates.push(copy);
    });
    return response;
  }

  #candidate(index: number): { candidate: Candidate; parts: OpenPart[] } {
    return (this.#candidates[index] ??= {
      candidate: create(CandidateSchema, { index, message: { role: Role.ASSISTANT } }),
      parts: [],
    });
  }

  #start({ id, model, provider, providerResponseId, createTime, warnings }: GenerationStart): void {
    Object.assign(this.#head, { id, model, provider, providerResponseId, createTime });
    this.#head.warnings.push(...warnings);
  }

  #end({ usage, cost, attempts, partial, warnings, ...others }: GenerationEnd): void {
    const { serviceTier, systemFingerprint, providerMetadata } = others;
    Object.assign(this.#head, { usage, cost, attempts, serviceTier, systemFingerprint, providerMetadata });
    this.#head.warnings.push(...warnings);
    this.complete = !partial;
  }
}

/** A part and the pieces that are appended to it. */
class OpenPart {
  readonly #part: Part;
  #text = "";
  #transcript = "";
  readonly #data: Uint8Array[] = [];
  #logprobs: LogProbs["tokens"] = [];

  constructor(part?: Part) {
    this.#part = part ? clone(PartSchema, part) : create(PartSchema);
  }

  add(event: Event): void {
    if (event.logprobs) this.#logprobs.push(...event.logprobs.tokens);
    switch (event.case) {
      case "textDelta":
      case "reasoningDelta":
      case "argumentsDelta":
      case "refusalDelta":
        this.#text += event.value;
        break;
      case "mediaDelta":
        this.#data.push(event.value.data);
        this.#transcript += event.value.transcript;
        break;
      case "citation":
        this.#part.citations.push(event.value);
        break;
      case "partEnd":
        this.#end(event.value);
    }
  }

  joined(): Part {
    const part = clone(PartSchema, this.#part);
    const { content } = part;
    switch (content.case) {
      case "text":
      case "refusal":
        content.value += this.#text;
        break;
      case "reasoning":
        content.value.text += this.#text;
        break;
      case "toolCall":
        content.value.arguments += this.#text;
        break;
      case "media": {
        const { source } = content.value;
        const data = Buffer.concat([...(source.case === "data" ? [source.value] : []), ...this.#data]);
        if (data.length) content.value.source = { case: "data", value: new Uint8Array(data) };
        content.value.transcript += this.#transcript;
      }
    }
    if (this.#logprobs.length) {
      part.logprobs ??= create(LogProbsSchema);
      part.logprobs.tokens.push(...this.#logprobs);
    }
    return part;
  }

  #end({ signature, issuer, itemId, providerMetadata, incomplete }: PartEnd): void {
    const part = this.#part;
    if (signature.length) part.signature = signature;
    part.issuer = issuer || part.issuer;
    part.itemId = itemId || part.itemId;
    Object.assign(part.providerMetadata, providerMetadata);
    part.incomplete = incomplete;
  }
}
