/**
 * The engine behind an address: a turn is asked for until there is an answer, always with the same
 * `turn_id` and context, so that the engine plays it once however often the line breaks.
 *
 * Knows nothing of players' state or HTTP.
 */
import { setTimeout as pause } from "node:timers/promises";

import { Client } from "@gradio/client";

/** The engine will not play the turn as it stands; nothing happened. */
export class Refused extends Error {
  constructor({ code, message, field }) {
    super(message);
    this.code = code;
    this.field = field;
  }
}

/** No answer after all tries. The turn may have been played: ask again with the same id. */
export class Silent extends Error {}

export class Engine {
  #client = null;

  /**
   * @param {object} options
   * @param {string} options.url of the engine's page
   * @param {number} [options.timeoutMs] how long one try may take
   * @param {number} [options.tries] how often a turn is asked for
   * @param {number} [options.pauseMs] before the second try; doubles with each
   * @param {(url: string) => Promise<any>} [options.connect] makes a client; tests give their own
   */
  constructor({ url, timeoutMs = 30_000, tries = 4, pauseMs = 500, connect = connected }) {
    Object.assign(this, { url, timeoutMs, tries, pauseMs, connect });
  }

  /**
   * Play a turn and return the engine's result.
   *
   * @param {{text: string, npc_id: string, player_id: string, context: object, turn_id: string}}
   *   turn
   * @throws {Refused | Silent}
   */
  async ask(turn) {
    let problem = "no try was made";
    for (let tried = 0; tried < this.tries; tried += 1) {
      if (tried > 0) await pause(this.pauseMs * 2 ** (tried - 1));
      const { result, error } = await this.#once(turn);
      if (result) return result;
      if (!error.retryable) throw new Refused(error);
      problem = error.message;
    }
    throw new Silent(`the engine does not answer: ${problem}`);
  }

  /** One try: `{ result }`, or `{ error }`, in which a broken or slow line counts as retryable. */
  async #once(turn) {
    this.#client ??= this.connect(this.url);
    const client = this.#client;
    try {
      const asked = client.then((one) => one.predict("/ask", turn));
      const answer = (await within(this.timeoutMs, asked))?.data?.[0];
      if (answer?.error) return { error: answer.error };
      if (answer?.meta) return { result: answer };
      throw new Error("the answer is no turn");
    } catch (broken) {
      // The others that use this connection go on with it; the next try makes a new one.
      if (this.#client === client) this.#client = null;
      return { error: { message: broken?.message ?? String(broken), retryable: true } };
    }
  }
}

function connected(url) {
  return Client.connect(url, { events: ["data"], record_history: false });
}

/** Wait for `promise`, but not for longer than `ms` milliseconds. */
async function within(ms, promise) {
  const stop = new AbortController();
  const late = pause(ms, null, { signal: stop.signal }).then(() => {
    throw new Error(`no answer in ${ms} ms`);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    stop.abort();
    late.catch(() => {});
    promise.catch(() => {});
  }
}
