export { AgentOs } from "./agent-os.js";
export { createHostDirBackend, hostDirMount, nodeModulesMount } from "./mounts.js";
export type * from "./types.js";
