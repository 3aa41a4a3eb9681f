import assert from "node:assert/strict";
import { randomInt } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { Worker } from "node:worker_threads";

import { AgentOs, type AgentOsOptions } from "#sdk";
import { DEADLINE_MS, NAME, newVm, runsOnHost, startProgram, waitFor } from "./support.mjs";

test("a disposed VM answers nothing more, and can be disposed again", async () => {
  const vm = await AgentOs.create();
  const pending = vm.exec("sleep 1000");
  await waitFor("the command to run", () => vm.allProcesses().some((process) => process.command === "sleep"));
  await Promise.all([vm.dispose(), assert.rejects(pending, { code: "Closed" })]);
  await assert.rejects(vm.readFile("/etc/passwd"), { code: "Closed" });
  assert.throws(() => vm.listProcesses(), { code: "Closed" });
  assert.throws(() => vm.spawn("true", []), { code: "Closed" });
  await vm.dispose();
});

/** An argument of `sleep` that no other process of the host has. */
function newMark(): string {
  return `100000.${randomInt(1e9)}`;
}

/** A program that leaves a VM with a process in it, which can be found on the host by an argument of its own. */
function leaveVm(test: TestContext, end: string): { mark: string; program: ReturnType<typeof startProgram> } {
  const mark = newMark();
  const text = `
    import { AgentOs } from "${NAME}";
    const vm = await AgentOs.create();
    vm.spawn("sleep", ["${mark}"], { onStdout: () => {} });
    vm.exec("echo from the VM").then(({ stdout }) => {
      console.log(stdout);
      ${end}
    });
  `;
  return { mark, program: startProgram(test, "leave.mjs", text) };
}

const ENDS: [name: string, end: string][] = [
  ["comes to its end", ""],
  ["exits", "process.exit(0);"],
  ["exits in the middle of calls", 'for (let i = 0; i < 50; i++) vm.exec("true"); setImmediate(() => process.exit(0));'],
];
for (const [name, end] of ENDS) {
  test(`a program that ${name} without disposing leaves no VM`, { timeout: DEADLINE_MS }, async (t) => {
    const { mark, program } = leaveVm(t, end);
    const { code, stdout, stderr } = await program.ended;
    assert.deepEqual([code, stdout.trim(), stderr], [0, "from the VM", ""]);
    await waitFor("the VM's process to be gone", () => !runsOnHost(mark));
  });
}

test("a program that is killed leaves no VM", { timeout: DEADLINE_MS }, async (t) => {
  const { mark, program } = leaveVm(t, "setInterval(() => {}, 1000);");
  await waitFor("the program to have its VM", () => program.stdout().includes("from the VM"));
  assert.ok(runsOnHost(mark), "the process of the VM can be seen on the host");
  program.kill("SIGKILL");
  assert.equal((await program.ended).signal, "SIGKILL");
  await waitFor("the VM's process to be gone", () => !runsOnHost(mark));
});

test("a program that throws away its VM keeps it, whatever the garbage collector does", { timeout: DEADLINE_MS }, async (t) => {
  const text = `
    import { setFlagsFromString } from "node:v8";
    import { runInNewContext } from "node:vm";
    import { AgentOs } from "${NAME}";
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc");
    const registry = new FinalizationRegistry((what) => console.log(what));
    async function run() {
      const vm = await AgentOs.create();
      vm.spawn("sleep", ["1000"]);
      registry.register(vm, "the VM is gone");
      registry.register({}, "garbage is gone");
    }
    await run();
    for (let round = 0; round < 50; round++) {
      collect();
      await new Promise(setImmediate);
    }
  `;
  const { code, stdout, stderr } = await startProgram(t, "collect.mjs", text).ended;
  assert.deepEqual([code, stdout.trim(), stderr], [0, "garbage is gone", ""]);
});

