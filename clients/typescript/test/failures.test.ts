import { Code } from "@connectrpc/connect";
import assert from "node:assert/strict";
import { test } from "node:test";
import * as headgate from "../src/index.js";
import { client, missing as skip, Scripted, scripted } from "./scripted.js";

const NAMES: Record<string, string> = {
  INVALID_CREDENTIALS: "Unauthenticated",
  DEADLINE: "DeadlineExceeded",
  INTERNAL: "InternalError",
};
const REASONS = `INVALID_REQUEST UNSUPPORTED_PARAMETER PROVIDER_REJECTED_REQUEST CONTEXT_LENGTH_EXCEEDED INVALID_CREDENTIALS
  MISSING_CREDENTIALS MODEL_NOT_ALLOWED CALLER_CREDENTIALS_REJECTED MODEL_NOT_FOUND PROVIDER_RESOURCE_NOT_FOUND
  NO_ELIGIBLE_PROVIDER PROVIDER_CREDENTIALS_REJECTED PROVIDER_MODEL_MISSING OPAQUE_STATE_REJECTED RATE_LIMITED
  PROVIDER_RATE_LIMITED BUDGET_EXCEEDED PROVIDER_QUOTA_EXHAUSTED GATEWAY_OVERLOADED GATEWAY_DRAINING PROVIDER_ERROR
  PROVIDER_UNREACHABLE PROVIDER_OVERLOADED PROVIDER_TIMEOUT PROVIDER_PROTOCOL_ERROR STREAM_INTERRUPTED DEADLINE
  INTERNAL`.split(/\s+/);

async function failing(call: Promise<unknown>): Promise<headgate.CallFailed> {
  const error = await call.then(() => assert.fail("it did not fail"), (thrown: unknown) => thrown);
  assert.ok(error instanceof headgate.CallFailed, String(error));
  return error;
}

test("every reason is a class of its own, with what the details say", { skip }, async () => {
  for (const reason of REASONS) {
    const words = reason.toLowerCase().split("_").map((word) => word[0]!.toUpperCase() + word.slice(1));
    const error = await failing(client().generate(`error:${reason}`, "Hi", { requestId: `of ${reason}` }));
    assert.equal(error.name, NAMES[reason] ?? words.join(""));
    assert.equal(error.reason, reason);
    assert.equal(error.message, `told by ${reason}`);
    assert.deepEqual([error.requestId, error.provider, error.attempts], [`of ${reason}`, "p", 2]);
  }
});

test("details are typed", { skip }, async () => {
  const limited = await failing(client().generate("error:RATE_LIMITED", "Hi"));
  assert.ok(limited instanceof headgate.RateLimited && limited.retryable);
  assert.equal(limited.retryAfterMs, 1500);
  assert.equal(limited.limits[0]?.subject, "tenant:acme model:fast");
  const invalid = await failing(client().generate("error:UNSUPPORTED_PARAMETER", "Hi"));
  assert.ok(invalid instanceof headgate.InvalidRequest && !invalid.retryable);
  assert.equal(invalid.violations[0]?.field, "config.top_k");
  const missing = await failing(client().generate("error:PROVIDER_RESOURCE_NOT_FOUND", "Hi"));
  assert.deepEqual(missing.resource, { type: "file", name: "file-1" });
  const late = await failing(client().generate("error:PROVIDER_TIMEOUT", "Hi"));
  assert.ok(late instanceof headgate.ProviderTimeout && late instanceof headgate.Unavailable && late.phase === "idle");
});

test("reasons of later releases become the class of their code", { skip }, async () => {
  const error = await failing(client().generate("error:later", "Hi"));
  assert.deepEqual([error.name, error.reason], ["FailedPrecondition", "SOMETHING_NEW"]);
  assert.equal((await failing(client().generate("error:bare", "Hi"))).name, "CallFailed");
});

test("an interrupted stream has what came in partial", { skip }, async () => {
  const texts: string[] = [];
  const stream = client().stream("interrupted", "Hi");
  const reading = (async () => {
    for await (const text of stream.text) texts.push(text);
  })();
  const error = await failing(reading);
  assert.ok(error instanceof headgate.StreamInterrupted);
  assert.deepEqual([texts.join(""), error.partial?.text], ["half an answer", "half an answer"]);
  assert.equal(await failing(stream.final()), error);
});

test("a stream that ends without its end is interrupted", { skip }, async () => {
  const error = await failing(client().stream("unfinished", "Hi").final());
  assert.deepEqual([error.name, error.partial?.text], ["StreamInterrupted", "half"]);
});

