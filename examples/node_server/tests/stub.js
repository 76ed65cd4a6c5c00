/** A stub of the engine, which answers by a list and remembers the questions; a server on it. */
import { build } from "../src/server.js";
import { Store } from "../src/store.js";

/** Return a result as the engine sends it, that gives `item` under `effect`. */
export function gives(item, effect, more = {}) {
  const text = `You get the ${item}.`;
  const action = { flag: "give_item", value: item, text, effect_id: effect };
  return {
    text: "Here you are.",
    delta: { trust: 0.1, relationship: 0.05 },
    flags: { give_item: true },
    meta: {
      next_quest_stage: "in_progress",
      state: { trust: 0.4, relationship: 0.25 },
      actions: [action],
      ...more,
    },
  };
}

/** An engine that answers its turns one by one with `answers`; an Error among them is thrown. */
export class StubEngine {
  asked = [];

  constructor(...answers) {
    this.answers = answers;
  }

  async ask(turn) {
    this.asked.push(turn);
    await null;
    const answer = this.answers.shift();
    if (answer instanceof Error) throw answer;
    return { ...answer, meta: { ...answer.meta, turn_id: turn.turn_id, npc_id: turn.npc_id } };
  }
}

/** Return a way to call a server whose engine answers with `answers`, and that engine. */
export function served(answers, store = new Store(":memory:")) {
  const engine = new StubEngine(...answers);
  const app = build(store, engine);
  const send = async (method, url, payload) => {
    const response = await app.inject({ method, url, payload });
    return { status: response.statusCode, headers: response.headers, body: response.json() };
  };
  return {
    engine,
    get: (url) => send("GET", url),
    post: (url, body) => send("POST", url, body),
    say: (text, more) =>
      send("POST", "/talk", { player_id: "p", npc_id: "silvia", text, ...more }),
  };
}
