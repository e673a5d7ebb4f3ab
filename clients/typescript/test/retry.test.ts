import assert from "node:assert/strict";
import { Code, ConnectError, createRouterTransport } from "@connectrpc/connect";
import { test } from "node:test";
import { RetryingTransport } from "../src/retry.js";
import { InferenceService } from "../src/v1.js";

test("an address that was long down is tried again within ten seconds", async (t) => {
  let now = 0;
  t.mock.method(performance, "now", () => now);
  const tries: number[] = [];
  const health = () => {
    tries.push(now);
    throw new ConnectError("nobody listens", Code.Unavailable);
  };
  const down = createRouterTransport(({ service }) => service(InferenceService, { health }));
  const up = createRouterTransport(({ service }) => service(InferenceService, { health: () => ({}) }));
  const transport = new RetryingTransport([down, up]);
  for (; now < 600_000; now += 1000) {
    await transport.unary(InferenceService.method.health, undefined, undefined, undefined, {});
  }
  const waits = tries.slice(1).map((at, index) => at - tries[index]!);
  assert.deepEqual(waits.slice(0, 5), [1000, 2000, 4000, 8000, 10_000]);
  assert.equal(Math.max(...waits), 10_000);
});
