import { InvalidOutput } from "./errors.js";
import type { Answer } from "./answer.js";
import { FinishReason } from "./v1.js";

/** A JSON Schema. */
export type JsonSchema = Readonly<Record<string, unknown>>;

/**
 * A schema of zod, valibot, arktype, … : what {@link https://standardschema.dev Standard Schema} and Standard JSON Schema
 * have in common.
 */
export interface StandardSchema<T> {
  readonly "~standard": {
    readonly types?: { readonly input: unknown; readonly output: T } | undefined;
    readonly validate: (value: unknown) => Validated<T> | Promise<Validated<T>>;
    readonly jsonSchema: { readonly input: (options: { target: "draft-2020-12" }) => Record<string, unknown> };
  };
}

type Validated<T> =
  | { readonly value: T; readonly issues?: undefined }
  | { readonly issues: readonly { readonly message: string; readonly path?: readonly unknown[] | undefined }[] };

/** Values of type T: a schema that checks them, or a plain JSON Schema, whose values are taken at their word. */
export type Schema<T> = StandardSchema<T> | JsonSchema;

/** The JSON Schema as text. */
export function schemaText<T>(schema: Schema<T>): string {
  return JSON.stringify(isStandard(schema) ? schema["~standard"].jsonSchema.input({ target: "draft-2020-12" }) : schema);
}

/** The value of a JSON text; throws what hinders. */
export async function parsed<T>(schema: Schema<T>, text: string): Promise<T> {
  const value: unknown = JSON.parse(text);
  if (!isStandard(schema)) return value as T;
  const checked = await schema["~standard"].validate(value);
  if (!checked.issues) return checked.value;
  throw new TypeError(checked.issues.map(({ message, path }) => `${placeOf(path)}${message}`).join("; "));
}

/** The value of an answer's text, or InvalidOutput. */
export async function valueOf<T>(schema: Schema<T>, answer: Answer): Promise<T> {
  if (!isWhole(answer)) throw new InvalidOutput(`the answer ended by ${FinishReason[answer.finishReason ?? 0]}`, answer);
  try {
    return await parsed(schema, answer.text);
  } catch (cause) {
    throw new InvalidOutput(`the answer is not the JSON asked for: ${messageOf(cause)}`, answer, { cause });
  }
}

/** The model ended the first candidate by itself. */
export function isWhole(answer: Answer): boolean {
  const reasons = [undefined, FinishReason.UNSPECIFIED, FinishReason.STOP, FinishReason.TOOL_CALLS, FinishReason.OTHER];
  return reasons.includes(answer.finishReason) && !answer.message?.parts.some((part) => part.incomplete);
}

/** What went wrong, in words. */
export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}

function isStandard<T>(schema: Schema<T>): schema is StandardSchema<T> {
  return "~standard" in schema;
}

function placeOf(path: readonly unknown[] | undefined): string {
  const keys = path?.map((step) => (typeof step === "object" && step && "key" in step ? step.key : step));
  return keys?.length ? `${keys.join(".")}: ` : "";
}