test("a worker thread has VMs of its own and can be ended in the middle of calls", { timeout: DEADLINE_MS }, async (t) => {
  const beside = await newVm(t);
  const text = `
    const { parentPort, workerData } = require("node:worker_threads");
    const { AgentOs } = require(workerData.sdk);
    AgentOs.create().then(async (vm) => {
      vm.spawn("sleep", [workerData.mark], { onStdout() {} });
      parentPort.postMessage((await vm.exec("echo from a worker")).stdout);
      for (;;) await vm.exec("true", { onStdout() {} });
    });
  `;
  const sdk = createRequire(import.meta.url).resolve(NAME);
  for (let round = 0; round < 3; round++) {
    const mark = newMark();
    const worker = new Worker(text, { eval: true, workerData: { sdk, mark } });
    const said = await new Promise((resolve, reject) => worker.on("message", resolve).on("error", reject));
    assert.equal(said, "from a worker\n");
    await worker.terminate();
    await waitFor("the VM to have gone with its worker", () => !runsOnHost(mark));
  }
  assert.equal((await beside.exec("echo beside")).stdout, "beside\n");
});

test("an option that is not supported is refused by its name", async (t) => {
  const unsupported = (name: string): object => ({ code: "Unsupported", message: new RegExp(`\`${name}\``) });
  for (const name of ["permissions", "rootFilesystem", "software", "toolKits", "scheduleDriver", "mispelt"]) {
    const options: object = { [name]: {} };
    await assert.rejects(AgentOs.create(options), unsupported(name));
  }
  const refused: [options: object, word: string][] = [
    [{ sidecar: { kind: "explicit", handle: {} } }, "explicit"],
    [{ mounts: [{ path: "/x", plugin: { id: "s3" } }] }, "s3"],
    [{ mounts: [{ path: "/x", driver: {} }] }, "driver"],
    [{ agents: { mine: { acpAdapter: "a", agentPackage: "b", prepareInstructions: () => {} } } }, "prepareInstructions"],
  ];
  for (const [options, word] of refused) await assert.rejects(AgentOs.create(options), unsupported(word));

  const vm = await newVm(t);
  const signal: object = { signal: new AbortController().signal };
  await assert.rejects(vm.exec("true", signal), unsupported("signal"));
  const stdin: object = { streamStdin: true };
  assert.throws(() => vm.spawn("true", [], stdin), unsupported("streamStdin"));
  const inherit: object = { stdio: "inherit" };
  assert.throws(() => vm.spawn("true", [], inherit), /stdio: "inherit"/);
  assert.deepEqual(vm.listProcesses(), []);
});

test("an option with an impossible value is refused", async () => {
  const wrong: object[] = [
    { loopbackExemptPorts: [0] },
    { loopbackExemptPorts: [70000] },
    { loopbackExemptPorts: [1.5] },
    { model: "gpt" },
    { mounts: [{ path: "/x", plugin: { id: "host_dir", config: {} } }] },
    { mounts: [{ path: "/x", plugin: { id: "memory", config: { maxBytes: -1 } } }] },
    { mounts: [{ plugin: { id: "memory" } }] },
  ];
  for (const options of wrong) {
    await assert.rejects(AgentOs.create(options as AgentOsOptions), { code: "InvalidInput" });
  }
});

test("a port of the host that is exempt is reached from the VM", async (t) => {
  const server = createServer((_, response) => response.end("host"));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => server.close());
  const address = server.address();
  const port = typeof address === "object" ? (address?.port ?? 0) : 0;
  const exempt = await newVm(t, { loopbackExemptPorts: [port] });
  const ask = `node -e 'fetch("http://127.0.0.1:${port}").then(async (r) => console.log(await r.text()), () => console.log("refused"))'`;
  assert.equal((await exempt.exec(ask)).stdout, "host\n");
  // The one without shows that it is the option.
  assert.equal((await (await newVm(t)).exec(ask)).stdout, "refused\n");
});

test("a pool has a sidecar of its own", async (t) => {
  const vm = await newVm(t, { sidecar: { kind: "shared", pool: "typescript" } });
  assert.equal((await vm.exec("echo hi")).stdout, "hi\n");
  await assert.rejects(AgentOs.create({ sidecar: { kind: "shared", pool: "no/pool" } }), { code: "InvalidInput" });
});

test("directories of commands come first", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "commands-"));
  t.after(() => rmSync(directory, { recursive: true }));
  writeFileSync(join(directory, "uname"), "#!/bin/sh\necho mine\n", { mode: 0o755 });
  const vm = await newVm(t, { commandDirs: [directory] });
  assert.equal((await vm.exec("uname")).stdout, "mine\n");
});
