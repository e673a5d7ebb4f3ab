/**
 * `npm run bench`: what the client costs beside connect-es' own, in CPU-µs of this process for each call, by turns
 * against one scripted server in another process, and the median of their ratios. A call of the stub is what a program
 * without the client would write: a deadline, a bearer token, a request id, and a stream's text joined.
 */

import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { randomUUID } from "node:crypto";
import { Client, v1 } from "../src/index.js";
import { Scripted } from "./scripted.js";

const ROUNDS = 25;
const TEXT = "Say what a call costs. ".repeat(30);
const INPUTS = Array.from({ length: 100 }, () => "something to embed");

const server = await Scripted.start("bench/clients.json", "--quiet");
const client = new Client(server.address, { apiKey: "k" });
const stub = createClient(v1.InferenceService, createGrpcTransport({ baseUrl: `http://${server.address}` }));

const how = () => ({ timeoutMs: 60_000, headers: { authorization: "Bearer k", "x-request-id": randomUUID() } });
const asked = (model: string) => ({
  model,
  config: { temperature: 0.5 },
  messages: [{ role: v1.Role.USER, parts: [{ content: { case: "text" as const, value: TEXT } }] }],
});
const inputs = () => INPUTS.map((value) => ({ input: { case: "text" as const, value } }));

async function streamByStub(): Promise<string> {
  let text = "";
  for await (const { event } of stub.streamGenerate(asked("stream"), how())) {
    if (event.case === "textDelta") text += event.value;
  }
  return text;
}

async function streamByClient(): Promise<string> {
  let text = "";
  for await (const piece of client.stream("stream", TEXT, { config: { temperature: 0.5 } }).text) text += piece;
  return text;
}

/** Decodes as the contract says: one view of the matrix. */
async function embedByStub(): Promise<Float32Array> {
  const { data } = await stub.embed({ model: "embed", inputs: inputs() }, how());
  return new Float32Array(data.slice().buffer);
}

type Step = () => Promise<unknown>;
const CASES: Record<string, [number, Step, Step]> = {
  unary: [200, () => stub.generate(asked("plain"), how()), () => client.generate("plain", TEXT, { config: { temperature: 0.5 } })],
  stream: [30, streamByStub, streamByClient],
  embed: [60, embedByStub, () => client.embed("embed", INPUTS)],
};

async function cpu(step: Step, calls: number): Promise<number> {
  const start = process.cpuUsage();
  for (let i = 0; i < calls; i++) await step();
  const { user, system } = process.cpuUsage(start);
  return (user + system) / calls;
}

const median = (numbers: number[]) => numbers.toSorted((a, b) => a - b)[numbers.length >> 1]!;

for (const [name, [calls, byStub, byClient]] of Object.entries(CASES)) {
  await cpu(byStub, calls * 3);
  await cpu(byClient, calls * 3);
  const pairs: [number, number][] = [];
  for (let round = 0; round < ROUNDS; round++) {
    // by turns, the first of a round by turns, too
    if (round % 2) pairs.push([await cpu(byStub, calls), await cpu(byClient, calls)]);
    else pairs.push([await cpu(byClient, calls), await cpu(byStub, calls)].toReversed() as [number, number]);
  }
  const [stubs, clients] = [pairs.map(([one]) => one), pairs.map(([, other]) => other)];
  const ratio = median(pairs.map(([one, other]) => other / one));
  console.log(name.padEnd(8), `stub ${median(stubs).toFixed(0)}`, `client ${median(clients).toFixed(0)}`, `ratio ${ratio.toFixed(3)}`);
}
await server.stop();
