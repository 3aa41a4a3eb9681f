import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { hostDirMount, nodeModulesMount } from "#sdk";
import { newVm } from "./support.mjs";

test("text and bytes that were written are read as bytes", async (t) => {
  const vm = await newVm(t);
  await vm.writeFile("/home/user/new/a.txt", "grün");
  const text = await vm.readFile("/home/user/new/a.txt");
  assert.ok(text instanceof Uint8Array);
  assert.equal(new TextDecoder().decode(text), "grün");

  const bytes = Uint8Array.from({ length: 1_000_000 }, (_, index) => (index * 7) % 256);
  const expected = Buffer.from(bytes);
  const written = vm.writeFile("/home/user/b", bytes);
  bytes.fill(0);
  await written;
  assert.ok(expected.equals(await vm.readFile("/home/user/b")), "what was given when the call was made is written");
});

test("a part of a larger buffer is written as that part", async (t) => {
  const vm = await newVm(t);
  await vm.writeFile("/tmp/part", new TextEncoder().encode("0123456789").subarray(3, 6));
  assert.equal(Buffer.from(await vm.readFile("/tmp/part")).toString(), "345");
});

test("a file that is not there is ENOENT, with the call and the stack of whoever asked", async (t) => {
  const vm = await newVm(t);
  async function whoeverAsked(): Promise<void> {
    await vm.readFile("/x");
  }
  await assert.rejects(whoeverAsked(), (error: NodeJS.ErrnoException) => {
    assert.ok(error instanceof Error);
    assert.equal(error.code, "ENOENT");
    assert.equal(error.message, "ENOENT: no such file or directory, open '/x'");
    assert.match(error.stack ?? "", /whoeverAsked/);
    return true;
  });
});

test("paths that are not absolute or not normalized are refused", async (t) => {
  const vm = await newVm(t);
  await assert.rejects(vm.readFile("x"), { message: /Path must be absolute: x/, code: "EINVAL" });
  await assert.rejects(vm.writeFile("/a/../b", ""), { message: /Path must be normalized: \/a\/\.\.\/b/, code: "EINVAL" });
});

test("a host directory is mounted read-only unless it is said otherwise", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "mount-"));
  t.after(() => rmSync(directory, { recursive: true }));
  writeFileSync(join(directory, "from-host"), "host");
  const vm = await newVm(t, {
    mounts: [
      hostDirMount("/ro", directory),
      hostDirMount("/rw", directory, { readOnly: false }),
      nodeModulesMount(directory),
      { path: "/memory", plugin: { id: "memory", config: { maxBytes: 4096 * 1024 } } },
    ],
  });
  assert.equal(Buffer.from(await vm.readFile("/ro/from-host")).toString(), "host");
  assert.equal(Buffer.from(await vm.readFile("/root/node_modules/from-host")).toString(), "host");
  await assert.rejects(vm.writeFile("/ro/x", ""), { code: "EROFS" });
  await vm.writeFile("/rw/from-vm", "vm");
  assert.equal(readFileSync(join(directory, "from-vm"), "utf8"), "vm");
  await vm.writeFile("/memory/x", "x");
  await assert.rejects(vm.writeFile("/memory/large", new Uint8Array(8 << 20)), { code: "ENOSPC" });
});
