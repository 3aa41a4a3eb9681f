/**
 * A VM and everything in it. Methods that wait return promises; the others answer at once, from the sidecar and not from
 * what was known before. A VM ends when it is disposed, and with its process at the latest.
 */

import { constants } from "node:os";

import { traced } from "./failure.js";
import { addon, type EventShape, type ExitShape, type Vm } from "./native.js";
import { bytes, createWish, execWish, historyWish, permissionReply, sessionWish, spawnWish } from "./options.js";
import type {
  AgentCapabilities,
  AgentInfo,
  AgentOsOptions,
  AgentRegistryEntry,
  AgentType,
  CreateSessionOptions,
  ExecOptions,
  ExecResult,
  Exit,
  GetEventsOptions,
  JsonRpcNotification,
  JsonRpcResponse,
  PermissionReply,
  PermissionRequest,
  PermissionRequestHandler,
  ProcessInfo,
  PromptResult,
  ReadHistoryOptions,
  SequencedEvent,
  SessionConfigOption,
  SessionEventHandler,
  SessionInfo,
  SessionInitData,
  SessionModeState,
  SpawnedProcessInfo,
  SpawnOptions,
} from "./types.js";

/**
 * The VMs that were not disposed. Without this one would end at a moment of the garbage collector's choosing, with the
 * servers that were left running in it.
 */
const alive = new Set<AgentOs>();

export class AgentOs {
  readonly #vm: Vm;

  private constructor(vm: Vm) {
    this.#vm = vm;
    alive.add(this);
  }

  /** Creates and boots a VM. */
  static async create(options: AgentOsOptions = {}): Promise<AgentOs> {
    return new AgentOs(await traced(addon.createVm(createWish(options))));
  }

