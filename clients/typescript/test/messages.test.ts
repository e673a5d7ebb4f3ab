import assert from "node:assert/strict";
import { create, toJson } from "@bufbuild/protobuf";
import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { bytes, file, messagesOf, type OpenAIMessage, system, url, v1 } from "../src/index.js";

function json(messages: Parameters<typeof messagesOf>[0]): unknown {
  return messagesOf(messages).map((message) => toJson(v1.MessageSchema, message));
}

test("texts, messages of the contract and of OpenAI's shape may be mixed", () => {
  const own = create(v1.MessageSchema, { role: v1.Role.ASSISTANT, parts: [{ content: { case: "text", value: "Hm" } }] });
  assert.deepEqual(json([system("Be"), { role: "system", content: "Be brief" }, "Hi", own, { role: v1.Role.USER }]), [
    { role: "ROLE_SYSTEM", parts: [{ text: "Be" }] },
    { role: "ROLE_SYSTEM", parts: [{ text: "Be brief" }] },
    { role: "ROLE_USER", parts: [{ text: "Hi" }] },
    { role: "ROLE_ASSISTANT", parts: [{ text: "Hm" }] },
    { role: "ROLE_USER" },
  ]);
});

test("a conversation in OpenAI's shape keeps calls, results, images and files", () => {
  const conversation: OpenAIMessage[] = [
    {
      role: "user",
      content: [
        { type: "text", text: "What is this?" },
        { type: "image_url", image_url: { url: "https://example.com/a.png", detail: "low" } },
        { type: "image_url", image_url: { url: "data:image/png;base64,iVBORw==" } },
        { type: "input_audio", input_audio: { data: "AAEC", format: "mp3" } },
        { type: "file", file: { file_id: "file-1" } },
      ],
    },
    { role: "assistant", content: null, tool_calls: [{ id: "c1", type: "function", function: { name: "f", arguments: "{}" } }] },
    { role: "tool", tool_call_id: "c1", content: "done" },
  ];
  assert.deepEqual(json(conversation), [
    {
      role: "ROLE_USER",
      parts: [
        { text: "What is this?" },
        { media: { mimeType: "image/png", uri: "https://example.com/a.png", detail: "low" } },
        { media: { mimeType: "image/png", data: "iVBORw==" } },
        { media: { mimeType: "audio/mpeg", data: "AAEC" } },
        { media: { file: { issuer: "openai", id: "file-1" } } },
      ],
    },
    { role: "ROLE_ASSISTANT", parts: [{ toolCall: { id: "c1", name: "f", arguments: "{}", kind: "TOOL_CALL_KIND_FUNCTION" } }] },
    { role: "ROLE_TOOL", parts: [{ toolResult: { callId: "c1", parts: [{ text: "done" }] } }] },
  ]);
});

test("what cannot be sent is refused by its place", () => {
  const wrong: [unknown, RegExp][] = [
    [[{ role: "robot", content: "" }], /messages\[0\]\.role/],
    [["Hi", { role: "user", content: [{ type: "video" }] }], /messages\[1\]\.content\[0\]\.type/],
    [[{ role: "tool", content: "x" }], /messages\[0\]\.tool_call_id/],
    [[{ role: "user", content: [{ type: "image_url", image_url: { url: "/etc/passwd" } }] }], /no address/],
    [[{ role: "user", content: "Hi", audio: {} }], /messages\[0\]\.audio/],
    [[7], /messages\[0\]/],
  ];
  for (const [messages, place] of wrong) assert.throws(() => messagesOf(messages as string), place);
});

test("media come from bytes, files and addresses", async () => {
  const path = join(await mkdtemp(join(tmpdir(), "headgate-")), "note.PDF");
  await writeFile(path, "%PDF");
  const parts = [bytes(new Uint8Array([1]), "image/gif"), await file(path), url("https://example.com/x.webp?size=2")];
  assert.deepEqual(parts.map((part) => toJson(v1.PartSchema, part)), [
    { media: { mimeType: "image/gif", data: "AQ==" } },
    { media: { mimeType: "application/pdf", data: "JVBERg==", filename: "note.PDF" } },
    { media: { mimeType: "image/webp", uri: "https://example.com/x.webp?size=2" } },
  ]);
  await assert.rejects(file("secret"), /mimeType/);
});
