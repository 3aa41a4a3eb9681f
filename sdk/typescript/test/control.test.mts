import assert from "node:assert/strict";
import { test } from "node:test";

import type { AgentOs, SessionConfigOption } from "#sdk";
import { DEADLINE_MS, newVm, waitFor } from "./support.mjs";

/** The first session may have to install the agent. */
const PATIENT = { timeout: 5 * DEADLINE_MS };

function option(vm: AgentOs, sessionId: string, category: string): SessionConfigOption {
  const found = vm.getSessionConfigOptions(sessionId).find((option) => option.category === category);
  assert.ok(found, category);
  return found;
}

test("what an agent says of itself is known, and its options are set", PATIENT, async (t) => {
  const vm = await newVm(t, { model: "demo" });
  const { sessionId } = await vm.createSession("pi");
  assert.deepEqual({ ...vm.getSessionAgentInfo(sessionId), version: "" }, { name: "pi", title: "Pi", version: "" });
  const promptCapabilities = { audio: false, embeddedContext: true, image: false };
  assert.deepEqual(vm.getSessionCapabilities(sessionId), { promptCapabilities, permissions: false });
  const value = (category: string): string => option(vm, sessionId, category).allowedValues?.[0]?.id ?? "";
  const level = value("thought_level");
  const answer = await vm.setSessionThoughtLevel(sessionId, level);
  assert.deepEqual([answer.jsonrpc, answer.error], ["2.0", undefined]);
  assert.equal(option(vm, sessionId, "thought_level").currentValue, level);
  const model = value("model");
  assert.equal((await vm.setSessionModel(sessionId, model)).error, undefined);
  assert.equal(option(vm, sessionId, "model").currentValue, model);
  assert.equal((await vm.setSessionModel(sessionId, "no-such-model")).error !== undefined, true);
});

test("an agent is put into another of its modes", PATIENT, async (t) => {
  const vm = await newVm(t, { model: "demo" });
  const { sessionId } = await vm.createSession("gemini", { permissionPolicy: "allow_all" });
  const modes = vm.getSessionModes(sessionId);
  const other = modes?.availableModes.find((mode) => mode.id !== modes.currentModeId);
  assert.ok(other);
  assert.equal((await vm.setSessionMode(sessionId, other.id)).error, undefined);
});

test("what an agent can't do is an answer and no exception", PATIENT, async (t) => {
  const vm = await newVm(t, { model: "demo" });
  const { sessionId } = await vm.createSession("gemini");
  const answer = await vm.setSessionThoughtLevel(sessionId, "high");
  assert.deepEqual([answer.jsonrpc, answer.result, answer.error?.code], ["2.0", undefined, -32601]);
  assert.match(answer.error?.message ?? "", /thought_level/);
  assert.deepEqual(answer.error?.data, { supported: [] });
  assert.equal((await vm.rawSend(sessionId, "no/such/method")).error?.code, -32601);
  const params = { modeId: vm.getSessionModes(sessionId)?.currentModeId };
  const sent = await vm.rawSend(sessionId, "session/set_mode", params);
  assert.deepEqual([sent.error, typeof sent.id], [undefined, "number"], "the agent's own answer");
});

test("what an agent is doing can be cancelled", PATIENT, async (t) => {
  const vm = await newVm(t, { model: "demo" });
  const { sessionId } = await vm.createSession("pi");
  const idle = { jsonrpc: "2.0", id: null, result: { cancelled: false } };
  assert.deepEqual(await vm.cancelSession(sessionId), idle);
  const turn = vm.prompt(sessionId, "Run the command `sleep 1000`");
  const runs = (): boolean => vm.allProcesses().some((process) => process.command === "sleep");
  await waitFor("the command to run", runs);
  assert.deepEqual(await vm.cancelSession(sessionId), { ...idle, result: { cancelled: true } });
  assert.equal((await turn).stopReason, "cancelled");
});

test("what was said is read at once and later, in parts, and until it is deleted", PATIENT, async (t) => {
  const vm = await newVm(t, { model: "demo" });
  const { sessionId } = await vm.createSession("pi");
  await vm.prompt(sessionId, "Run `echo once`");
  const events = vm.getSessionEvents(sessionId);
  assert.equal(events[0]?.notification.method, "_agentos/model");
  assert.deepEqual(
    events.map((event) => event.sequenceNumber),
    events.map((_, index) => index + 1),
  );
  assert.deepEqual(vm.getSessionEvents(sessionId, { since: 3 }), events.slice(2));
  const updates = events.filter((event) => event.notification.method === "session/update");
  assert.ok(updates.length > 1);
  assert.deepEqual(vm.getSessionEvents(sessionId, { method: "session/update" }), updates);
  assert.deepEqual(vm.getSessionEvents(sessionId, { since: events.length + 100 }), []);
  for (const options of [{ since: 0 }, { since: 1.5 }]) {
    assert.throws(() => vm.getSessionEvents(sessionId, options), { code: "InvalidInput" });
  }
  const option: object = { until: 3 };
  assert.throws(() => vm.getSessionEvents(sessionId, option), { code: "Unsupported", message: /`until`/ });

  assert.deepEqual(vm.resumeSession(sessionId), { sessionId });
  await vm.destroySession(sessionId);
  const unknown = { message: `Session not found: ${sessionId}`, code: "NotFound" };
  assert.throws(() => vm.resumeSession(sessionId), unknown);
  assert.throws(() => vm.getSessionEvents(sessionId), unknown);
  assert.throws(() => vm.getSessionModes(sessionId), unknown);
  const history = await vm.readHistory(sessionId);
  assert.deepEqual(history.slice(0, events.length), events);
  assert.deepEqual(await vm.readHistory(sessionId, { since: 2, limit: 2 }), events.slice(1, 3));
  await vm.deleteSession(sessionId);
  await assert.rejects(vm.readHistory(sessionId), unknown);
  await assert.rejects(vm.deleteSession(sessionId), unknown);
});

test("a session is brought back in another VM and knows what was said", PATIENT, async (t) => {
  const before = await newVm(t, { model: "demo" });
  const { sessionId } = await before.createSession("pi");
  await before.prompt(sessionId, "Say hello to the walrus");
  const vm = await newVm(t, { model: "demo" });
  await assert.rejects(vm.restoreSession(sessionId), { code: "Busy" });
  await before.destroySession(sessionId);
  assert.deepEqual(await vm.restoreSession(sessionId), { sessionId });
  assert.deepEqual(vm.listSessions(), [{ sessionId, agentType: "pi" }]);
  const { text } = await vm.prompt(sessionId, "What was my first request?");
  assert.match(text, /walrus/);
  await vm.deleteSession(sessionId);
  assert.deepEqual(vm.listSessions(), []);
  await assert.rejects(vm.restoreSession(sessionId), { message: `Session not found: ${sessionId}` });
});

test("the agents that can be asked for are listed", PATIENT, async (t) => {
  const mine = { acpAdapter: "my-adapter", agentPackage: "my-agent" };
  const vm = await newVm(t, { agents: { mine } });
  const agents = vm.listAgents();
  const ids = agents.map((agent) => agent.id);
  for (const id of ["pi", "pi-cli", "opencode", "claude", "mine"]) assert.ok(ids.includes(id), `${id} of ${ids.join()}`);
  const pi = agents.find((agent) => agent.id === "pi");
  assert.match(pi?.version ?? "", /^\d+\./);
  const { version: _, ...rest } = agents.find((agent) => agent.id === "mine") ?? {};
  assert.deepEqual(rest, { id: "mine", ...mine, installed: false });
});
