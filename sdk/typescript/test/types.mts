/**
 * The public contract, written out once more and compared by the compiler: what this package exports has exactly these
 * types. Nothing here is run.
 */

import type * as sdk from "#sdk";
import { AgentOs, createHostDirBackend, hostDirMount, nodeModulesMount } from "#sdk";

/** True where neither type can be told from the other, optional members and `readonly` included. */
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
/** Members of interfaces that extend others, laid out flat. */
type Flat<T> = { [K in keyof T]: T[K] };
type IsTrue<T extends true> = T;

type ModelChoice = "auto" | "demo" | "provider";
interface NativeMountPlugin {
  id: "memory" | "host_dir" | "s3" | "google_drive" | (string & {});
  config?: Record<string, unknown>;
}
interface NativeMountConfig {
  path: string;
  plugin: NativeMountPlugin;
  readOnly?: boolean;
}
interface MountConfigMemory extends NativeMountConfig {
  plugin: { id: "memory"; config?: { maxBytes?: number } };
}
type Exit =
  | { kind: "exited"; code: number }
  | { kind: "signaled"; signal: string }
  | { kind: "timedOut" }
  | { kind: "outOfMemory" }
  | { kind: "vmGone"; reason: string };
interface ExecOptions {
  env?: Record<string, string>;
  cwd?: string;
  stdin?: string | Uint8Array;
  timeout?: number;
  onStdout?(chunk: Uint8Array): void;
  onStderr?(chunk: Uint8Array): void;
  captureStdio?: boolean;
  maxOutputBytes?: number;
}
interface SpawnedProcessInfo {
  pid: number;
  command: string;
  args: string[];
  running: boolean;
  exitCode: number | null;
}
interface ProcessInfo {
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
  startTime: number;
  exitTime: number | null;
}
interface AgentConfig {
  acpAdapter: string;
  agentPackage: string;
  launchArgs?: string[];
  defaultEnv?: Record<string, string>;
}
type McpServerConfig =
  | { type: "local"; command: string; args?: string[]; env?: Record<string, string> }
  | { type: "remote"; url: string; headers?: Record<string, string> };
interface JsonRpcNotification {
  jsonrpc: "2.0";
  method: string;
  params?: Record<string, unknown>;
}
interface JsonRpcResponse {
  jsonrpc: "2.0";
  id: number | string | null;
  result?: unknown;
  error?: { code: number; message: string; data?: unknown };
}

