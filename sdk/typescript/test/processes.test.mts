import assert from "node:assert/strict";
import { test } from "node:test";

import { AgentOs, hostDirMount } from "#sdk";
import { canServe, serve } from "./fuse.mjs";
import { DEADLINE_MS, newVm, waitFor } from "./support.mjs";

test("a command's output, exit code and signal are told", async (t) => {
  const vm = await newVm(t);
  const done = await vm.exec("echo out; echo err >&2; exit 3");
  assert.deepEqual(done, { exitCode: 3, stdout: "out\n", stderr: "err\n", exit: { kind: "exited", code: 3 } });
  const killed = await vm.exec("kill -TERM $$");
  assert.deepEqual([killed.exitCode, killed.exit], [143, { kind: "signaled", signal: "SIGTERM" }]);
});

test("a command gets its environment, directory and input", async (t) => {
  const vm = await newVm(t);
  const done = await vm.exec('pwd; echo "$WORD"; cat', { cwd: "/tmp", env: { WORD: "a b" }, stdin: "from stdin" });
  assert.equal(done.stdout, "/tmp\na b\nfrom stdin");
  const bytes = await vm.exec("wc -c", { stdin: new Uint8Array(100_000) });
  assert.equal(bytes.stdout.trim(), "100000");
});

test("a command that takes too long is killed and what it printed is kept", async (t) => {
  const vm = await newVm(t);
  const done = await vm.exec("echo before; exec sleep 1000", { timeout: 300 });
  assert.equal(done.timedOut, true);
  assert.deepEqual(done.exit, { kind: "timedOut" });
  assert.equal(done.stdout, "before\n");
});

test("handlers get all output in order before the promise resolves, and more than is captured", async (t) => {
  const vm = await newVm(t);
  const chunks: Uint8Array[] = [];
  const complaints: Uint8Array[] = [];
  const done = await vm.exec("seq 1 300000; echo bad >&2", {
    onStdout: (chunk) => chunks.push(chunk),
    onStderr: (chunk) => complaints.push(chunk),
    maxOutputBytes: 10,
  });
  const expected = Array.from({ length: 300_000 }, (_, index) => `${index + 1}\n`).join("");
  assert.ok(chunks.every((chunk) => chunk instanceof Uint8Array));
  assert.ok(Buffer.concat(chunks).equals(Buffer.from(expected)));
  assert.equal(Buffer.concat(complaints).toString(), "bad\n");
  assert.deepEqual([done.stdout, done.truncated], [expected.slice(0, 10), true]);

  const uncaptured = await vm.exec("echo seen", { onStdout: (chunk) => chunks.push(chunk), captureStdio: false });
  assert.deepEqual(uncaptured, { exitCode: 0, stdout: "", stderr: "", exit: { kind: "exited", code: 0 } });
  assert.equal(Buffer.from(chunks.at(-1) ?? []).toString(), "seen\n");
});

/** Looks for a second, from within a handler, whether the program that it listens to ends: it has far more to print. */
function endsMeanwhile(vm: AgentOs, program: string): boolean {
  const until = Date.now() + 1000;
  const runs = (): boolean => vm.allProcesses().some((one) => one.command === program && one.status === "running");
  while (Date.now() < until) {
    if (!runs()) return true;
  }
  return false;
}

test("a slow handler slows the command down instead of filling the memory", async (t) => {
  const vm = await newVm(t);
  let [seen, ended] = [0, false];
  await vm.exec("head -c 100000000 /dev/zero", {
    captureStdio: false,
    onStdout: (chunk) => {
      if (seen === 0) ended = endsMeanwhile(vm, "head");
      seen += chunk.length;
    },
  });
  assert.deepEqual([seen, ended], [100_000_000, false]);
});

test("a slow handler slows a spawned program down, and gets all of its output", async (t) => {
  const vm = await newVm(t);
  let [seen, ended] = [0, false];
  const { pid } = vm.spawn("sh", ["-c", "sleep 0.2; exec head -c 50000000 /dev/zero"], {
    onStdout: (chunk) => {
      if (seen === 0) ended = endsMeanwhile(vm, "head");
      seen += chunk.length;
    },
  });
  await waitFor("all of the output", () => seen === 50_000_000);
  await waitFor("the program's end", () => !vm.getProcess(pid).running);
  assert.equal(ended, false);
});

test("spawn gives the pid of a program that runs, at once", async (t) => {
  const vm = await newVm(t);
  assert.deepEqual(vm.listProcesses(), []);
  assert.deepEqual(vm.allProcesses(), []);
  const { pid } = vm.spawn("sleep", ["1000"]);
  const info = { pid, command: "sleep", args: ["1000"], running: true, exitCode: null };
  assert.deepEqual(vm.listProcesses(), [info]);
  assert.deepEqual(vm.getProcess(pid), info);
  const [process] = vm.allProcesses();
  assert.ok(process);
  const { startTime, ...rest } = process;
  assert.ok(Math.abs(startTime - Date.now()) < 600_000);
  assert.deepEqual(rest, {
    pid,
    ppid: 0,
    pgid: pid,
    sid: rest.sid,
    driver: "native",
    command: "sleep",
    args: ["1000"],
    cwd: "/home/user",
    status: "running",
    exitCode: null,
    exitTime: null,
  });
});