test("what a proxy says of a stream that broke is an interruption, too", { skip }, async () => {
  const error = await failing(client().stream("cut-off", "Hi").final());
  assert.deepEqual([error.name, error.code, error.partial?.text], ["StreamInterrupted", Code.Aborted, "half"]);
});

test("a stream of which nothing came has no partial, and may be asked for again", { skip }, async () => {
  const error = await failing(client().stream("busy-for-good", "Hi").final());
  assert.deepEqual([error.partial, error.retryable], [undefined, true]);
});

test("UNAVAILABLE is sent again before the first content", { skip }, async () => {
  assert.equal((await client().generate("busy-once", "Hi", { requestId: "again-1" })).text, "fine");
  assert.equal((await client().stream("busy-once-streamed", "Hi", { requestId: "again-2" }).final()).text, "fine");
  assert.equal((await scripted.seen("again-1", 2)).length, 2);
  assert.equal((await scripted.seen("again-2", 2)).length, 2);
});

test("nothing is sent again after the first content, nor against the server's advice, nor for other codes", { skip }, async () => {
  const later = await failing(client().stream("busy-later", "Hi", { requestId: "once-1" }).final());
  assert.deepEqual([later.partial?.text, later.retryable], ["half", false]);
  await failing(client().generate("busy-for-good", "Hi", { requestId: "once-2" }));
  await failing(client().generate("limited-once", "Hi", { requestId: "once-3" }));
  await new Promise((resolve) => setTimeout(resolve, 300));
  for (const id of ["once-1", "once-2", "once-3"]) assert.equal((await scripted.seen(id)).length, 1);
});

test("calls take turns over addresses, and go on when a server dies", { skip }, async () => {
  const other = await Scripted.start();
  const took = async (server: Scripted, id: string) => (await server.all(id)).length;
  try {
    const both = new headgate.Client([scripted.address, other.address]);
    for (let i = 0; i < 10; i++) await both.generate("hello", "Hi", { requestId: "turns" });
    assert.deepEqual([await took(scripted, "turns"), await took(other, "turns")], [5, 5]);
    const hanging = new headgate.Client(other.address).stream("hanging", "Hi");
    assert.equal((await hanging.text.next()).value, "first");
    await other.stop();
    const broken = await failing(hanging.final());
    assert.ok(broken instanceof headgate.StreamInterrupted && !broken.retryable);
    assert.equal(broken.partial?.text, "first");
    for (let i = 0; i < 10; i++) await both.stream("hello", "Hi", { requestId: "alone" }).final();
    assert.equal(await took(scripted, "alone"), 10);
  } finally {
    await other.stop();
  }
});

test("a server that nobody reaches is ServerUnreachable", { skip }, async () => {
  const error = await failing(new headgate.Client("127.0.0.1:1", { timeoutMs: 3000 }).generate("hello", "Hi"));
  assert.ok(error instanceof headgate.ServerUnreachable && error.retryable);
});

test("a closed client calls nobody", { skip }, async () => {
  const closing = client();
  const hanging = closing.stream("hanging", "Hi");
  assert.equal((await hanging.text.next()).value, "first");
  closing.close();
  const left = await failing(hanging.final());
  assert.deepEqual([left.name, left.partial?.text], ["CallCancelled", "first"]);
  assert.ok((await failing(closing.generate("hello", "Hi"))) instanceof headgate.CallCancelled);
  assert.ok((await failing(closing.stream("hello", "Hi").final())) instanceof headgate.CallCancelled);
});

test("keys and tokens go as bearer, the token anew for each call", { skip }, async () => {
  await client({ apiKey: "key-1" }).generate("hello", "Hi", { requestId: "auth-1" });
  let count = 0;
  const renewing = client({ token: async () => `token-${++count}`, headers: { "x-team": "search" } });
  await renewing.generate("hello", "Hi");
  await renewing.generate("hello", "Hi", { requestId: "auth-2", headers: { "x-provider-key-openai": "own" } });
  assert.equal((await scripted.seen("auth-1"))[0]!.metadata.authorization, "Bearer key-1");
  const { metadata } = (await scripted.seen("auth-2"))[0]!;
  assert.equal(metadata.authorization, "Bearer token-2");
  assert.deepEqual([metadata["x-team"], metadata["x-provider-key-openai"]], ["search", "own"]);
});

test("contradictory or senseless settings are refused at once", () => {
  assert.throws(() => new headgate.Client("a:1", { apiKey: "k", token: () => "t" }), TypeError);
  assert.throws(() => new headgate.Client("https://example.com"), /no address/);
  assert.throws(() => new headgate.Client("", { embedConcurrency: 0 }), /at least one/);
  assert.throws(() => new headgate.Client("", { embedBatch: 0 }), /at least one/);
});
