import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { after, before } from "node:test";
import { Client, type ClientOptions } from "../src/index.js";

const ROOT = join(import.meta.dirname, "..", "..", "..", ".."); // from build/test
const PYTHON = process.env.HEADGATE_PYTHON ?? join(ROOT, ".venv", "bin", "python");

/** Why tests that need the scripted server are skipped; where CI=true they fail instead. */
export const missing = existsSync(PYTHON) || process.env.CI === "true" ? false : `no ${PYTHON}: run make venv`;

/** A call as the scripted server saw it. */
export interface SeenCall {
  method: string;
  metadata: Record<string, string>;
  timeout: number | null;
  request: Record<string, any>;
  outcome?: string;
}

/** `python -m headgate.testing` with the script that all clients' suites share. */
export class Scripted {
  readonly calls: SeenCall[] = [];
  address = "";
  readonly #process: ChildProcessByStdio<Writable, Readable, null>;

  private constructor(script: string, options: readonly string[]) {
    const command = ["-m", "headgate.testing", "--script", join(ROOT, script), ...options];
    this.#process = spawn(PYTHON, command, { stdio: ["pipe", "pipe", "inherit"] });
  }

  static async start(script = "clients/behaviour.json", ...options: readonly string[]): Promise<Scripted> {
    const scripted = new Scripted(script, options);
    const lines = createInterface({ input: scripted.#process.stdout });
    const first = new Promise<void>((resolve) => lines.on("line", (line) => scripted.#read(JSON.parse(line), resolve)));
    await Promise.race([first, once(scripted.#process, "exit").then(() => Promise.reject(new Error("it did not start")))]);
    return scripted;
  }

  /** The calls that bear this request id, once so many have come and ended. */
  async seen(requestId: string, count = 1): Promise<SeenCall[]> {
    for (let waited = 0; waited < 5000; waited += 10) {
      const found = this.calls.filter((call) => call.metadata["x-request-id"] === requestId);
      if (found.length >= count && found.every((call) => call.outcome)) return found;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    throw new Error(`${count} ended calls of ${requestId} have not come: ${JSON.stringify(this.calls.slice(-3))}`);
  }

  /** Every call that bears this request id and has been answered by now. */
  async all(requestId: string): Promise<SeenCall[]> {
    const mark = `mark ${this.calls.length}`;
    await new Client(this.address).health({ requestId: mark }); // the server tells of calls in their order
    await this.seen(mark);
    return this.calls.filter((call) => call.metadata["x-request-id"] === requestId);
  }

  async stop(): Promise<void> {
    if (this.#process.exitCode !== null || this.#process.signalCode) return;
    this.#process.kill("SIGKILL");
    await once(this.#process, "exit");
  }

  #read(line: any, started: () => void): void {
    if (line.address) {
      this.address = line.address;
      started();
    } else if (line.method) {
      this.calls[line.call] = line;
    } else {
      this.calls[line.ended]!.outcome = line.outcome;
    }
  }
}

/** The server of this file's tests. */
export let scripted: Scripted;
before(async () => {
  if (!missing) scripted = await Scripted.start();
});
after(() => scripted?.stop());

/** A client of its own for a test. */
export function client(options: ClientOptions = {}): Client {
  return new Client(scripted.address, options);
}
