/** What the stories share: VMs that go with their test, conditions that are waited for, programs of their own. */

import { spawn } from "node:child_process";
import { mkdtempSync, mkdirSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { TestContext } from "node:test";

import { AgentOs, type AgentOsOptions } from "#sdk";

/** Far above what anything takes, and below the patience of whoever runs the tests. */
export const DEADLINE_MS = 120_000;

/** These files are built into `dist/test`. */
const PACKAGE = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** The package's name stands in its package.json, and tests look there. */
export const NAME: string = (JSON.parse(readPackageFile("package.json")) as { name: string }).name;

export function readPackageFile(name: string): string {
  return readFileSync(join(PACKAGE, name), "utf8");
}

export async function newVm(test: TestContext, options: AgentOsOptions = {}): Promise<AgentOs> {
  const vm = await AgentOs.create(options);
  test.after(() => vm.dispose());
  return vm;
}

export async function waitFor(what: string, condition: () => boolean): Promise<void> {
  const deadline = Date.now() + DEADLINE_MS;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`waited in vain for: ${what}`);
    await setTimeout(10);
  }
}

export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export interface Program {
  /** What it printed so far. */
  stdout(): string;
  kill(signal: NodeJS.Signals): void;
  ended: Promise<Ended>;
}

/** Runs a program that has this package among its dependencies, by the name it has. */
export function startProgram(test: TestContext, file: string, text: string, env: NodeJS.ProcessEnv = {}): Program {
  const directory = mkdtempSync(join(tmpdir(), "program-"));
  test.after(() => rmSync(directory, { recursive: true }));
  const modules = join(directory, "node_modules");
  mkdirSync(dirname(join(modules, NAME)), { recursive: true });
  symlinkSync(PACKAGE, join(modules, NAME));
  writeFileSync(join(directory, file), text);
  const child = spawn(process.execPath, [file], {
    cwd: directory,
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const printed = { stdout: "", stderr: "" };
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => (printed.stdout += chunk));
  child.stderr.setEncoding("utf8").on("data", (chunk: string) => (printed.stderr += chunk));
  const ended = new Promise<Ended>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, signal) => resolve({ code, signal, ...printed }));
  });
  test.after(() => child.kill("SIGKILL"));
  return { stdout: () => printed.stdout, kill: (signal) => child.kill(signal), ended };
}

/** Whether a process of this host, those in VMs included, has the word on its command line. */
export function runsOnHost(word: string): boolean {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .some((pid) => commandLine(pid).split("\0").includes(word));
}

function commandLine(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8");
  } catch {
    // It has ended since the directory was listed.
    return "";
  }
}
