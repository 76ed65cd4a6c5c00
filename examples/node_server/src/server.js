/** The HTTP side: routes, what they take, and errors in the engine's own form. */
import { randomUUID } from "node:crypto";

import Fastify from "fastify";

import { Refused, Silent } from "./engine.js";
import { MOST_NAMES } from "./store.js";
import { Talks, TurnTaken } from "./talk.js";

// Names go into a header and into every later context: what the engine refuses must not get in.
const NAME = { type: "string", pattern: "^[\\w.:-]{1,64}$" };
const NAMES = { type: "array", items: NAME, minItems: 1, maxItems: MOST_NAMES };
const PARAMS = object({ id: NAME });
const TALK = object(
  { player_id: NAME, npc_id: NAME, text: { type: "string", minLength: 1 }, turn_id: NAME },
  ["turn_id"],
);
const REFUSED = { unknown_npc: 404, conflict: 409, invalid_request: 400 };

/**
 * @param {import("./store.js").Store} store
 * @param {{ask: (turn: object) => Promise<object>}} engine
 * @param {boolean} [logger]
 */
export function build(store, engine, logger = false) {
  const talks = new Talks(store, engine);
  // Nothing is bent into shape: a misspelt key or a number for a name is the caller's to hear of.
  const strict = { coerceTypes: false, removeAdditional: false };
  const app = Fastify({ logger, bodyLimit: 16_384, ajv: { customOptions: strict } });

  app.post("/talk", { schema: { body: TALK } }, async (request, reply) => {
    const { player_id, npc_id, text, turn_id = randomUUID() } = request.body;
    reply.header("x-turn-id", turn_id); // on a 503 too: what to try again with
    return told(await talks.talk(player_id, npc_id, text, turn_id), store.player(player_id));
  });

  app.get("/player/:id", { schema: { params: PARAMS } }, async ({ params }) =>
    store.player(params.id),
  );

  for (const [kind, list] of [["item", "items"], ["action", "actions"]]) {
    const schema = { params: PARAMS, body: object({ [list]: NAMES }) };
    app.post(`/player/:id/${list}`, { schema }, async ({ params, body }) => {
      store.own(params.id, kind, body[list]);
      return store.player(params.id);
    });
  }

  app.setNotFoundHandler((request, reply) =>
    failed(reply, 404, "invalid_request", `there is no ${request.method} ${request.url}`),
  );
  app.setErrorHandler((error, request, reply) => {
    const { code, message, field } = error;
    if (error instanceof Refused) return failed(reply, REFUSED[code] ?? 502, code, message, field);
    if (error instanceof TurnTaken) return failed(reply, 409, "conflict", message, "turn_id");
    if (error instanceof Silent) {
      return failed(reply.header("retry-after", 2), 503, "silent", message);
    }
    if (error.statusCode < 500) {
      return failed(reply, error.statusCode, "invalid_request", message);
    }
    request.log.error(error);
    return failed(reply, 500, "internal", "the game server failed; its log says how");
  });
  return app;
}

/** Return what the game client is told of a turn. */
function told({ text, delta, meta }, player) {
  return {
    turn_id: meta.turn_id,
    npc_id: meta.npc_id,
    text,
    delta,
    quest_stage: meta.next_quest_stage,
    actions: meta.actions.map(({ flag, value, text: words }) => ({ flag, value, text: words })),
    player,
  };
}

function failed(reply, status, code, message, field = null) {
  return reply.code(status).send({ error: { code, message, retryable: status === 503, field } });
}

function object(properties, optional = []) {
  const required = Object.keys(properties).filter((name) => !optional.includes(name));
  return { type: "object", properties, required, additionalProperties: false };
}
