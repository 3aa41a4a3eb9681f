import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import type { AgentOs, JsonRpcNotification, McpServerConfig } from "#sdk";
import { DEADLINE_MS, NAME, newVm, readPackageFile, startProgram, waitFor } from "./support.mjs";

/** The first session may have to install the agent. */
const PATIENT = { timeout: 5 * DEADLINE_MS };

/** As the public reference has it, but for the package's name. */
const QUICK_START = `import { AgentOs } from "${NAME}";
// 1. Create a VM
const vm = await AgentOs.create();
// 2. Create an agent session
const { sessionId } = await vm.createSession("pi");
// 3. Send a prompt
const response = await vm.prompt(sessionId, "Write a hello world in TypeScript");
// 4. Clean up
vm.closeSession(sessionId);
await vm.dispose();
`;

async function piSession(vm: AgentOs): Promise<string> {
  return (await vm.createSession("pi", { model: "demo" })).sessionId;
}

test("the quick start runs, word for word as it is documented", PATIENT, async (t) => {
  const documented = /```ts\n(.*?)```/s.exec(readPackageFile("README.md"))?.[1];
  assert.equal(documented, QUICK_START);
  const { code, stderr } = await startProgram(t, "quick-start.mjs", QUICK_START).ended;
  assert.deepEqual([code, stderr], [0, ""]);
});

test("a prompt is answered, and what was asked for is done in the VM", PATIENT, async (t) => {
  const vm = await newVm(t, { additionalInstructions: "Always knit." });
  const { sessionId } = await vm.createSession("pi", {
    env: { GREETING: "hello" },
    cwd: "/home/user",
    model: "demo",
    additionalInstructions: "Then purl.",
    permissionPolicy: "allow_all",
  });
  assert.deepEqual(vm.listSessions(), [{ sessionId, agentType: "pi" }]);
  const instructions = Buffer.from(await vm.readFile("/etc/agentos/instructions.md")).toString();
  assert.match(instructions, /agentOS.*Always knit\..*Then purl\./s);
  const reply = await vm.prompt(sessionId, "Write a hello world in TypeScript to hello.ts");
  assert.match(reply.text, /^\[demo model\]/);
  assert.deepEqual([reply.stopReason, reply.model, reply.rejectedPermissions], ["end_turn", "demo", 0]);
  assert.equal(reply.response.jsonrpc, "2.0");
  assert.equal(reply.response.error, undefined);
  assert.match(Buffer.from(await vm.readFile("/home/user/hello.ts")).toString(), /hello/i);
  vm.closeSession(sessionId);
  assert.deepEqual(vm.listSessions(), []);
  assert.throws(() => vm.closeSession(sessionId), { message: `Session not found: ${sessionId}`, code: "NotFound" });
});

test("every subscriber gets all updates once and in order, from whenever on", PATIENT, async (t) => {
  const vm = await newVm(t);
  const sessionId = await piSession(vm);
  const [first, inTheMiddle, ended]: JsonRpcNotification[][] = [[], [], []];
  assert.ok(first && inTheMiddle && ended);
  vm.onSessionEvent(sessionId, (event) => {
    first.push(event);
    if (first.length === 3) {
      const before = first.slice();
      vm.onSessionEvent(sessionId, (event) => inTheMiddle.push(event));
      assert.deepEqual(inTheMiddle.slice(0, 3), before, "the backlog is there before the call returns");
    }
  });
  const end = vm.onSessionEvent(sessionId, (event) => {
    ended.push(event);
    if (ended.length === 2) end();
  });
  await vm.prompt(sessionId, "Write a hello world in TypeScript to hello.ts");

  const last: JsonRpcNotification[] = [];
  vm.onSessionEvent(sessionId, (event) => last.push(event));
  assert.ok(last.length > 3, `${last.length} updates`);
  assert.ok(last.every((event) => event.jsonrpc === "2.0" && event.method === "session/update"));
  const told = last.length;
  await waitFor("the others to have been told as much", () => Math.min(first.length, inTheMiddle.length) >= told);

  await vm.prompt(sessionId, "Run `echo again`");
  await waitFor("the second turn's updates", () => last.length > told);
  await vm.destroySession(sessionId);
  await waitFor("all to have heard the same", () => first.length === last.length && inTheMiddle.length === last.length);
  assert.deepEqual(first, last);
  assert.deepEqual(inTheMiddle, last);
  assert.deepEqual(ended, last.slice(0, 2));
});

test("an exception of a handler is an uncaught one and costs no other event", PATIENT, async (t) => {
  const text = `
    import { AgentOs } from "${NAME}";
    const caught = [];
    process.on("uncaughtException", (error) => caught.push(error.message));
    const vm = await AgentOs.create();
    const { sessionId } = await vm.createSession("pi", { model: "demo" });
    await vm.prompt(sessionId, "Write a hello world in TypeScript to hello.ts");
    let told = 0;
    vm.onSessionEvent(sessionId, () => { throw new Error(String(told++)) });
    const backlog = told;
    await vm.prompt(sessionId, "Run \`echo again\`");
    let all = 0;
    vm.onSessionEvent(sessionId, () => all++);
    while (told < all) await new Promise(setImmediate);
    console.log(backlog > 3, told > backlog, caught.join() === Array.from({ length: told }, (_, i) => i).join());
    await vm.dispose();
  `;
  const { code, stdout, stderr } = await startProgram(t, "throw.mjs", text).ended;
  assert.deepEqual([code, stdout.trim(), stderr], [0, "true true true", ""]);
});