  /** Shuts the VM down with everything in it; nothing of it is left on the host then. Twice is fine. */
  async dispose(): Promise<void> {
    alive.delete(this);
    await traced(this.#vm.dispose());
  }

  // -------------------------------------------------------------- files

  async readFile(path: string): Promise<Uint8Array> {
    return traced(this.#vm.readFile(path));
  }

  /** Creates parent directories. A reader sees the old file or the new one, never half of it. */
  async writeFile(path: string, content: string | Uint8Array): Promise<void> {
    await traced(this.#vm.writeFile(path, bytes(content)));
  }

  // -------------------------------------------------------------- processes

  /** Runs a command with `/bin/sh -c`. A non-zero exit is a result, and so is one by the timeout. */
  async exec(command: string, options: ExecOptions = {}): Promise<ExecResult> {
    const { onStdout, onStderr } = options;
    const done = await traced(this.#vm.exec(command, execWish(options), [onStdout, onStderr]));
    const { exitCode, stdout, stderr } = done;
    const result: ExecResult = { exitCode, stdout, stderr, exit: exit(done.exit) };
    if (done.exit.kind === "timedOut") result.timedOut = true;
    // Where nothing was to be captured, nothing is missing.
    if (done.truncated && options.captureStdio !== false) result.truncated = true;
    return result;
  }

  /**
   * Starts a program without a shell and returns when it runs; throws ENOENT or EACCES where it can't. After 20 ms it
   * returns in any case: a program that can't be run then exits with 127, and the reason is on its stderr.
   */
  spawn(command: string, args: string[], options: SpawnOptions = {}): { pid: number } {
    const { onStdout, onStderr } = options;
    return { pid: this.#vm.spawn([command, ...args], spawnWish(options), [onStdout, onStderr]) };
  }

  /** The processes started by `spawn`, exited ones too. */
  listProcesses(): SpawnedProcessInfo[] {
    return this.#vm.listProcesses();
  }

  /** Every process in the VM, whoever started it. */
  allProcesses(): ProcessInfo[] {
    return this.#vm.allProcesses();
  }

  getProcess(pid: number): SpawnedProcessInfo {
    return this.#vm.getProcess(pid);
  }

  /** Sends SIGTERM; does nothing once the process has exited. */
  stopProcess(pid: number): void {
    this.#vm.stopProcess(pid);
  }

  /** Sends SIGKILL; does nothing once the process has exited. */
  killProcess(pid: number): void {
    this.#vm.killProcess(pid);
  }

  // -------------------------------------------------------------- sessions

  /** Launches an agent. A built-in one that is missing is installed first. */
  async createSession(agentType: AgentType | string, options: CreateSessionOptions = {}): Promise<{ sessionId: string }> {
    const { onInstallProgress } = options;
    const progress = onInstallProgress && ((json: string) => onInstallProgress(JSON.parse(json)));
    return { sessionId: await traced(this.#vm.createSession(agentType, sessionWish(options), progress)) };
  }

  listSessions(): SessionInfo[] {
    return this.#vm.listSessions();
  }

  /** Sends a prompt and resolves with the agent's whole text when its turn ends. */
  async prompt(sessionId: string, text: string): Promise<PromptResult> {
    const { responseJson, ...rest } = await traced(this.#vm.prompt(sessionId, text));
    return { ...rest, response: JSON.parse(responseJson) as JsonRpcResponse };
  }

  /** Ends what the agent is doing: the running prompt resolves as cancelled. Says `{cancelled: false}` if nothing runs. */
  async cancelSession(sessionId: string): Promise<JsonRpcResponse> {
    return ownAnswer({ cancelled: await traced(this.#vm.cancelSession(sessionId)) });
  }

  /** Ends every process of the session now. Its transcript is kept. */
  closeSession(sessionId: string): void {
    this.#vm.closeSession(sessionId);
  }

  /** Cancels what the session is doing, closes it politely and waits for that. */
  async destroySession(sessionId: string): Promise<void> {
    await traced(this.#vm.destroySession(sessionId));
  }

  /** Removes the session's transcript and files; one that lives is ended first, at once. */
  async deleteSession(sessionId: string): Promise<void> {
    await traced(this.#vm.deleteSession(sessionId));
  }

  /** The session, where it lives; throws where it doesn't. */
  resumeSession(sessionId: string): { sessionId: string } {
    this.#vm.resumeSession(sessionId);
    return { sessionId };
  }

  /** Brings a stored session back in this VM, under its id. Its event `_agentos/restored` says how, and what it lost. */
  async restoreSession(sessionId: string): Promise<{ sessionId: string }> {
    return { sessionId: await traced(this.#vm.restoreSession(sessionId)) };
  }

  // -------------------------------------------------------------- what the agent is asked for, and asks for

  /** Resolves with the agent's answer, also where that is an error: -32601 for what it can't do. */
  async setSessionMode(sessionId: string, modeId: string): Promise<JsonRpcResponse> {
    return answer(await traced(this.#vm.setSessionMode(sessionId, modeId)));
  }

  getSessionModes(sessionId: string): SessionModeState | null {
    return this.#state(sessionId).modes ?? null;
  }

  /** As `setSessionMode`. */
  async setSessionModel(sessionId: string, model: string): Promise<JsonRpcResponse> {
    return answer(await traced(this.#vm.setSessionModel(sessionId, model)));
  }

  /** As `setSessionMode`. */
  async setSessionThoughtLevel(sessionId: string, level: string): Promise<JsonRpcResponse> {
    return answer(await traced(this.#vm.setSessionThoughtLevel(sessionId, level)));
  }

  getSessionConfigOptions(sessionId: string): SessionConfigOption[] {
    return this.#state(sessionId).configOptions;
  }

  /** What the agent said it can do; null where it said nothing. */
  getSessionCapabilities(sessionId: string): AgentCapabilities | null {
    const { capabilities } = this.#state(sessionId);
    return Object.keys(capabilities).length > 0 ? capabilities : null;
  }

  getSessionAgentInfo(sessionId: string): AgentInfo | null {
    return this.#state(sessionId).agentInfo ?? null;
  }

  /**
   * Sends any ACP request to the agent. Methods that begin with `session/` get the agent's own id of this session where
   * `params` name none or this one's, but for `session/new` and `session/list`; any other method gets it in the place of
   * this one's id alone. As `setSessionMode`.
   */
  async rawSend(sessionId: string, method: string, params: Record<string, unknown> = {}): Promise<JsonRpcResponse> {
    return answer(await traced(this.#vm.rawSend(sessionId, method, JSON.stringify(params))));
  }

  /**
   * Tells `handler` what the agent asks permission for, beginning with what waits already. It is answered by
   * `respondPermission`, by whomever, within two minutes. While there is no handler, requests are rejected. Returns what
   * ends that.
   */
  onPermissionRequest(sessionId: string, handler: PermissionRequestHandler): () => void {
    let subscribed = true;
    const subscription = this.#vm.onPermissionRequest(sessionId, (json) => {
      if (subscribed) handler(JSON.parse(json) as PermissionRequest);
    });
    return () => {
      subscribed = false;
      subscription.end();
    };
  }

  /** Rejects where nothing waits under that id: it was answered, is too old, or its turn is over. */
  async respondPermission(sessionId: string, permissionId: string, reply: PermissionReply): Promise<JsonRpcResponse> {
    await traced(this.#vm.respondPermission(sessionId, permissionId, permissionReply(reply)));
    return ownAnswer({ permissionId, reply });
  }

  /** The agents that can be asked for. */
  listAgents(): AgentRegistryEntry[] {
    return this.#vm.listAgents();
  }

  #state(sessionId: string): SessionInitData {
    return JSON.parse(this.#vm.sessionState(sessionId)) as SessionInitData;
  }

  // -------------------------------------------------------------- what sessions say

  /** The session's events of any kind, the newest 1,024 of them; `readHistory` has all. */
  getSessionEvents(sessionId: string, options: GetEventsOptions = {}): SequencedEvent[] {
    const wish = historyWish("getSessionEvents", options, ["since", "method"]);
    return this.#vm.sessionEvents(sessionId, wish).map(sequenced);
  }

  /** The events of a session, whether it lives or not. */
  async readHistory(sessionId: string, options: ReadHistoryOptions = {}): Promise<SequencedEvent[]> {
    const wish = historyWish("readHistory", options, ["since", "method", "limit"]);
    return (await traced(this.#vm.readHistory(sessionId, wish))).map(sequenced);
  }

  /**
   * Tells `handler` every `session/update` of the session: those there were before this call returns, the later ones in
   * order, none twice. Returns what ends that. An exception of the handler is an uncaught one and costs no other event.
   */
  onSessionEvent(sessionId: string, handler: SessionEventHandler): () => void {
    let subscribed = true;
    const tell = (json: string): void => {
      if (subscribed) handler(JSON.parse(json) as JsonRpcNotification);
    };
    const warn = (reason: string): void => {
      if (subscribed && alive.has(this)) process.emitWarning(`The events of session ${sessionId} broke off: ${reason}`);
    };
    const subscription = this.#vm.subscribe(sessionId, tell, warn);
    for (const json of subscription.takeBacklog()) {
      try {
        tell(json);
      } catch (error) {
        process.nextTick(() => {
          throw error;
        });
      }
    }
    return () => {
      subscribed = false;
      subscription.end();
    };
  }
}

function sequenced({ sequenceNumber, notificationJson }: EventShape): SequencedEvent {
  return { sequenceNumber, notification: JSON.parse(notificationJson) as JsonRpcNotification };
}

function answer(json: string): JsonRpcResponse {
  return JSON.parse(json) as JsonRpcResponse;
}

/** To what is no request of the agent's protocol: its shape is that of the calls that are. */
function ownAnswer(result: object): JsonRpcResponse {
  return { jsonrpc: "2.0", id: null, result };
}

function exit({ kind, code, signal, reason }: ExitShape): Exit {
  switch (kind) {
    case "exited":
      return { kind, code: code ?? 0 };
    case "signaled":
      return { kind, signal: signalName(signal ?? 0) };
    case "vmGone":
      return { kind, reason: reason ?? "" };
    default:
      return { kind };
  }
}

/** Real-time signals have numbers only. */
function signalName(number: number): string {
  const found = Object.entries(constants.signals).find(([, value]) => value === number);
  return found?.[0] ?? `SIG${number}`;
}
