/**
 * A VM and everything in it. Methods that wait return promises; the others answer at once, from the sidecar and not from
 * what was known before. A VM ends when it is disposed, and with its process at the latest.
 */

import { constants } from "node:os";

import { traced } from "./failure.js";
import { addon, type ExitShape, type SpawnedShape, type Vm } from "./native.js";
import { bytes, createWish, execWish, sessionWish, spawnWish } from "./options.js";
import type {
  AgentOsOptions,
  AgentType,
  CreateSessionOptions,
  ExecOptions,
  ExecResult,
  Exit,
  JsonRpcNotification,
  JsonRpcResponse,
  ProcessInfo,
  PromptResult,
  SessionEventHandler,
  SessionInfo,
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

  /** Starts a program without a shell and returns when it runs; throws ENOENT or EACCES where it can't. */
  spawn(command: string, args: string[], options: SpawnOptions = {}): { pid: number } {
    const { onStdout, onStderr } = options;
    return { pid: this.#vm.spawn([command, ...args], spawnWish(options), [onStdout, onStderr]) };
  }

  /** The processes started by `spawn`, exited ones too. */
  listProcesses(): SpawnedProcessInfo[] {
    return this.#vm.listProcesses().map(spawned);
  }

  /** Every process in the VM, whoever started it. */
  allProcesses(): ProcessInfo[] {
    return this.#vm.allProcesses().map((process) => ({
      ...process,
      exitCode: process.exitCode ?? null,
      exitTime: process.exitTime ?? null,
    }));
  }

  getProcess(pid: number): SpawnedProcessInfo {
    return spawned(this.#vm.getProcess(pid));
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

  /** Ends every process of the session now. Its transcript is kept. */
  closeSession(sessionId: string): void {
    this.#vm.closeSession(sessionId);
  }

  /** Cancels what the session is doing, closes it politely and waits for that. */
  async destroySession(sessionId: string): Promise<void> {
    await traced(this.#vm.destroySession(sessionId));
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

function spawned(process: SpawnedShape): SpawnedProcessInfo {
  return { ...process, exitCode: process.exitCode ?? null };
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