test("a program that only listens ends by itself, without a word", PATIENT, async (t) => {
  const text = `
    import { AgentOs } from "${NAME}";
    const vm = await AgentOs.create();
    const { sessionId } = await vm.createSession("pi", { model: "demo" });
    vm.onSessionEvent(sessionId, () => {});
    console.log("listening");
  `;
  const { code, stdout, stderr } = await startProgram(t, "listen.mjs", text).ended;
  assert.deepEqual([code, stdout, stderr], [0, "listening\n", ""]);
});

test("an unknown agent and an unknown session are named", PATIENT, async (t) => {
  const vm = await newVm(t);
  await assert.rejects(vm.createSession("nobody"), { message: "Unknown agent type: nobody", code: "NotFound" });
  const unknown = { message: "Session not found: none", code: "NotFound" };
  await assert.rejects(vm.prompt("none", "hello"), unknown);
  await assert.rejects(vm.destroySession("none"), unknown);
  assert.throws(() => vm.closeSession("none"), unknown);
  assert.throws(() => vm.onSessionEvent("none", () => {}), unknown);
  const option: object = { colour: "red" };
  await assert.rejects(vm.createSession("pi", option), { code: "Unsupported", message: /`colour`/ });
});

test("an agent that is missing is installed with progress, or not at all", PATIENT, async (t) => {
  const registry = createServer((_, response) => response.writeHead(404).end());
  await new Promise<void>((resolve) => registry.listen(0, "127.0.0.1", resolve));
  t.after(() => registry.close());
  const address = registry.address() as AddressInfo;
  // A home without agents, and so a sidecar of its own.
  const home = mkdtempSync(join(tmpdir(), "home-"));
  t.after(() => rmSync(home, { recursive: true }));
  const text = `
    import { AgentOs } from "${NAME}";
    const vm = await AgentOs.create();
    const steps = [];
    const onInstallProgress = (step) => steps.push(step);
    const never = await vm.createSession("pi", { agentInstall: "never" }).catch((error) => error);
    const failed = await vm.createSession("pi", { onInstallProgress }).catch((error) => error);
    console.log(JSON.stringify({ never: never.code, failed: failed.message, steps }));
    await vm.dispose();
  `;
  const env = {
    AGENTOS_HOME: home,
    XDG_RUNTIME_DIR: home,
    npm_config_registry: `http://127.0.0.1:${address.port}/`,
  };
  const { stdout, stderr } = await startProgram(t, "install.mjs", text, env).ended;
  assert.equal(stderr, "");
  const told = JSON.parse(stdout) as {
    never: string;
    failed: string;
    steps: { package: string; receivedBytes: number; totalBytes?: number }[];
  };
  assert.equal(told.never, "AgentNotInstalled");
  assert.match(told.failed, /404|registry/);
  assert.ok(told.steps.some(({ package: name }) => name.includes("pi-coding-agent")));
  for (const { receivedBytes, totalBytes } of told.steps) assert.ok(receivedBytes === 0 && (totalBytes ?? 0) > 0);
});

test("agents and MCP servers of one's own reach the VM", PATIENT, async (t) => {
  const agents = { mine: { acpAdapter: "no-such-adapter", agentPackage: "no-such-agent", launchArgs: ["--acp"] } };
  const vm = await newVm(t, { agents });
  await assert.rejects(vm.createSession("mine"), (error: Error) => !/Unknown agent type/.test(error.message));
  const server: object = { type: "carrier pigeon" };
  const wrong = vm.createSession("pi", { mcpServers: [server as McpServerConfig] });
  await assert.rejects(wrong, { code: "InvalidInput" });
  const mcpServers: McpServerConfig[] = [
    { type: "local", command: "cat", args: ["-u"], env: { A: "b" } },
    { type: "remote", url: "http://127.0.0.1:1/", headers: { B: "c" } },
  ];
  // Whether an agent has a use for them is its own affair.
  const made = vm.createSession("pi", { model: "demo", mcpServers }).then(() => "made");
  assert.match(await made.catch((error: NodeJS.ErrnoException) => String(error.code)), /^(made|Unsupported)$/);
});

test("a second prompt while one runs is refused as busy", PATIENT, async (t) => {
  const vm = await newVm(t);
  const sessionId = await piSession(vm);
  let inTheTool = false;
  vm.onSessionEvent(sessionId, (event) => {
    inTheTool ||= JSON.stringify(event).includes("tool_call");
  });
  const running = vm.prompt(sessionId, "Run the command `sleep 1000`");
  await waitFor("the first prompt's tool call", () => inTheTool);
  await assert.rejects(vm.prompt(sessionId, "hello"), { code: "Busy" });
  await vm.cancelSession(sessionId);
  assert.equal((await running).stopReason, "cancelled");
});
