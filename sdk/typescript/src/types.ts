/** The shapes that go in and out. Paths are absolute and inside the VM unless they are said to be the host's. */

/** `provider` is the agent's own configuration, `demo` the offline script, `auto` whichever there is a key for. */
export type ModelChoice = "auto" | "demo" | "provider";

export interface AgentOsOptions {
  /** Host directories of executables, mounted read-only and first on `PATH`. */
  commandDirs?: string[];
  /** 127.0.0.1:PORT in the VM reaches 127.0.0.1:PORT of the host. */
  loopbackExemptPorts?: number[];
  mounts?: MountConfig[];
  /** Added to what agents in this VM are told about it. */
  additionalInstructions?: string;
  sidecar?: AgentOsSidecarConfig;
  /** Agents of one's own; they win over built-in ones of the same id. */
  agents?: Record<string, AgentConfig>;
  model?: ModelChoice;
}

/** Which daemon hosts the VM: that of a pool, `default` unless it is named. */
export type AgentOsSidecarConfig = { kind: "shared"; pool?: string };

// ---------------------------------------------------------------- mounts

export type MountConfig = MountConfigMemory | NativeMountConfig;

export interface NativeMountPlugin {
  id: "memory" | "host_dir" | "s3" | "google_drive" | (string & {});
  config?: Record<string, unknown>;
}

export interface NativeMountConfig {
  path: string;
  plugin: NativeMountPlugin;
  readOnly?: boolean;
}

export interface MountConfigMemory extends NativeMountConfig {
  plugin: { id: "memory"; config?: { maxBytes?: number } };
}

export interface HostDirBackendOptions {
  hostPath: string;
  /** True unless it is set. */
  readOnly?: boolean;
}

// ---------------------------------------------------------------- processes

export type Exit =
  | { kind: "exited"; code: number }
  | { kind: "signaled"; signal: string }
  | { kind: "timedOut" }
  | { kind: "outOfMemory" }
  | { kind: "vmGone"; reason: string };

export interface ExecOptions {
  env?: Record<string, string>;
  cwd?: string;
  stdin?: string | Uint8Array;
  /** Milliseconds, after which the process group is killed. */
  timeout?: number;
  onStdout?(chunk: Uint8Array): void;
  onStderr?(chunk: Uint8Array): void;
  /** False where only the handlers are to get the output. */
  captureStdio?: boolean;
  maxOutputBytes?: number;
}

export interface ExecResult {
  /** As a shell shows it: the process's own, or 128 and the number of the signal. */
  exitCode: number;
  stdout: string;
  stderr: string;
  exit: Exit;
  timedOut?: boolean;
  truncated?: boolean;
}

export interface SpawnOptions extends Omit<ExecOptions, "captureStdio" | "maxOutputBytes"> {
  stdio?: "pipe";
}

export interface SpawnedProcessInfo {
  pid: number;
  command: string;
  args: string[];
  running: boolean;
  exitCode: number | null;
}

export interface ProcessInfo {
  pid: number;
  ppid: number;
  pgid: number;
  sid: number;
  driver: "native" | "node" | "python" | "shell";
  command: string;
  args: string[];
  cwd: string;
  status: "running" | "exited";
  exitCode: number | null;
  /** Milliseconds since the epoch. */
  startTime: number;
  exitTime: number | null;
}

// ---------------------------------------------------------------- agents and sessions

/** The built-in agents. `createSession` takes any string. */
export type AgentType = "pi" | "pi-cli" | "opencode" | "claude";

export interface AgentConfig {
  acpAdapter: string;
  agentPackage: string;
  launchArgs?: string[];
  defaultEnv?: Record<string, string>;
}

/** An agent that can be asked for. */
export interface AgentRegistryEntry {
  id: string;
  acpAdapter: string;
  agentPackage: string;
  installed: boolean;
  /** The installed one, or the one that would be installed. */
  version?: string;
}

export type McpServerConfig = McpServerConfigLocal | McpServerConfigRemote;

/** Runs in the VM. */
export interface McpServerConfigLocal {
  type: "local";
  command: string;
  args?: string[];
  env?: Record<string, string>;
}

