import { type FinishReason, type GenerateResponse, type Message, type ToolCall, ToolCallKind } from "./v1.js";

/** A whole answer; what most callers want of it is here, everything is in `response`. */
export class Answer {
  constructor(
    /** The contract's message: usage, cost, attempts, warnings, and every candidate. */
    readonly response: GenerateResponse,
    /** Names the call in the server's log. */
    readonly requestId: string,
  ) {}

  /** The first candidate's message, as it goes back into the conversation. */
  get message(): Message | undefined {
    return this.response.candidates[0]?.message;
  }

  /** The first candidate's text, its parts joined. */
  get text(): string {
    const parts = this.message?.parts ?? [];
    return parts.map(({ content }) => (content.case === "text" ? content.value : "")).join("");
  }

  /** The calls that the first candidate leaves to the caller, in order. */
  get toolCalls(): ToolCall[] {
    const parts = this.message?.parts ?? [];
    const calls = parts.flatMap(({ content }) => (content.case === "toolCall" ? [content.value] : []));
    return calls.filter((call) => call.kind !== ToolCallKind.PROVIDER_EXECUTED);
  }

  /** Why the first candidate ended. A refusal or content filter stands here and is no error. */
  get finishReason(): FinishReason | undefined {
    return this.response.candidates[0]?.finish?.reason;
  }
}
