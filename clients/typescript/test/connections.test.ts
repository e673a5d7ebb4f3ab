import assert from "node:assert/strict";
import { Code, ConnectError, createRouterTransport } from "@connectrpc/connect";
import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { test } from "node:test";
import { Client, ServerUnreachable } from "../src/index.js";
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

test("a server that accepts connections and says nothing is given up", { timeout: 20_000 }, async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const mute = createServer(() => t.mock.timers.tick(20_000)).listen(0, "127.0.0.1");
  await once(mute, "listening");
  const address = `127.0.0.1:${(mute.address() as AddressInfo).port}`;
  const client = new Client(address, { tls: true });
  t.after(() => (client.close(), mute.close()));
  await assert.rejects(client.generate("hello", "Hi"), ServerUnreachable);
});
