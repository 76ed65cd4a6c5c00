/**
 * One turn of talk, from words to applied decision, and what to do where it was cut short.
 *
 * A player's turns run one after the other. A turn that was asked for and has no result yet may
 * have been played by the engine, so it is finished before another begins: what it granted is not
 * lost.
 */
import { Refused } from "./engine.js";

/** This turn id stands for other words. */
export class TurnTaken extends Error {}

export class Talks {
  #last = new Map();

  /**
   * @param {import("./store.js").Store} store
   * @param {{ask: (turn: object) => Promise<object>}} engine
   */
  constructor(store, engine) {
    this.store = store;
    this.engine = engine;
  }

  /** Say something to an NPC; return the engine's result, applied. A turn is played once. */
  talk(playerId, npcId, said, turnId) {
    // Half characters and NULs would come back from the database as something else.
    const text = said.toWellFormed().replaceAll("\0", " ");
    return this.#inOrder(playerId, async () => {
      const known = this.store.turn(playerId, turnId);
      if (known && (known.npc_id !== npcId || known.text !== text)) {
        throw new TurnTaken(`turn_id ${turnId} was used for other words; take a new one`);
      }
      if (known) return known.result ?? this.#play(known);
      await this.#finish(this.store.pending(playerId));
      return this.#play(this.store.begin(playerId, npcId, text, turnId));
    });
  }

  async #play(turn) {
    const { player_id, npc_id, text, context, turn_id } = turn;
    try {
      const result = await this.engine.ask({ text, npc_id, player_id, context, turn_id });
      this.store.apply(turn, result);
      return result;
    } catch (error) {
      if (error instanceof Refused) this.store.drop(turn);
      throw error;
    }
  }

  async #finish(turn) {
    if (!turn) return;
    try {
      await this.#play(turn);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
    }
  }

  /** Run `job` when the player's earlier ones are through. */
  async #inOrder(playerId, job) {
    const mine = (this.#last.get(playerId) ?? Promise.resolve()).then(job);
    const through = mine.catch(() => {});
    this.#last.set(playerId, through);
    try {
      return await mine;
    } finally {
      if (this.#last.get(playerId) === through) this.#last.delete(playerId);
    }
  }
}
