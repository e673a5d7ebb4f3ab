import { create } from "@bufbuild/protobuf";
import { readFile } from "node:fs/promises";
import { basename, extname } from "node:path";
import { type Media, MediaSchema, type Part, PartSchema } from "./v1.js";

const TYPES: Record<string, string> = {
  ".aac": "audio/aac",
  ".csv": "text/csv",
  ".flac": "audio/flac",
  ".gif": "image/gif",
  ".htm": "text/html",
  ".html": "text/html",
  ".jpeg": "image/jpeg",
  ".jpg": "image/jpeg",
  ".json": "application/json",
  ".m4a": "audio/mp4",
  ".md": "text/markdown",
  ".mov": "video/quicktime",
  ".mp3": "audio/mpeg",
  ".mp4": "video/mp4",
  ".ogg": "audio/ogg",
  ".pdf": "application/pdf",
  ".png": "image/png",
  ".txt": "text/plain",
  ".wav": "audio/wav",
  ".webm": "video/webm",
  ".webp": "image/webp",
};

/** What a media part may say besides its source: detail, title, context, transcript, … */
export type MediaFields = Partial<Omit<Media, "$typeName" | "$unknown" | "source">>;

/** An image, audio, video or document of these bytes, such as `bytes(png, "image/png")`. */
export function bytes(data: Uint8Array, mimeType: string, fields: MediaFields = {}): Part {
  return part({ ...fields, mimeType, source: { case: "data", value: data } });
}

/** An image, audio, video or document read from a file; its type goes by the name unless `mimeType` says it. */
export async function file(path: string, fields: MediaFields = {}): Promise<Part> {
  const mimeType = fields.mimeType ?? typeByName(path);
  if (!mimeType) throw new TypeError(`${path}: what type is this? Give mimeType`);
  return bytes(await readFile(path), mimeType, { filename: basename(path), ...fields });
}

/** An image, audio, video or document at an address that the vendor, never the gateway, fetches; `data:` is sent itself. */
export function url(address: string, fields: MediaFields = {}): Part {
  const inline = /^data:([^;,]*)(?:;[^,]*)?(;base64)?,/.exec(address);
  if (inline) {
    const text = address.slice(inline[0].length);
    const data = /;base64,$/.test(inline[0]) ? Buffer.from(text, "base64") : Buffer.from(decodeURIComponent(text));
    return bytes(new Uint8Array(data), inline[1] || "text/plain", fields);
  }
  if (!URL.canParse(address)) throw new TypeError(`${JSON.stringify(address.slice(0, 40))} is no address; file() reads paths`);
  const mimeType = fields.mimeType ?? typeByName(new URL(address).pathname);
  return part({ ...fields, mimeType, source: { case: "uri", value: address } });
}

function part(media: MediaFields & Pick<Media, "source">): Part {
  return create(PartSchema, { content: { case: "media", value: create(MediaSchema, media) } });
}

function typeByName(name: string): string {
  return TYPES[extname(name).toLowerCase()] ?? "";
}