test("processes are stopped and killed, and stay listed", async (t) => {
  const vm = await newVm(t);
  const stopped = vm.spawn("sleep", ["1000"]).pid;
  const killed = vm.spawn("sh", ["-c", "trap '' TERM; echo ready; while :; do sleep 1000; done"]).pid;
  vm.stopProcess(stopped);
  vm.killProcess(killed);
  await waitFor("both to have exited", () => vm.listProcesses().every((process) => !process.running));
  assert.deepEqual([vm.getProcess(stopped).exitCode, vm.getProcess(killed).exitCode], [143, 137]);
  vm.stopProcess(stopped);
});

/** What spawn throws. It does so within 20 ms, which a busy machine may not have. */
async function thrown(vm: AgentOs, program: string): Promise<NodeJS.ErrnoException> {
  for (;;) {
    try {
      const { pid } = vm.spawn(program, []);
      await waitFor("it to have failed all the same", () => vm.getProcess(pid).exitCode === 127);
    } catch (error) {
      return error as NodeJS.ErrnoException;
    }
  }
}

test("a program that can't be run makes spawn throw", { timeout: DEADLINE_MS }, async (t) => {
  const vm = await newVm(t);
  const missing = await thrown(vm, "no-such-program");
  assert.deepEqual([missing.code, missing.message], ["ENOENT", "ENOENT: no such file or directory, spawn 'no-such-program'"]);
  await vm.writeFile("/home/user/plain", "text");
  const plain = await thrown(vm, "/home/user/plain");
  assert.deepEqual([plain.code, plain.message], ["EACCES", "EACCES: permission denied, spawn '/home/user/plain'"]);
});

test("spawn never waits for a file system of its own process", { timeout: DEADLINE_MS }, async (t) => {
  if (!canServe()) {
    t.skip("mounting a file system takes root and /dev/fuse");
    return;
  }
  const served = serve({
    runs: { mode: 0o755, content: "#!/bin/sh\necho ran; cat; echo failed >&2; exit 3\n" },
    plain: { mode: 0o644, content: "#!/bin/sh\necho never\n" },
  });
  // A sidecar that is there already may not see what is mounted on the host later.
  const sidecar = { kind: "shared", pool: "served" } as const;
  const creating = AgentOs.create({ mounts: [hostDirMount("/served", served.directory)], sidecar });
  // In this order: what still uses the file system holds its end up, and that of this process.
  t.after(async () => {
    await creating.then((vm) => vm.dispose()).finally(() => served.unmount());
  });
  const vm = await creating;
  const end = async (name: string): Promise<[exitCode: number | null, stdout: string, stderr: string]> => {
    let [stdout, stderr] = ["", ""];
    const { pid } = vm.spawn(`/served/${name}`, [], {
      stdin: "input",
      onStdout: (chunk) => (stdout += Buffer.from(chunk).toString()),
      onStderr: (chunk) => (stderr += Buffer.from(chunk).toString()),
    });
    // Nothing of the program has been read yet: that takes a turn of this thread.
    const info = { pid, command: `/served/${name}`, args: [], running: true, exitCode: null };
    assert.deepEqual(vm.getProcess(pid), info);
    const [shown] = vm.allProcesses().filter((process) => process.pid === pid);
    assert.deepEqual([shown?.command, shown?.args], [info.command, info.args]);
    await waitFor(`${name} to have ended`, () => !vm.getProcess(pid).running && stderr.endsWith("\n"));
    return [vm.getProcess(pid).exitCode, stdout, stderr];
  };
  assert.deepEqual(await end("runs"), [3, "ran\ninput", "failed\n"]);
  assert.deepEqual(await end("plain"), [127, "", "EACCES: permission denied, spawn '/served/plain'\n"]);
  assert.deepEqual(await end("missing"), [127, "", "ENOENT: no such file or directory, spawn '/served/missing'\n"]);

  const { pid } = vm.spawn("/served/runs", []);
  vm.killProcess(pid);
  await waitFor("it to have been killed on its way", () => vm.getProcess(pid).exitCode === 137);
});

test("a pid that spawn did not give is not found", async (t) => {
  const vm = await newVm(t);
  const unknown = { code: "ESRCH", message: "Process not found: 4242" };
  assert.throws(() => vm.getProcess(4242), unknown);
  assert.throws(() => vm.stopProcess(4242), unknown);
  assert.throws(() => vm.killProcess(4242), unknown);
});

test("output of a spawned program reaches its handlers", async (t) => {
  const vm = await newVm(t);
  let [stdout, stderr] = ["", ""];
  vm.spawn("sh", ["-c", 'echo "$WORD"; cat; echo bad >&2'], {
    env: { WORD: "first" },
    stdin: "second",
    stdio: "pipe",
    onStdout: (chunk) => (stdout += Buffer.from(chunk).toString()),
    onStderr: (chunk) => (stderr += Buffer.from(chunk).toString()),
  });
  await waitFor("the output", () => stdout === "first\nsecond" && stderr === "bad\n");
});

test("synchronous calls go on while promises are pending", async (t) => {
  const vm = await newVm(t);
  const slow = vm.exec("while [ ! -e /tmp/go ]; do sleep 0.01; done; echo went");
  const { pid } = vm.spawn("sh", ["-c", "touch /tmp/go"]);
  assert.equal((await slow).stdout, "went\n");
  assert.equal(vm.getProcess(pid).pid, pid);
});
