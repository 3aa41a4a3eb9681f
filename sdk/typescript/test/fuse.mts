/**
 * A file system of this very process, by the kernel's FUSE protocol: while JavaScript waits, it doesn't answer. It has
 * regular files in one directory and forgets nothing: whatever is looked for is asked for each time.
 */

import { spawnSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, read, rmdirSync, writeSync } from "node:fs";
import { constants, endianness, tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

/** What is called by its number in the kernel's include/uapi/linux/fuse.h. */
const [LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH] = [1, 2, 3, 14, 15, 17, 18, 25];
const [INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET] = [26, 27, 28, 29, 36, 42];
const HEADER_BYTES = 40;
const ROOT = 1n;
const DIRECTORY_MODE = 0o040755;
const REGULAR = 0o100000;

export interface ServedFile {
  mode: number;
  content: string;
}

/** Whether this user on this machine can mount one. */
export function canServe(): boolean {
  if (process.getuid?.() !== 0 || endianness() !== "LE") return false;
  try {
    closeSync(openSync("/dev/fuse", "r+"));
    return true;
  } catch {
    return false;
  }
}

/** Where it is mounted, and what ends it. */
export function serve(files: Record<string, ServedFile>): { directory: string; unmount(): void } {
  const directory = mkdtempSync(join(tmpdir(), "served-"));
  const device = openSync("/dev/fuse", "r+");
  const options = "fd=3,rootmode=40000,user_id=0,group_id=0,allow_other";
  const mount = spawnSync("mount", ["-i", "-t", "fuse", "-o", options, "served", directory], {
    stdio: ["ignore", "pipe", "pipe", device],
    encoding: "utf8",
  });
  if (mount.status !== 0) throw new Error(`mount: ${mount.stderr}`);
  void answerAll(device, Object.entries(files));
  const unmount = (): void => {
    spawnSync("umount", ["--lazy", directory]);
    rmdirSync(directory);
  };
  return { directory, unmount };
}

async function answerAll(device: number, files: [name: string, file: ServedFile][]): Promise<void> {
  const request = Buffer.alloc(1 << 17);
  for (;;) {
    let length: number;
    try {
      length = (await promisify(read)(device, request, 0, request.length, null)).bytesRead;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      // Taken back before it was read.
      if (code === "ENOENT" || code === "EINTR") continue;
      // Unmounted.
      closeSync(device);
      return;
    }
    const reply = answer(request.subarray(0, length), files);
    if (reply === undefined) continue;
    const [error, body] = typeof reply === "number" ? [reply, Buffer.alloc(0)] : [0, reply];
    const header = Buffer.alloc(16);
    header.writeUInt32LE(header.length + body.length, 0);
    header.writeInt32LE(-error, 4);
    request.copy(header, 8, 8, 16);
    try {
      writeSync(device, Buffer.concat([header, body]));
    } catch (error) {
      // Whoever asked has gone since.
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
  }
}

/** The body of the answer, or its error number; nothing where none is expected. */
function answer(request: Buffer, files: [name: string, file: ServedFile][]): Buffer | number | undefined {
  const node = request.readBigUInt64LE(16);
  const file = node === ROOT ? undefined : files[Number(node) - 2]?.[1];
  switch (request.readUInt32LE(4)) {
    case INIT: {
      const body = Buffer.alloc(64);
      body.writeUInt32LE(7, 0);
      body.writeUInt32LE(31, 4);
      body.writeUInt32LE(4096, 20);
      return body;
    }
    case LOOKUP: {
      const name = request.subarray(HEADER_BYTES, request.indexOf(0, HEADER_BYTES)).toString();
      const index = files.findIndex(([known]) => known === name);
      if (index < 0) return constants.errno.ENOENT;
      const body = Buffer.alloc(40);
      body.writeBigUInt64LE(BigInt(index + 2), 0);
      return Buffer.concat([body, attributes(BigInt(index + 2), files[index]?.[1])]);
    }
    case GETATTR:
      return Buffer.concat([Buffer.alloc(16), attributes(node, file)]);
    case OPEN:
    case OPENDIR:
      return Buffer.alloc(16);
    case READ: {
      const [offset, size] = [Number(request.readBigUInt64LE(HEADER_BYTES + 8)), request.readUInt32LE(HEADER_BYTES + 16)];
      return Buffer.from(file?.content ?? "").subarray(offset, offset + size);
    }
    case STATFS:
      return Buffer.alloc(80);
    // Names are known, not listed.
    case READDIR:
    case FLUSH:
    case RELEASE:
    case RELEASEDIR:
      return Buffer.alloc(0);
    case FORGET:
    case BATCH_FORGET:
    case INTERRUPT:
      return undefined;
    default:
      return constants.errno.ENOSYS;
  }
}

function attributes(node: bigint, file: ServedFile | undefined): Buffer {
  const body = Buffer.alloc(88);
  body.writeBigUInt64LE(node, 0);
  body.writeBigUInt64LE(BigInt(file?.content.length ?? 0), 8);
  body.writeUInt32LE(file === undefined ? DIRECTORY_MODE : REGULAR | file.mode, 60);
  body.writeUInt32LE(1, 64);
  body.writeUInt32LE(4096, 80);
  return body;
}
