/**
 * The TypeScript client of Headgate, one gRPC contract in front of every model vendor.
 *
 * ```ts
 * const client = new Client("localhost:50051");
 * for await (const text of client.stream("fast", "Hello").text) process.stdout.write(text);
 * ```
 *
 * @module
 */

export { Code } from "@connectrpc/connect";
export { Answer } from "./answer.js";
export {
  Client,
  type CallOptions,
  type EmbedInputLike,
  type EmbedOptions,
  type GenerateOptions,
  type ToolOptions,
  type ToolRun,
} from "./client.js";
export type { ClientOptions } from "./connection.js";
export { Embeddings } from "./embeddings.js";
export * from "./errors.js";
export { fold, type Event } from "./fold.js";
export { bytes, file, type MediaFields, url } from "./media.js";
export {
  assistant,
  type MessageLike,
  type Messages,
  messagesOf,
  type OpenAIMessage,
  type OpenAIPart,
  type OpenAIToolCall,
  system,
  user,
} from "./messages.js";
export { schemaText, type JsonSchema, type Schema, type StandardSchema } from "./schema.js";
export { SERVICE_CONFIG } from "./gen/service_config.js";
export { AnswerStream } from "./stream.js";
export { freeTextTool, tool, type Tool, type ToolContext, type ToolValue } from "./tools.js";
export { VERSION } from "./version.js";
export * as v1 from "./v1.js";
