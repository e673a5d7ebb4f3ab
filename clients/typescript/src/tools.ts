import { create, isMessage, type MessageInitShape } from "@bufbuild/protobuf";
import { text } from "./messages.js";
import { messageOf, parsed, type Schema, schemaText } from "./schema.js";
import { type Part, PartSchema, type Tool as ToolDefinition, type ToolCall, ToolSchema } from "./v1.js";

/** What a tool answers: text and parts go to the model as they are, anything else as JSON. */
export type ToolValue = unknown;

/** What a tool may want to know of its call. */
export interface ToolContext {
  /** Aborted when the caller leaves. */
  signal?: AbortSignal;
  call: ToolCall;
}

/** Something the model may call: how it is told of it, and what runs the call. */
export interface Tool {
  definition: ToolDefinition;
  /** Runs a call with its arguments, JSON or free text; what it throws is told to the model. Without it you do. */
  run?: (argumentsText: string, context: ToolContext) => ToolValue | Promise<ToolValue>;
}

/**
 * A tool of a typed function: `parameters` is a schema of zod or the like, which types and checks the arguments, or a
 * plain JSON Schema.
 */
export function tool<T>(options: {
  name: string;
  description?: string;
  parameters: Schema<T>;
  /** The vendor must enforce the schema. */
  strict?: boolean;
  run: (parameters: T, context: ToolContext) => ToolValue | Promise<ToolValue>;
}): Tool {
  const { name, description, parameters, strict, run } = options;
  const value = { name, description, parametersSchema: schemaText(parameters), strict };
  return {
    definition: create(ToolSchema, { kind: { case: "function", value } }),
    run: async (argumentsText, context) => run(await parsed(parameters, argumentsText), context),
  };
}

/** A tool of a function that takes any text. */
export function freeTextTool(options: {
  name: string;
  description?: string;
  run: (input: string, context: ToolContext) => ToolValue | Promise<ToolValue>;
}): Tool {
  const { run, ...value } = options;
  return { definition: create(ToolSchema, { kind: { case: "freeText", value } }), run };
}

/** The name that calls bear. */
export function nameOf({ kind }: ToolDefinition): string {
  return kind.case === "function" || kind.case === "freeText" ? kind.value.name : "";
}

/** The part that answers a call. */
export async function resultOf(tool: Tool | undefined, context: ToolContext): Promise<Part> {
  const { id: callId, name, arguments: argumentsText } = context.call;
  try {
    if (!tool?.run) throw new Error(`there is no tool ${JSON.stringify(name)}`);
    return result({ callId, name, ...told(await tool.run(argumentsText, context)) });
  } catch (thrown) {
    return result({ callId, name, parts: [text(messageOf(thrown))], failed: true });
  }
}

function told(value: ToolValue): { parts: Part[]; structuredJson?: string } {
  if (typeof value === "string") return { parts: [text(value)] };
  const parts = [value].flat();
  if (parts.length && parts.every((part) => isMessage(part, PartSchema))) return { parts };
  const structuredJson = JSON.stringify(value ?? null);
  return { parts: [text(structuredJson)], structuredJson };
}

function result(value: Extract<MessageInitShape<typeof PartSchema>["content"], { case: "toolResult" }>["value"]): Part {
  return create(PartSchema, { content: { case: "toolResult", value } });
}
