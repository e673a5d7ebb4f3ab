import assert from "node:assert/strict";
import { test } from "node:test";
import { z } from "zod";
import { InvalidOutput, tool } from "../src/index.js";
import { client, missing as skip, scripted } from "./scripted.js";

const Weather = z.object({ city: z.string(), degrees: z.number() });

test("JSON comes as a value of the schema's type, and the schema goes to the model", { skip }, async () => {
  const { value } = await client().generateJson("json", "Weather?", Weather, { requestId: "json-1" });
  assert.equal(value.degrees satisfies number, 3);
  const [call] = await scripted.seen("json-1");
  const format = call!.request.config.responseFormat;
  assert.equal(format.type, "RESPONSE_FORMAT_TYPE_JSON_SCHEMA");
  assert.deepEqual(JSON.parse(format.schema).required, ["city", "degrees"]);
});

test("a plain JSON Schema does, too", { skip }, async () => {
  const { value } = await client().generateJson<{ city: string }>("json", "Weather?", { type: "object" });
  assert.equal(value.city, "Oslo");
});

for (const model of ["bad-json", "cut-json", "hello"]) {
  test(`what is not the JSON asked for is InvalidOutput with the answer: ${model}`, { skip }, async () => {
    const failed = client().generateJson(model, "Weather?", Weather);
    await assert.rejects(failed, (error: InvalidOutput) => error instanceof InvalidOutput && error.answer.text !== "");
  });
}

test("a tool's arguments are checked by its schema", { skip }, async () => {
  const seen: string[] = [];
  const weather = tool({
    name: "weather",
    parameters: z.object({ city: z.string() }),
    run: ({ city }) => void seen.push(city.toUpperCase()),
  });
  const { messages } = await client().runTools("tool-loop", "Hi", { tools: [weather] });
  assert.deepEqual(seen, ["OSLO", "NOWHERE"]);
  const misfit = messages[2]!.parts[3]!.content;
  assert.ok(misfit.case === "toolResult" && misfit.value.failed);
});
