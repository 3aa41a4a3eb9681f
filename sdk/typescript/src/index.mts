// The same module, not a second one: handles of both module systems are of one class.
export * from "./index.js";