/** Reached from the VM, as far as its network policy lets it. */
export interface McpServerConfigRemote {
  type: "remote";
  url: string;
  headers?: Record<string, string>;
}

/** `ask` asks the handlers of `onPermissionRequest`, and where there is none means no. */
export type PermissionPolicy = "ask" | "allow_all" | "reject_all";

export interface CreateSessionOptions {
  cwd?: string;
  env?: Record<string, string>;
  mcpServers?: McpServerConfig[];
  skipOsInstructions?: boolean;
  additionalInstructions?: string;
  permissionPolicy?: PermissionPolicy;
  model?: ModelChoice;
  agentInstall?: "auto" | "never";
  onInstallProgress?(progress: { package: string; receivedBytes: number; totalBytes?: number }): void;
}

export interface SessionInfo {
  sessionId: string;
  agentType: string;
}

export interface PromptResult {
  /** The agent's answer as it sent it. */
  response: JsonRpcResponse;
  text: string;
  stopReason: string;
  model: "demo" | "provider";
  /** Requests for permission that were rejected because nobody answered them; events of the session say how to answer. */
  rejectedPermissions: number;
}

export type SessionEventHandler = (event: JsonRpcNotification) => void;

/** An event with its place in its session: they start at 1 and have no gaps. */
export interface SequencedEvent {
  sequenceNumber: number;
  notification: JsonRpcNotification;
}

export interface GetEventsOptions {
  /** The first sequence number that is wanted. */
  since?: number;
  /** Only notifications of this method, such as `session/update`. */
  method?: string;
}

export interface ReadHistoryOptions extends GetEventsOptions {
  /** At most so many. */
  limit?: number;
}

/** Something that an agent asks permission for. Its id works once. */
export interface PermissionRequest {
  permissionId: string;
  description?: string;
  /** The agent's own: the tool call, and the options it offers. */
  params: Record<string, unknown>;
}

/** `always` holds for exactly what was asked, in that session. */
export type PermissionReply = "once" | "always" | "reject";

export type PermissionRequestHandler = (request: PermissionRequest) => void;

// ---------------------------------------------------------------- what agents say of themselves

export interface SessionMode {
  id: string;
  name?: string;
  label?: string;
  description?: string;
}

export interface SessionModeState {
  currentModeId: string;
  availableModes: SessionMode[];
}

export interface SessionConfigOption {
  id: string;
  /** What it is about, such as `model` or `thought_level`. */
  category?: string;
  label?: string;
  description?: string;
  currentValue?: string;
  /** Absent where any will do. */
  allowedValues?: { id: string; label?: string }[];
  readOnly?: boolean;
}

/** What an agent said it can do; absent where it said nothing. */
export interface AgentCapabilities {
  permissions?: boolean;
  plan_mode?: boolean;
  questions?: boolean;
  tool_calls?: boolean;
  text_messages?: boolean;
  images?: boolean;
  file_attachments?: boolean;
  session_lifecycle?: boolean;
  error_events?: boolean;
  reasoning?: boolean;
  status?: boolean;
  streaming_deltas?: boolean;
  mcp_tools?: boolean;
  promptCapabilities?: { audio?: boolean; embeddedContext?: boolean; image?: boolean };
}

export interface AgentInfo {
  name: string;
  title?: string;
  version?: string;
}

export interface SessionInitData {
  modes?: SessionModeState;
  configOptions: SessionConfigOption[];
  capabilities: AgentCapabilities;
  agentInfo?: AgentInfo;
}

// ---------------------------------------------------------------- JSON-RPC

export interface JsonRpcRequest {
  jsonrpc: "2.0";
  id: number | string;
  method: string;
  params?: Record<string, unknown>;
}

export interface JsonRpcNotification {
  jsonrpc: "2.0";
  method: string;
  params?: Record<string, unknown>;
}

export interface JsonRpcError {
  code: number;
  message: string;
  data?: unknown;
}

export interface JsonRpcResponse {
  jsonrpc: "2.0";
  id: number | string | null;
  result?: unknown;
  error?: JsonRpcError;
}
