import assert from "node:assert/strict";
import { equals } from "@bufbuild/protobuf";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import * as headgate from "../src/index.js";
import { client, missing, scripted } from "./scripted.js";

const { FinishReason, GenerateResponseSchema, Role } = headgate.v1;
const skip = missing;

test("generate answers at once", { skip }, async () => {
  const answer = await client().generate("hello", "Hi", { requestId: "generate-1" });
  assert.equal(answer.text, "Hello there");
  assert.equal(answer.finishReason, FinishReason.STOP);
  assert.equal(answer.requestId, "generate-1");
  const [call] = await scripted.seen("generate-1");
  assert.deepEqual(call!.request.messages, [{ role: "ROLE_USER", parts: [{ text: "Hi" }] }]);
});

test("a stream yields events that are a union by case", { skip }, async () => {
  const texts: string[] = [];
  for await (const event of client().stream("hello", "Hi")) {
    if (event.case === "textDelta") texts.push(event.value);
    if (event.case === "generationEnd") assert.equal(event.value.usage?.outputTokens, 2);
  }
  assert.deepEqual(texts, ["Hel", "lo ", "there"]);
});

test("text and final read the same stream", { skip }, async () => {
  const stream = client().stream("hello", "Hi");
  for await (const text of stream.text) {
    assert.equal(text, "Hel");
    const rest = await stream.final();
    assert.equal(rest.text, "Hello there");
  }
});

test("text comes as it was written, in any script", { skip }, async () => {
  const written = "Grüße ☕ 👩‍🚀 שלום e\u0301 \u2028\u0000\u{10FFFD}";
  assert.equal((await client().generate("unicode", written, { requestId: "unicode-1" })).text, written);
  assert.equal((await client().stream("unicode", "Hi").final()).text, written);
  const [call] = await scripted.seen("unicode-1");
  assert.equal(call!.request.messages[0].parts[0].text, written);
});

test("the fold of a stream equals the answer at once", { skip }, async () => {
  const { response: whole } = await client().generate("everything", "Hi");
  const { response: folded } = await client().stream("everything", "Hi").final();
  assert.ok(equals(GenerateResponseSchema, whole, folded));
  assert.equal(whole.cost?.totalNanos, 9007199254740993n);
});

test("pieces of every kind are joined by candidate and part", { skip }, async () => {
  const { response: whole } = await client().generate("pieces", "Hi");
  const answer = await client().stream("pieces", "Hi").final();
  assert.ok(equals(GenerateResponseSchema, whole, answer.response));
  assert.equal(answer.text, "Hi you");
  const [reasoning, said, call, audio] = answer.message!.parts;
  assert.equal(reasoning!.content.case === "reasoning" && reasoning!.content.value.text, "Let me think");
  assert.deepEqual([Buffer.from(reasoning!.signature).toString(), reasoning!.issuer], ["sig2", "gemini"]);
  assert.equal(said!.logprobs?.tokens.length, 2);
  assert.equal(call!.content.case === "toolCall" && call!.content.value.arguments, '{"a":1}');
  assert.ok(audio!.content.case === "media" && audio!.content.value.transcript === "so it is");
  assert.deepEqual([...(audio!.content.value.source.value as Uint8Array)], [0, 1, 2, 3, 4]);
  assert.equal(answer.response.candidates[1]!.message!.parts.length, 1);
});

test("an event of a later release is ignored", { skip }, async () => {
  const { stub } = client();
  const sent: (string | undefined)[] = [];
  for await (const { event } of stub.streamGenerate({ model: "pieces", messages: [{ role: Role.USER }] })) sent.push(event.case);
  const known: string[] = [];
  for await (const event of client().stream("pieces", "Hi")) known.push(event.case);
  assert.equal(sent.indexOf(undefined), 5);
  assert.deepEqual(known, sent.toSpliced(5, 1));
});

test("folding recorded events gives the answer", { skip }, async () => {
  const events: headgate.Event[] = [];
  for await (const event of client().stream("hello", "Hi")) events.push(event);
  assert.equal(headgate.fold(events).candidates[0]?.message?.parts.length, 1);
});

test("leaving a loop cancels the call", { skip }, async () => {
  const stream = client().stream("dripping", "Hi", { requestId: "leaving-1" });
  for await (const _ of stream.text) break;
  const [call] = await scripted.seen("leaving-1");
  assert.equal(call!.outcome, "CANCELLED");
  await assert.rejects(stream.final(), headgate.CallCancelled);
});

test("a process ends although streams were left", { skip }, () => {
  const index = new URL("../src/index.js", import.meta.url);
  const program = `
    import { Client } from ${JSON.stringify(index)};
    const client = new Client(${JSON.stringify(scripted.address)});
    for (const model of ["hello", "dripping", "everything"]) for await (const _ of client.stream(model, "Hi")) break;
    client.stream("hanging", "Hi").cancel();`;
  execFileSync(process.execPath, ["--input-type=module", "--eval", program], { timeout: 20_000 });
});

