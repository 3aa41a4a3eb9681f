import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";

import type { AgentOs, PermissionReply, PermissionRequest } from "#sdk";
import { DEADLINE_MS, newVm, waitFor } from "./support.mjs";

/** The first session may have to install the agent. */
const PATIENT = { timeout: 5 * DEADLINE_MS };

/** Which file it is about; agents speak of it in the kind, the diff and the locations of the tool call. */
const PATH = "/home/user/asked.txt";

interface Session {
  vm: AgentOs;
  sessionId: string;
}

/** An agent that asks before it writes, unless it was told not to. */
async function askingSession(test: TestContext): Promise<Session> {
  const vm = await newVm(test, { model: "demo" });
  return { vm, sessionId: (await vm.createSession("gemini")).sessionId };
}

async function content(vm: AgentOs): Promise<string | undefined> {
  return vm.readFile(PATH).then(
    (bytes) => Buffer.from(bytes).toString().trim(),
    () => undefined,
  );
}

test("what is rejected is not written, once allows once, and always allows the same again", PATIENT, async (t) => {
  const { vm, sessionId } = await askingSession(t);
  const asked: PermissionRequest[] = [];
  let reply: PermissionReply = "reject";
  vm.onPermissionRequest(sessionId, (request) => {
    asked.push(request);
    void vm.respondPermission(sessionId, request.permissionId, reply).then((response) => {
      assert.deepEqual(response, { jsonrpc: "2.0", id: null, result: { permissionId: request.permissionId, reply } });
    });
  });
  const write = async (text: string, how: PermissionReply): Promise<string | undefined> => {
    reply = how;
    const { rejectedPermissions } = await vm.prompt(sessionId, `Write the text ${text} to the file ${PATH}`);
    assert.equal(rejectedPermissions, 0, "somebody answered");
    return content(vm);
  };
  assert.deepEqual([await write("first", "reject"), asked.length], [undefined, 1]);
  assert.deepEqual([await write("second", "once"), asked.length], ["second", 2]);
  assert.deepEqual([await write("third", "reject"), asked.length], ["second", 3]);
  assert.deepEqual([await write("fourth", "always"), asked.length], ["fourth", 4]);
  assert.deepEqual([await write("fifth", "reject"), asked.length], ["fifth", 4]);

  const ids = asked.map((request) => request.permissionId);
  assert.equal(new Set(ids).size, ids.length, `${ids.join()}`);
  for (const { description, params } of asked) {
    assert.ok(description, "people are told what it is about");
    assert.match(JSON.stringify(params["toolCall"]), /asked\.txt/);
    assert.ok(Array.isArray(params["options"]));
  }
  for (const id of ids) {
    const again = vm.respondPermission(sessionId, id, "once");
    await assert.rejects(again, { code: "NotFound", message: `Permission request not found: ${id}` });
  }
});

test("a reply may come from anywhere, and the first one counts", PATIENT, async (t) => {
  const { vm, sessionId } = await askingSession(t);
  const [first, second]: PermissionRequest[][] = [[], []];
  assert.ok(first && second);
  vm.onPermissionRequest(sessionId, (request) => first.push(request));
  const turn = vm.prompt(sessionId, `Write the text x to the file ${PATH}`);
  await waitFor("the question", () => first.length === 1);
  vm.onPermissionRequest(sessionId, (request) => second.push(request));
  await waitFor("the late handler to hear of what waits", () => second.length === 1);
  assert.deepEqual(second, first);
  const id = first[0]?.permissionId ?? "";
  const word = "perhaps" as PermissionReply;
  await assert.rejects(vm.respondPermission(sessionId, id, word), { code: "InvalidInput" });
  const replies = await Promise.allSettled([
    vm.respondPermission(sessionId, id, "once"),
    vm.respondPermission(sessionId, id, "once"),
  ]);
  assert.deepEqual(replies.map((reply) => reply.status).sort(), ["fulfilled", "rejected"]);
  await turn;
  assert.equal(await content(vm), "x");
});

test("without a handler nothing is written, and the result and an event say so", PATIENT, async (t) => {
  const { vm, sessionId } = await askingSession(t);
  const asked: PermissionRequest[] = [];
  // One that has gone is none.
  vm.onPermissionRequest(sessionId, (request) => asked.push(request))();
  const { rejectedPermissions } = await vm.prompt(sessionId, `Write the text x to the file ${PATH}`);
  assert.ok(rejectedPermissions >= 1);
  assert.deepEqual([await content(vm), asked.length], [undefined, 0]);
  const events = vm.getSessionEvents(sessionId, { method: "_agentos/permission_rejected" });
  assert.equal(events.length, rejectedPermissions);
  for (const { notification } of events) {
    assert.equal(notification.params?.["reason"], "no one can answer");
    assert.match(String(notification.params?.["hint"]), /permission/);
  }
  const [event] = events;
  const id = String(event?.notification.params?.["permissionId"]);
  await assert.rejects(vm.respondPermission(sessionId, id, "once"), { code: "NotFound" });
});

test("the policies that ask nobody are kept", PATIENT, async (t) => {
  const vm = await newVm(t, { model: "demo" });
  const write = async (permissionPolicy: "allow_all" | "reject_all"): Promise<string | undefined> => {
    const { sessionId } = await vm.createSession("gemini", { permissionPolicy });
    vm.onPermissionRequest(sessionId, () => assert.fail("nobody was to be asked"));
    await vm.prompt(sessionId, `Write the text ${permissionPolicy} to the file ${PATH}`);
    await vm.destroySession(sessionId);
    return content(vm);
  };
  assert.equal(await write("reject_all"), undefined);
  assert.equal(await write("allow_all"), "allow_all");
});

test("requests of a session that is not there are refused", async (t) => {
  const vm = await newVm(t);
  const unknown = { message: "Session not found: none", code: "NotFound" };
  assert.throws(() => vm.onPermissionRequest("none", () => {}), unknown);
  await assert.rejects(vm.respondPermission("none", "permission-1", "once"), unknown);
});
