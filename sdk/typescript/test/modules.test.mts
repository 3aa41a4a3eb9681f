import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { test } from "node:test";

import * as sdk from "#sdk";
import { NAME, startProgram } from "./support.mjs";

test("both module systems get the same exports, and the same class", async () => {
  const required = createRequire(import.meta.url)(NAME) as typeof sdk;
  const imported = (await import(NAME)) as typeof sdk;
  const names = ["AgentOs", "createHostDirBackend", "hostDirMount", "nodeModulesMount"];
  assert.deepEqual(Object.keys(required).sort(), names);
  for (const name of names as (keyof typeof sdk)[]) assert.equal(imported[name], required[name]);
});

const BODY = `
  const vm = await AgentOs.create();
  console.log((await vm.exec("echo hi")).stdout.trim());
  await vm.dispose();
`;

test("a CommonJS program requires the package by its name", async (t) => {
  const text = `const { AgentOs } = require("${NAME}");\n(async () => {${BODY}})();`;
  assert.equal((await startProgram(t, "program.cjs", text).ended).stdout, "hi\n");
});

test("an ES module imports the package by its name", async (t) => {
  const text = `import { AgentOs } from "${NAME}";\n${BODY}`;
  assert.equal((await startProgram(t, "program.mjs", text).ended).stdout, "hi\n");
});