interface SessionMode {
  id: string;
  name?: string;
  label?: string;
  description?: string;
}
interface SessionConfigOption {
  id: string;
  category?: string;
  label?: string;
  description?: string;
  currentValue?: string;
  allowedValues?: { id: string; label?: string }[];
  readOnly?: boolean;
}
interface AgentCapabilities {
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

export type Shapes = [
  IsTrue<
    Same<
      Flat<sdk.AgentOsOptions>,
      {
        commandDirs?: string[];
        loopbackExemptPorts?: number[];
        mounts?: sdk.MountConfig[];
        additionalInstructions?: string;
        sidecar?: { kind: "shared"; pool?: string };
        agents?: Record<string, sdk.AgentConfig>;
        model?: ModelChoice;
      }
    >
  >,
  IsTrue<Same<Flat<sdk.NativeMountConfig>, Flat<NativeMountConfig>>>,
  IsTrue<Same<Flat<sdk.NativeMountPlugin>, Flat<NativeMountPlugin>>>,
  IsTrue<Same<Flat<sdk.MountConfigMemory>, Flat<MountConfigMemory>>>,
  IsTrue<Same<sdk.MountConfig, sdk.MountConfigMemory | sdk.NativeMountConfig>>,
  IsTrue<Same<Flat<sdk.HostDirBackendOptions>, { hostPath: string; readOnly?: boolean }>>,
  IsTrue<Same<sdk.Exit, Exit>>,
  IsTrue<Same<Flat<sdk.ExecOptions>, Flat<ExecOptions>>>,
  IsTrue<
    Same<
      Flat<sdk.ExecResult>,
      { exitCode: number; stdout: string; stderr: string; exit: Exit; timedOut?: boolean; truncated?: boolean }
    >
  >,
  IsTrue<Same<Flat<sdk.SpawnOptions>, Flat<Omit<ExecOptions, "captureStdio" | "maxOutputBytes"> & { stdio?: "pipe" }>>>,
  IsTrue<Same<Flat<sdk.SpawnedProcessInfo>, Flat<SpawnedProcessInfo>>>,
  IsTrue<Same<Flat<sdk.ProcessInfo>, Flat<ProcessInfo>>>,
  IsTrue<Same<sdk.AgentType, "pi" | "pi-cli" | "opencode" | "claude">>,
  IsTrue<Same<Flat<sdk.AgentConfig>, Flat<AgentConfig>>>,
  IsTrue<Same<Flat<sdk.McpServerConfigLocal> | Flat<sdk.McpServerConfigRemote>, McpServerConfig>>,
  IsTrue<Same<sdk.McpServerConfig, sdk.McpServerConfigLocal | sdk.McpServerConfigRemote>>,
  IsTrue<
    Same<
      Flat<sdk.CreateSessionOptions>,
      {
        cwd?: string;
        env?: Record<string, string>;
        mcpServers?: sdk.McpServerConfig[];
        skipOsInstructions?: boolean;
        additionalInstructions?: string;
        permissionPolicy?: "ask" | "allow_all" | "reject_all";
        model?: ModelChoice;
        agentInstall?: "auto" | "never";
        onInstallProgress?(progress: { package: string; receivedBytes: number; totalBytes?: number }): void;
      }
    >
  >,
  IsTrue<Same<Flat<sdk.SessionInfo>, { sessionId: string; agentType: string }>>,
  IsTrue<
    Same<
      Flat<sdk.PromptResult>,
      {
        response: sdk.JsonRpcResponse;
        text: string;
        stopReason: string;
        model: "demo" | "provider";
        rejectedPermissions: number;
      }
    >
  >,
  IsTrue<Same<sdk.PermissionPolicy, "ask" | "allow_all" | "reject_all">>,
  IsTrue<
    Same<
      Flat<sdk.PermissionRequest>,
      { permissionId: string; description?: string; params: Record<string, unknown> }
    >
  >,
  IsTrue<Same<sdk.PermissionReply, "once" | "always" | "reject">>,
  IsTrue<Same<sdk.PermissionRequestHandler, (request: sdk.PermissionRequest) => void>>,
  IsTrue<
    Same<
      Flat<sdk.AgentRegistryEntry>,
      { id: string; acpAdapter: string; agentPackage: string; installed: boolean; version?: string }
    >
  >,
  IsTrue<Same<Flat<sdk.SessionMode>, Flat<SessionMode>>>,
  IsTrue<Same<Flat<sdk.SessionModeState>, { currentModeId: string; availableModes: sdk.SessionMode[] }>>,
  IsTrue<Same<Flat<sdk.SessionConfigOption>, Flat<SessionConfigOption>>>,
  IsTrue<Same<Flat<sdk.AgentCapabilities>, Flat<AgentCapabilities>>>,
  IsTrue<Same<Flat<sdk.AgentInfo>, { name: string; title?: string; version?: string }>>,
  IsTrue<
    Same<
      Flat<sdk.SessionInitData>,
      {
        modes?: sdk.SessionModeState;
        configOptions: sdk.SessionConfigOption[];
        capabilities: sdk.AgentCapabilities;
        agentInfo?: sdk.AgentInfo;
      }
    >
  >,
  IsTrue<Same<Flat<sdk.SequencedEvent>, { sequenceNumber: number; notification: sdk.JsonRpcNotification }>>,
  IsTrue<Same<Flat<sdk.GetEventsOptions>, { since?: number; method?: string }>>,
  IsTrue<Same<Flat<sdk.ReadHistoryOptions>, { since?: number; method?: string; limit?: number }>>,
  IsTrue<
    Same<
      Flat<sdk.JsonRpcRequest>,
      { jsonrpc: "2.0"; id: number | string; method: string; params?: Record<string, unknown> }
    >
  >,
  IsTrue<Same<Flat<sdk.JsonRpcNotification>, Flat<JsonRpcNotification>>>,
  IsTrue<Same<Flat<Omit<sdk.JsonRpcResponse, "error">>, Flat<Omit<JsonRpcResponse, "error">>>>,
  IsTrue<Same<Flat<sdk.JsonRpcError>, { code: number; message: string; data?: unknown }>>,
  IsTrue<Same<sdk.SessionEventHandler, (event: sdk.JsonRpcNotification) => void>>,
];

export type Signatures = [
  IsTrue<Same<typeof AgentOs.create, (options?: sdk.AgentOsOptions) => Promise<AgentOs>>>,
  IsTrue<Same<AgentOs["dispose"], () => Promise<void>>>,
  IsTrue<Same<AgentOs["readFile"], (path: string) => Promise<Uint8Array>>>,
  IsTrue<Same<AgentOs["writeFile"], (path: string, content: string | Uint8Array) => Promise<void>>>,
  IsTrue<Same<AgentOs["exec"], (command: string, options?: sdk.ExecOptions) => Promise<sdk.ExecResult>>>,
  IsTrue<Same<AgentOs["spawn"], (command: string, args: string[], options?: sdk.SpawnOptions) => { pid: number }>>,
  IsTrue<Same<AgentOs["listProcesses"], () => sdk.SpawnedProcessInfo[]>>,
  IsTrue<Same<AgentOs["allProcesses"], () => sdk.ProcessInfo[]>>,
  IsTrue<Same<AgentOs["getProcess"], (pid: number) => sdk.SpawnedProcessInfo>>,
  IsTrue<Same<AgentOs["stopProcess"], (pid: number) => void>>,
  IsTrue<Same<AgentOs["killProcess"], (pid: number) => void>>,
  IsTrue<
    Same<
      AgentOs["createSession"],
      (agentType: sdk.AgentType | string, options?: sdk.CreateSessionOptions) => Promise<{ sessionId: string }>
    >
  >,
  IsTrue<Same<AgentOs["listSessions"], () => sdk.SessionInfo[]>>,
  IsTrue<Same<AgentOs["prompt"], (sessionId: string, text: string) => Promise<sdk.PromptResult>>>,
  IsTrue<Same<AgentOs["closeSession"], (sessionId: string) => void>>,
  IsTrue<Same<AgentOs["destroySession"], (sessionId: string) => Promise<void>>>,
  IsTrue<Same<AgentOs["onSessionEvent"], (sessionId: string, handler: sdk.SessionEventHandler) => () => void>>,
  IsTrue<Same<AgentOs["onPermissionRequest"], (sessionId: string, handler: sdk.PermissionRequestHandler) => () => void>>,
  IsTrue<
    Same<
      AgentOs["respondPermission"],
      (sessionId: string, permissionId: string, reply: sdk.PermissionReply) => Promise<sdk.JsonRpcResponse>
    >
  >,
  IsTrue<Same<AgentOs["cancelSession"], (sessionId: string) => Promise<sdk.JsonRpcResponse>>>,
  IsTrue<Same<AgentOs["resumeSession"], (sessionId: string) => { sessionId: string }>>,
  IsTrue<Same<AgentOs["restoreSession"], (sessionId: string) => Promise<{ sessionId: string }>>>,
  IsTrue<Same<AgentOs["deleteSession"], (sessionId: string) => Promise<void>>>,
  IsTrue<Same<AgentOs["setSessionMode"], (sessionId: string, modeId: string) => Promise<sdk.JsonRpcResponse>>>,
  IsTrue<Same<AgentOs["getSessionModes"], (sessionId: string) => sdk.SessionModeState | null>>,
  IsTrue<Same<AgentOs["setSessionModel"], (sessionId: string, model: string) => Promise<sdk.JsonRpcResponse>>>,
  IsTrue<Same<AgentOs["setSessionThoughtLevel"], (sessionId: string, level: string) => Promise<sdk.JsonRpcResponse>>>,
  IsTrue<Same<AgentOs["getSessionConfigOptions"], (sessionId: string) => sdk.SessionConfigOption[]>>,
  IsTrue<Same<AgentOs["getSessionCapabilities"], (sessionId: string) => sdk.AgentCapabilities | null>>,
  IsTrue<Same<AgentOs["getSessionAgentInfo"], (sessionId: string) => sdk.AgentInfo | null>>,
  IsTrue<
    Same<
      AgentOs["rawSend"],
      (sessionId: string, method: string, params?: Record<string, unknown>) => Promise<sdk.JsonRpcResponse>
    >
  >,
  IsTrue<Same<AgentOs["getSessionEvents"], (sessionId: string, options?: sdk.GetEventsOptions) => sdk.SequencedEvent[]>>,
  IsTrue<
    Same<AgentOs["readHistory"], (sessionId: string, options?: sdk.ReadHistoryOptions) => Promise<sdk.SequencedEvent[]>>
  >,
  IsTrue<Same<AgentOs["listAgents"], () => sdk.AgentRegistryEntry[]>>,
  IsTrue<Same<typeof createHostDirBackend, (options: sdk.HostDirBackendOptions) => sdk.NativeMountPlugin>>,
  IsTrue<
    Same<
      typeof hostDirMount,
      (path: string, hostPath: string, options?: { readOnly?: boolean }) => sdk.NativeMountConfig
    >
  >,
  IsTrue<
    Same<typeof nodeModulesMount, (hostNodeModulesDir: string, options?: { readOnly?: boolean }) => sdk.NativeMountConfig>
  >,
];

/** Everything the class has besides is a mistake. */
export type NothingElse = IsTrue<
  Same<
    keyof AgentOs,
    | "dispose"
    | "readFile"
    | "writeFile"
    | "exec"
    | "spawn"
    | "listProcesses"
    | "allProcesses"
    | "getProcess"
    | "stopProcess"
    | "killProcess"
    | "createSession"
    | "listSessions"
    | "prompt"
    | "closeSession"
    | "destroySession"
    | "onSessionEvent"
    | "onPermissionRequest"
    | "respondPermission"
    | "cancelSession"
    | "resumeSession"
    | "restoreSession"
    | "deleteSession"
    | "setSessionMode"
    | "getSessionModes"
    | "setSessionModel"
    | "setSessionThoughtLevel"
    | "getSessionConfigOptions"
    | "getSessionCapabilities"
    | "getSessionAgentInfo"
    | "rawSend"
    | "getSessionEvents"
    | "readHistory"
    | "listAgents"
  >
>;
