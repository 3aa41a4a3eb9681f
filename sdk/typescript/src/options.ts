/** Options as callers give them, looked at and put into the shapes of the addon. */

import { failure, refuseOthers } from "./failure.js";
import { mountWish } from "./mounts.js";
import type { AgentWish, CreateWish, HistoryWish, McpWish, ProcessWish, SessionWish } from "./native.js";
import type {
  AgentConfig,
  AgentOsOptions,
  CreateSessionOptions,
  ExecOptions,
  McpServerConfig,
  PermissionReply,
  ReadHistoryOptions,
  SpawnOptions,
} from "./types.js";

export function createWish(options: AgentOsOptions): CreateWish {
  const call = "AgentOs.create";
  refuseOthers(call, options, [
    "commandDirs",
    "loopbackExemptPorts",
    "mounts",
    "additionalInstructions",
    "sidecar",
    "agents",
    "model",
  ]);
  const agents = Object.entries(options.agents ?? {}).map(([id, agent]) => [id, agentWish(agent)] as const);
  return {
    mounts: (options.mounts ?? []).map(mountWish),
    commandDirs: options.commandDirs ?? [],
    loopbackExemptPorts: (options.loopbackExemptPorts ?? []).map(port),
    additionalInstructions: options.additionalInstructions,
    model: oneOf("model", options.model, ["auto", "demo", "provider"]),
    pool: pool(options.sidecar),
    agents: Object.fromEntries(agents),
  };
}

function port(number: number): number {
  if (!Number.isInteger(number) || number < 1 || number > 65535) {
    throw failure("InvalidInput", `\`loopbackExemptPorts\` are numbers from 1 to 65535, not ${number}`);
  }
  return number;
}

function pool(sidecar: AgentOsOptions["sidecar"]): string | undefined {
  if (sidecar === undefined) return undefined;
  if (sidecar.kind !== "shared") {
    throw failure("Unsupported", `AgentOs.create does not support a \`sidecar\` of kind \`${sidecar.kind as string}\``);
  }
  refuseOthers("`sidecar`", sidecar, ["kind", "pool"]);
  return sidecar.pool;
}

function agentWish(agent: AgentConfig): AgentWish {
  refuseOthers("An agent", agent, ["acpAdapter", "agentPackage", "launchArgs", "defaultEnv"]);
  const { acpAdapter, agentPackage, launchArgs = [], defaultEnv = {} } = agent;
  return { acpAdapter, agentPackage, launchArgs, defaultEnv };
}

export function execWish(options: ExecOptions): ProcessWish {
  const own = ["captureStdio", "maxOutputBytes"];
  refuseOthers("exec", options, [...PROCESS_OPTIONS, ...own]);
  const limit = amount("maxOutputBytes", options.maxOutputBytes);
  return { ...processWish(options), maxOutputBytes: options.captureStdio === false ? 0 : limit };
}

export function spawnWish(options: SpawnOptions): ProcessWish {
  refuseOthers("spawn", options, [...PROCESS_OPTIONS, "stdio"]);
  const { stdio } = options;
  if (stdio !== undefined && stdio !== "pipe") {
    throw failure("Unsupported", `spawn does not support \`stdio: "${stdio as string}"\``);
  }
  return processWish(options);
}

const PROCESS_OPTIONS = ["env", "cwd", "stdin", "timeout", "onStdout", "onStderr"];

function processWish(options: SpawnOptions): ProcessWish {
  return {
    env: options.env ?? {},
    cwd: options.cwd,
    stdin: options.stdin === undefined ? undefined : bytes(options.stdin),
    timeoutMs: amount("timeout", options.timeout),
    maxOutputBytes: undefined,
  };
}

export function sessionWish(options: CreateSessionOptions): SessionWish {
  refuseOthers("createSession", options, [
    "cwd",
    "env",
    "mcpServers",
    "skipOsInstructions",
    "additionalInstructions",
    "permissionPolicy",
    "model",
    "agentInstall",
    "onInstallProgress",
  ]);
  return {
    cwd: options.cwd,
    env: options.env ?? {},
    mcpServers: (options.mcpServers ?? []).map(mcpWish),
    skipOsInstructions: options.skipOsInstructions ?? false,
    additionalInstructions: options.additionalInstructions,
    permissionPolicy: oneOf("permissionPolicy", options.permissionPolicy, ["ask", "allow_all", "reject_all"]),
    model: oneOf("model", options.model, ["auto", "demo", "provider"]),
    agentInstall: oneOf("agentInstall", options.agentInstall, ["auto", "never"]),
  };
}

function mcpWish(server: McpServerConfig): McpWish {
  switch (server.type) {
    case "local":
      refuseOthers("A local MCP server", server, ["type", "command", "args", "env"]);
      return { url: undefined, command: server.command, args: server.args ?? [], names: server.env ?? {} };
    case "remote":
      refuseOthers("A remote MCP server", server, ["type", "url", "headers"]);
      return { url: server.url, command: "", args: [], names: server.headers ?? {} };
    default:
      throw failure("InvalidInput", "The `type` of an MCP server is `local` or `remote`");
  }
}

export function historyWish(call: string, options: ReadHistoryOptions, known: readonly string[]): HistoryWish {
  refuseOthers(call, options, known);
  const { since, limit, method } = options;
  return { since: count("since", since), limit: count("limit", limit), method };
}

export function permissionReply(reply: PermissionReply): PermissionReply {
  if (reply === undefined) throw failure("InvalidInput", "A reply to a request for permission is missing");
  return oneOf("reply", reply, ["once", "always", "reject"]) ?? reply;
}

/** Text is UTF-8. */
export function bytes(content: string | Uint8Array): Uint8Array {
  return typeof content === "string" ? new TextEncoder().encode(content) : content;
}

function oneOf<T extends string>(name: string, value: T | undefined, words: readonly T[]): T | undefined {
  if (value !== undefined && !words.includes(value)) {
    throw failure("InvalidInput", `\`${name}\` is one of ${words.join(", ")}, not ${value}`);
  }
  return value;
}

function amount(name: string, value: number | undefined): number | undefined {
  if (value !== undefined && !(Number.isFinite(value) && value >= 0)) {
    throw failure("InvalidInput", `\`${name}\` is a number that is not negative, not ${value}`);
  }
  return value;
}

function count(name: string, value: number | undefined): number | undefined {
  if (value !== undefined && !(Number.isSafeInteger(value) && value >= 1)) {
    throw failure("InvalidInput", `\`${name}\` is a whole number above 0, not ${value}`);
  }
  return value;
}
