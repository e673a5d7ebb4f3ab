import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { bytes, url } from "./media.js";
import { type Message, MessageSchema, type Part, PartSchema, Role, ToolCallKind } from "./v1.js";

/** A conversation: a text of the user's, a message, or several. */
export type Messages = MessageLike | readonly MessageLike[];

/** One turn: a text of the user's, the contract's own message, or one in the shape of OpenAI's Chat Completions. */
export type MessageLike = string | MessageInitShape<typeof MessageSchema> | OpenAIMessage;

/** A message in the shape of OpenAI's Chat Completions. */
export interface OpenAIMessage {
  role: "system" | "developer" | "user" | "assistant" | "tool";
  content?: string | readonly OpenAIPart[] | null;
  name?: string;
  refusal?: string | null;
  tool_calls?: readonly OpenAIToolCall[];
  tool_call_id?: string;
}

/** A part of a message in that shape. */
export type OpenAIPart =
  | { type: "text"; text: string }
  | { type: "refusal"; refusal: string }
  | { type: "image_url"; image_url: { url: string; detail?: string } }
  | { type: "input_audio"; input_audio: { data: string; format: string } }
  | { type: "file"; file: { file_data?: string; file_id?: string; filename?: string } };

/** A call of a tool in that shape: of a function with JSON, or of a custom tool with free text. */
export type OpenAIToolCall =
  | { id: string; type?: "function"; function: { name: string; arguments: string } }
  | { id: string; type: "custom"; custom: { name: string; input: string } };

const KEYS: Record<keyof OpenAIMessage, true> = {
  role: true,
  content: true,
  name: true,
  refusal: true,
  tool_calls: true,
  tool_call_id: true,
};
const ROLES: Record<OpenAIMessage["role"], Role> = {
  system: Role.SYSTEM,
  developer: Role.DEVELOPER,
  user: Role.USER,
  assistant: Role.ASSISTANT,
  tool: Role.TOOL,
};

/** The contract's messages of a conversation. A TypeError names what cannot be sent. */
export function messagesOf(messages: Messages): Message[] {
  const list = Array.isArray(messages) ? (messages as readonly MessageLike[]) : [messages as MessageLike];
  return list.map((message, index) => messageOf(message, `messages[${index}]`));
}

/** A turn of the user, of text and media. */
export function user(...content: readonly (string | Part)[]): Message {
  return create(MessageSchema, { role: Role.USER, parts: content.map(partOrText) });
}

/** Instructions of the operator. */
export function system(instructions: string): Message {
  return create(MessageSchema, { role: Role.SYSTEM, parts: [text(instructions)] });
}

/** A turn of the model. Real answers go back as `answer.message`, with everything they hold. */
export function assistant(...content: readonly (string | Part)[]): Message {
  return create(MessageSchema, { role: Role.ASSISTANT, parts: content.map(partOrText) });
}

function partOrText(content: string | Part): Part {
  return typeof content === "string" ? text(content) : content;
}

function messageOf(message: MessageLike, place: string): Message {
  if (typeof message === "string") return create(MessageSchema, { role: Role.USER, parts: [text(message)] });
  if (typeof message !== "object" || message === null) throw new TypeError(`${place}: no message: ${String(message)}`);
  return isOpenAI(message) ? fromOpenAI(message, place) : create(MessageSchema, message);
}

function isOpenAI(message: Exclude<MessageLike, string>): message is OpenAIMessage {
  return typeof message.role === "string";
}

function fromOpenAI(message: OpenAIMessage, place: string): Message {
  const role = ROLES[message.role];
  if (role === undefined) throw new TypeError(`${place}.role: no such role: ${message.role}`);
  for (const [key, value] of Object.entries(message)) {
    // null is how OpenAI's own answers say that there is nothing
    if (!(key in KEYS) && value != null) throw new TypeError(`${place}.${key}: cannot be sent`);
  }
  const { content } = message;
  const given: readonly OpenAIPart[] = typeof content === "string" ? [{ type: "text", text: content }] : (content ?? []);
  let parts = given.map((part, index) => partOf(part, `${place}.content[${index}]`));
  if (message.refusal) parts.push(create(PartSchema, { content: { case: "refusal", value: message.refusal } }));
  parts.push(...(message.tool_calls ?? []).map(callOf));
  if (message.role === "tool") {
    if (!message.tool_call_id) throw new TypeError(`${place}.tool_call_id: a tool's message says which call it answers`);
    const value = { callId: message.tool_call_id, name: message.name, parts };
    parts = [create(PartSchema, { content: { case: "toolResult", value } })];
  }
  return create(MessageSchema, { role, parts, name: message.role === "tool" ? "" : message.name });
}

function callOf(call: OpenAIToolCall): Part {
  const { id } = call;
  const value =
    call.type === "custom"
      ? { id, name: call.custom.name, arguments: call.custom.input, kind: ToolCallKind.FREE_TEXT }
      : { id, ...call.function, kind: ToolCallKind.FUNCTION };
  return create(PartSchema, { content: { case: "toolCall", value } });
}

function partOf(part: OpenAIPart, place: string): Part {
  switch (part.type) {
    case "text":
      return text(part.text);
    case "refusal":
      return create(PartSchema, { content: { case: "refusal", value: part.refusal } });
    case "image_url":
      return url(part.image_url.url, { detail: part.image_url.detail });
    case "input_audio":
      return audioOf(part.input_audio);
    case "file": {
      const { file_data: data, file_id: id, filename } = part.file;
      if (data) return url(data, { filename });
      if (!id) throw new TypeError(`${place}.file: needs file_data or file_id`);
      const source = { case: "file", value: { issuer: "openai", id } } as const;
      return create(PartSchema, { content: { case: "media", value: { filename, source } } });
    }
    default:
      throw new TypeError(`${place}.type: no such part: ${(part as { type: unknown }).type}`);
  }
}

function audioOf({ data, format }: { data: string; format: string }): Part {
  return bytes(new Uint8Array(Buffer.from(data, "base64")), `audio/${format === "mp3" ? "mpeg" : format}`);
}

/** A part of text. */
export function text(value: string): Part {
  return create(PartSchema, { content: { case: "text", value } });
}
