/** Errors of this package: an `Error` whose `code` is an errno name such as `ENOENT`, or else a kind such as `Closed`. */

export function failure(code: string, message: string): Error {
  return Object.assign(new Error(message), { code });
}

/** An option that this version does not know is refused by name: passed over, it would be a promise not kept. */
export function refuseOthers(call: string, options: object, supported: readonly string[]): void {
  for (const [name, value] of Object.entries(options)) {
    if (value !== undefined && !supported.includes(name)) {
      throw failure("Unsupported", `${call} does not support the option \`${name}\``);
    }
  }
}

/** Gives a failed call the stack of its caller: where it failed itself, nothing of the caller was on the stack. */
export async function traced<T>(call: Promise<T>): Promise<T> {
  try {
    return await call;
  } catch (error) {
    if (error instanceof Error) Error.captureStackTrace(error, traced);
    throw error;
  }
}
