/**
 * The players' state in SQLite: what they have and did, where they stand with whom, which turns are
 * under way, which effects have happened.
 *
 * A turn is written down before it is asked for and marked done in the transaction that applies it.
 * Knows nothing of the engine's address or HTTP.
 */
import Database from "libsql";

/** As many names as the engine takes in one list; the newest are sent. */
export const MOST_NAMES = 64;

const SCHEMA = `
  PRAGMA journal_mode = WAL;
  PRAGMA synchronous = FULL;
  CREATE TABLE IF NOT EXISTS owned (
    player_id TEXT, kind TEXT CHECK (kind IN ('item', 'action')), name TEXT,
    PRIMARY KEY (player_id, kind, name)
  );
  CREATE TABLE IF NOT EXISTS facts (
    player_id TEXT, name TEXT, value TEXT, PRIMARY KEY (player_id, name)
  );
  CREATE TABLE IF NOT EXISTS quests (
    player_id TEXT, npc_id TEXT, quest_stage TEXT, trust REAL, relationship REAL,
    PRIMARY KEY (player_id, npc_id)
  );
  CREATE TABLE IF NOT EXISTS turns (
    player_id TEXT, turn_id TEXT, npc_id TEXT, text TEXT, context TEXT, result TEXT,
    PRIMARY KEY (player_id, turn_id)
  );
  CREATE TABLE IF NOT EXISTS effects (
    effect_id TEXT PRIMARY KEY, player_id TEXT, npc_id TEXT, flag TEXT, value TEXT
  );
`;

/** What a fired flag changes in this game. A flag that is not here is for the client to show. */
const EFFECTS = {
  give_item: (store, player, value) => store.own(player, "item", [value]),
  change_game_state: (store, player, value) => store.setFact(player, value, true),
  unlock_hidden_path: (store, player, value) => store.setFact(player, `${value}_open`, true),
};

export class Store {
  #db;

  /** @param {string} path of the database file; ":memory:" for a test */
  constructor(path) {
    this.#db = new Database(path);
    this.#db.exec(SCHEMA);
  }

  close() {
    this.#db.close();
  }

  /** Return all that a player has, did, and stands for; a stranger's is empty. */
  player(playerId) {
    const quests = this.#all("SELECT * FROM quests WHERE player_id = ?", playerId);
    const facts = this.#all("SELECT * FROM facts WHERE player_id = ? ORDER BY rowid", playerId);
    return {
      player_id: playerId,
      items: this.#owned(playerId, "item"),
      actions: this.#owned(playerId, "action"),
      game_state: Object.fromEntries(facts.map((fact) => [fact.name, JSON.parse(fact.value)])),
      quests: Object.fromEntries(
        quests.map(({ player_id: _, npc_id: npcId, ...rest }) => [npcId, rest]),
      ),
    };
  }

  /** Give a player items, or note what the player has done (`kind` "item" or "action"). */
  own(playerId, kind, names) {
    for (const name of names) {
      this.#run("INSERT OR IGNORE INTO owned VALUES (?, ?, ?)", playerId, kind, name);
    }
  }

  setFact(playerId, name, value) {
    const sql = "INSERT OR REPLACE INTO facts VALUES (?, ?, ?)";
    this.#run(sql, playerId, name, JSON.stringify(value));
  }

  /** Write a turn down, with the context that every try of it will send, and return it. */
  begin(playerId, npcId, text, turnId) {
    const { quests, items, actions, game_state } = this.player(playerId);
    const context = {
      ...quests[npcId],
      items: items.slice(-MOST_NAMES),
      actions: actions.slice(-MOST_NAMES),
      game_state: Object.fromEntries(Object.entries(game_state).slice(-MOST_NAMES)),
    };
    this.#run(
      "INSERT INTO turns VALUES (?, ?, ?, ?, ?, NULL)",
      playerId, turnId, npcId, text, JSON.stringify(context),
    );
    return this.turn(playerId, turnId);
  }

  /** Return a turn, with its `result` if it is done; undefined if there is none. */
  turn(playerId, turnId) {
    const sql = "SELECT * FROM turns WHERE player_id = ? AND turn_id = ?";
    return read(this.#all(sql, playerId, turnId));
  }

  /** Return the player's turn that has no result yet. */
  pending(playerId) {
    return read(this.#all("SELECT * FROM turns WHERE player_id = ? AND result IS NULL", playerId));
  }

  /** Forget a turn that was never played. */
  drop({ player_id, turn_id }) {
    this.#run("DELETE FROM turns WHERE player_id = ? AND turn_id = ?", player_id, turn_id);
  }

  /** Let a turn's decision happen: all of it or nothing, the turn once, and each effect once. */
  apply(turn, result) {
    this.#db.transaction(() => {
      const { player_id: player, npc_id: npc } = turn;
      const { meta } = result;
      const done = this.#run(
        "UPDATE turns SET result = ? WHERE player_id = ? AND turn_id = ? AND result IS NULL",
        JSON.stringify(result), player, turn.turn_id,
      );
      if (done.changes === 0) return;
      this.#run(
        "INSERT OR REPLACE INTO quests VALUES (?, ?, ?, ?, ?)",
        player, npc, meta.next_quest_stage, meta.state.trust, meta.state.relationship,
      );
      for (const { effect_id, flag, value } of meta.actions) {
        const fresh = this.#run(
          "INSERT OR IGNORE INTO effects VALUES (?, ?, ?, ?, ?)",
          effect_id, player, npc, flag, value,
        );
        if (fresh.changes === 1 && value !== null) EFFECTS[flag]?.(this, player, value);
      }
    })();
  }

  #owned(playerId, kind) {
    const sql = "SELECT name FROM owned WHERE player_id = ? AND kind = ? ORDER BY rowid";
    return this.#all(sql, playerId, kind).map((row) => row.name);
  }

  #all(sql, ...values) {
    return this.#db.prepare(sql).all(...values);
  }

  #run(sql, ...values) {
    return this.#db.prepare(sql).run(...values);
  }
}

/** Return the first of these rows as a turn. */
function read([row]) {
  if (!row) return undefined;
  return { ...row, context: JSON.parse(row.context), result: JSON.parse(row.result) };
}