test("a stream that waits is cancelled by cancel and by its signal", { skip }, async () => {
  const leaving = new AbortController();
  const streams = [
    client().stream("hanging", "Hi", { requestId: "cancel-1" }),
    client().stream("hanging", "Hi", { requestId: "signal-1", signal: leaving.signal }),
  ];
  for (const stream of streams) assert.equal((await stream.text.next()).value, "first");
  const ends = streams.map((stream) => stream.final());
  setTimeout(() => (streams[0]!.cancel(), leaving.abort()), 50);
  for (const end of ends) {
    await assert.rejects(end, (error: headgate.CallCancelled) => error.partial?.text === "first");
  }
  for (const id of ["cancel-1", "signal-1"]) assert.equal((await scripted.seen(id))[0]!.outcome, "CANCELLED");
});

test("a deadline ends a call, and reaches the server", { skip }, async () => {
  const failed = client().generate("slow", "Hi", { timeoutMs: 150, requestId: "deadline-1" });
  await assert.rejects(failed, headgate.DeadlineExceeded);
  const [call] = await scripted.seen("deadline-1");
  assert.ok(call!.timeout! <= 0.15);
  await assert.rejects(client({ timeoutMs: 150 }).stream("hanging", "Hi").final(), headgate.DeadlineExceeded);
});

test("every call has a deadline unless it is told not to", { skip }, async () => {
  await client().generate("hello", "Hi", { requestId: "default-1" });
  await client().generate("hello", "Hi", { requestId: "default-2", timeoutMs: 0 });
  const [usual, without] = [await scripted.seen("default-1"), await scripted.seen("default-2")];
  assert.ok(usual[0]!.timeout! > 590 && usual[0]!.timeout! <= 600);
  assert.equal(without[0]!.timeout, null);
});

test("a tool loop runs calls, tells the model of failures, and keeps its history", { skip }, async () => {
  const weather = headgate.tool({
    name: "weather",
    description: "Weather of a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    run: ({ city }: { city: string }) => {
      if (city === "Nowhere") throw new Error("no such city");
      return { city, degrees: 3 };
    },
  });
  const run = await client().runTools("tool-loop", "How warm is it?", { tools: [weather] });
  assert.equal(run.answer.text, "It is 3 degrees.");
  assert.deepEqual(run.messages.map(({ role }) => role), [Role.USER, Role.ASSISTANT, Role.TOOL, Role.ASSISTANT]);
  const results = run.messages[2]!.parts.map(({ content }) => content.value as headgate.v1.ToolResult);
  assert.deepEqual(results.map(({ callId, failed }) => [callId, failed]), [["c1", false], ["c2", true], ["c3", true], ["c4", false]]);
  assert.equal(results[0]!.structuredJson, '{"city":"Oslo","degrees":3}');
  assert.equal(run.answers.length, 2);
});

test("a tool loop is bounded, and leaves tools without run to the caller", { skip }, async () => {
  const { run: _, ...declared } = headgate.tool({ name: "weather", parameters: {}, run: () => "fine" });
  const endless = client().runTools("tool-loop-without-end", "Hi", { tools: [{ ...declared, run: () => "fine" }], maxRounds: 3 });
  await assert.rejects(endless, (error: headgate.TooManyRounds) => error.messages.length === 7);
  const left = await client().runTools("tool-loop-without-end", "Hi", { tools: [declared] });
  assert.equal(left.answer.toolCalls.length, 1);
});

test("embeddings of many inputs go in sub-batches and come back in order", { skip }, async () => {
  const inputs = Array.from({ length: 20_000 }, (_, index) => String(index));
  const embeddings = await client().embed("embedder", inputs);
  assert.deepEqual([embeddings.vectors.length, embeddings.dimensions, embeddings.data.length], [20_000, 1536, 20_000 * 1536]);
  for (const index of [0, 1, 1023, 1024, 19_999]) {
    assert.deepEqual([embeddings.vectors[index]![0], embeddings.vectors[index]![1535]], [index, index]);
  }
  assert.equal(embeddings.usage?.inputTokens, 20_000);
  assert.equal(embeddings.requestIds.length, 20);
});

test("embeddings are all or nothing", { skip }, async () => {
  const failed = client({ embedBatch: 1, embedConcurrency: 1 }).embed("embedder-broken", ["1", "2", "3"]);
  await assert.rejects(failed, headgate.ProviderQuotaExhausted);
});

test("models and health", { skip }, async () => {
  const names = (await client().models()).map(({ name }) => name);
  assert.ok(names.includes("hello") && names.length > 20);
  assert.equal((await client().health()).state, headgate.v1.ServingState.SERVING);
});
