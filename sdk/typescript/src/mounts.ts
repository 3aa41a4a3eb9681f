/** Mounts as plain objects, and what the addon makes of them. */

import { failure, refuseOthers } from "./failure.js";
import type { MountWish } from "./native.js";
import type { HostDirBackendOptions, MountConfig, NativeMountConfig, NativeMountPlugin } from "./types.js";

const NODE_MODULES = "/root/node_modules";

/** A directory of the host; read-only unless `readOnly` is false. */
export function createHostDirBackend(options: HostDirBackendOptions): NativeMountPlugin {
  refuseOthers("createHostDirBackend", options, ["hostPath", "readOnly"]);
  return { id: "host_dir", config: { ...options } };
}

/** A directory of the host at a path of the VM; read-only unless `readOnly` is false. */
export function hostDirMount(path: string, hostPath: string, options: { readOnly?: boolean } = {}): NativeMountConfig {
  refuseOthers("hostDirMount", options, ["readOnly"]);
  return { path, plugin: createHostDirBackend({ hostPath, ...options }) };
}

/** A `node_modules` of the host at /root/node_modules, where agents are looked for first. */
export function nodeModulesMount(hostNodeModulesDir: string, options: { readOnly?: boolean } = {}): NativeMountConfig {
  refuseOthers("nodeModulesMount", options, ["readOnly"]);
  return hostDirMount(NODE_MODULES, hostNodeModulesDir, options);
}

export function mountWish(mount: MountConfig): MountWish {
  const { path, plugin, readOnly } = mount;
  refuseOthers("A mount", mount, ["path", "plugin", "readOnly"]);
  if (typeof path !== "string" || typeof plugin?.id !== "string") {
    throw failure("InvalidInput", "A mount needs a `path` and a `plugin` with an `id`");
  }
  const config: Record<string, unknown> = plugin.config ?? {};
  switch (plugin.id) {
    case "host_dir":
      return hostDirWish(path, config, readOnly);
    case "memory": {
      refuseOthers("A mount of memory", config, ["maxBytes"]);
      const maxBytes = config["maxBytes"];
      if (maxBytes !== undefined && !(typeof maxBytes === "number" && maxBytes > 0)) {
        throw failure("InvalidInput", "`maxBytes` of a mount of memory is a number above 0");
      }
      return { path, hostPath: undefined, maxBytes, readOnly: readOnly ?? false };
    }
    default:
      throw failure("Unsupported", `A mount does not support the plugin \`${plugin.id}\``);
  }
}

function hostDirWish(path: string, config: Record<string, unknown>, readOnly: boolean | undefined): MountWish {
  refuseOthers("A mount of a host directory", config, ["hostPath", "readOnly"]);
  const { hostPath } = config;
  if (typeof hostPath !== "string" || hostPath === "") {
    throw failure("InvalidInput", "A mount of a host directory needs its `hostPath`");
  }
  // Mount and plugin can both say it. Whoever says read-only is right, and nobody's word means read-only too.
  const said = [readOnly, config["readOnly"]];
  return { path, hostPath, maxBytes: undefined, readOnly: said.includes(true) || !said.includes(false) };
}
