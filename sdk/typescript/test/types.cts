/** The same types by way of CommonJS. Nothing here is run. */

import sdk = require("#sdk");

export const create: (options?: sdk.AgentOsOptions) => Promise<sdk.AgentOs> = sdk.AgentOs.create;
export const mount: sdk.NativeMountConfig = sdk.hostDirMount("/work", ".");
