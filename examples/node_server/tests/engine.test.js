import assert from "node:assert/strict";
import { test } from "node:test";

import { Engine, Refused, Silent } from "../src/engine.js";
import { gives } from "./stub.js";

const TURN = { text: "Hello.", npc_id: "silvia", player_id: "p", context: {}, turn_id: "t1" };
const BUSY = { error: { code: "busy", message: "busy", retryable: true, field: null } };
const UNKNOWN = {
  error: { code: "unknown_npc", message: "who?", retryable: false, field: "npc_id" },
};
const NEVER = new Promise(() => {});

/** An engine whose client answers with `answers`: an Error breaks the line, NEVER hangs. */
function engine(...answers) {
  const seen = { asked: [], connections: 0 };
  const predict = async (name, turn) => {
    seen.asked.push([name, turn]);
    const answer = await answers.shift();
    if (answer instanceof Error) throw answer;
    return { data: [answer] };
  };
  const connect = async () => {
    seen.connections += 1;
    return { predict };
  };
  return { seen, engine: new Engine({ url: "", timeoutMs: 20, pauseMs: 1, connect }) };
}

test("an answer is returned as it is", async () => {
  const answer = gives("necklace", "e1");
  const { engine: one, seen } = engine(answer, answer);
  assert.equal(await one.ask(TURN), answer);
  assert.equal(await one.ask(TURN), answer);
  assert.deepEqual(seen.asked[0], ["/ask", TURN]);
  assert.equal(seen.connections, 1);
});

test("busy, a broken line and a slow one are tried again with the same turn", async () => {
  const answer = gives("necklace", "e1");
  const { engine: one, seen } = engine(BUSY, new Error("broken"), NEVER, answer);
  assert.equal(await one.ask(TURN), answer);
  assert.deepEqual(new Set(seen.asked.map(([, turn]) => turn)), new Set([TURN]));
  assert.equal(seen.connections, 3); // busy is an answer: the line is good
});

test("what is refused is not tried again", async () => {
  const { engine: one, seen } = engine(UNKNOWN);
  const refused = (error) => error instanceof Refused && error.field === "npc_id";
  await assert.rejects(one.ask(TURN), refused);
  assert.equal(seen.asked.length, 1);
});

test("an engine that never answers is given up, in plain words", async () => {
  const { engine: one, seen } = engine(BUSY, BUSY, BUSY, BUSY);
  const silent = (error) => error instanceof Silent && /busy/.test(error.message);
  await assert.rejects(one.ask(TURN), silent);
  assert.equal(seen.asked.length, 4);
});

test("an engine that is not there yet is connected to later", async () => {
  let tries = 0;
  const connect = async () => {
    tries += 1;
    if (tries < 3) throw new Error("refused");
    return { predict: async () => ({ data: [gives("necklace", "e1")] }) };
  };
  const one = new Engine({ url: "", pauseMs: 1, connect });
  assert.equal((await one.ask(TURN)).text, "Here you are.");
});

test("an answer of another form is no turn", async () => {
  const { engine: one } = engine("hello", null, {}, undefined);
  await assert.rejects(one.ask(TURN), /the answer is no turn/);
});
