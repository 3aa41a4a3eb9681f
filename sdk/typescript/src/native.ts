/**
 * The addon, as `native/src` exports it. It takes what it is given: everything that a caller could get wrong has been
 * looked at before, in `options` and `mounts`.
 */

import type {
  AgentRegistryEntry,
  PermissionReply,
  ProcessInfo,
  PromptResult,
  SessionInfo,
  SpawnedProcessInfo,
} from "./types.js";

export interface CreateWish {
  mounts: MountWish[];
  commandDirs: string[];
  loopbackExemptPorts: number[];
  additionalInstructions: string | undefined;
  model: string | undefined;
  pool: string | undefined;
  agents: Record<string, AgentWish>;
}

/** A directory of the host where there is a path of it, else memory. */
export interface MountWish {
  path: string;
  hostPath: string | undefined;
  maxBytes: number | undefined;
  readOnly: boolean;
}

export interface AgentWish {
  acpAdapter: string;
  agentPackage: string;
  launchArgs: string[];
  defaultEnv: Record<string, string>;
}

export interface ProcessWish {
  env: Record<string, string>;
  cwd: string | undefined;
  stdin: Uint8Array | undefined;
  timeoutMs: number | undefined;
  maxOutputBytes: number | undefined;
}

export interface SessionWish {
  cwd: string | undefined;
  env: Record<string, string>;
  mcpServers: McpWish[];
  skipOsInstructions: boolean;
  additionalInstructions: string | undefined;
  permissionPolicy: string | undefined;
  model: string | undefined;
  agentInstall: string | undefined;
}

/** A remote server where there is a URL, else a program; `names` are headers or variables. */
export interface McpWish {
  url: string | undefined;
  command: string;
  args: string[];
  names: Record<string, string>;
}

export interface ExitShape {
  kind: "exited" | "signaled" | "timedOut" | "outOfMemory" | "vmGone";
  code?: number;
  signal?: number;
  reason?: string;
}

export interface ExecShape {
  exitCode: number;
  stdout: string;
  stderr: string;
  exit: ExitShape;
  truncated: boolean;
}

export interface PromptShape extends Omit<PromptResult, "response"> {
  responseJson: string;
}

export interface HistoryWish {
  since: number | undefined;
  limit: number | undefined;
  method: string | undefined;
}

export interface EventShape {
  sequenceNumber: number;
  notificationJson: string;
}

export type OnChunk = (chunk: Uint8Array) => void;
export type OnText = (text: string) => void;
/** Of stdout and of stderr. */
export type OutputHandlers = [OnChunk | undefined, OnChunk | undefined];

export interface Subscription {
  takeBacklog(): string[];
  end(): void;
}

export interface Vm {
  dispose(): Promise<void>;
  readFile(path: string): Promise<Uint8Array>;
  writeFile(path: string, content: Uint8Array): Promise<void>;
  exec(command: string, wish: ProcessWish, handlers: OutputHandlers): Promise<ExecShape>;
  spawn(argv: string[], wish: ProcessWish, handlers: OutputHandlers): number;
  listProcesses(): SpawnedProcessInfo[];
  allProcesses(): ProcessInfo[];
  getProcess(pid: number): SpawnedProcessInfo;
  stopProcess(pid: number): void;
  killProcess(pid: number): void;
  createSession(agentType: string, wish: SessionWish, onInstallProgress: OnText | undefined): Promise<string>;
  listSessions(): SessionInfo[];
  resumeSession(sessionId: string): void;
  restoreSession(sessionId: string): Promise<string>;
  prompt(sessionId: string, text: string): Promise<PromptShape>;
  closeSession(sessionId: string): void;
  destroySession(sessionId: string): Promise<void>;
  cancelSession(sessionId: string): Promise<boolean>;
  deleteSession(sessionId: string): Promise<void>;
  setSessionMode(sessionId: string, modeId: string): Promise<string>;
  setSessionModel(sessionId: string, model: string): Promise<string>;
  setSessionThoughtLevel(sessionId: string, level: string): Promise<string>;
  rawSend(sessionId: string, method: string, paramsJson: string): Promise<string>;
  sessionState(sessionId: string): string;
  sessionEvents(sessionId: string, wish: HistoryWish): EventShape[];
  readHistory(sessionId: string, wish: HistoryWish): Promise<EventShape[]>;
  onPermissionRequest(sessionId: string, onRequest: OnText): Subscription;
  respondPermission(sessionId: string, permissionId: string, reply: PermissionReply): Promise<void>;
  listAgents(): AgentRegistryEntry[];
  subscribe(sessionId: string, onEvent: OnText, onFailure: OnText): Subscription;
}

interface Addon {
  createVm(wish: CreateWish): Promise<Vm>;
}

// It is loaded by one module, which both module systems share, so a process never has two of it.
export const addon = require("./agentos.node") as Addon;
