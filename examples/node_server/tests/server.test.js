import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { Refused, Silent } from "../src/engine.js";
import { Store } from "../src/store.js";
import { gives, served } from "./stub.js";

test("what a player has and did goes along, and what is granted comes back", async () => {
  const { engine, get, post, say } = served([gives("necklace", "e1"), gives("ring", "e2")]);
  await post("/player/p/items", { items: ["photo", "photo"] });
  await post("/player/p/actions", { actions: ["visited_factory"] });
  const first = await say("Is this Jason?");
  assert.equal(first.status, 200);
  assert.deepEqual(first.body.player.items, ["photo", "necklace"]);
  assert.deepEqual(engine.asked[0].context, {
    items: ["photo"],
    actions: ["visited_factory"],
    game_state: {},
  });
  await say("Thank you.");
  assert.deepEqual(engine.asked[1].context, {
    quest_stage: "in_progress",
    trust: 0.4,
    relationship: 0.25,
    items: ["photo", "necklace"],
    actions: ["visited_factory"],
    game_state: {},
  });
  const { body } = await get("/player/p");
  assert.deepEqual(body.items, ["photo", "necklace", "ring"]);
  assert.deepEqual(Object.keys(body.quests), ["silvia"]);
});

test("paths that open and states that change are facts of the game", async () => {
  const action = (flag, value) => ({ flag, value, text: "", effect_id: flag });
  const actions = [
    action("unlock_hidden_path", "tunnel"),
    action("change_game_state", "hearth_lit"),
    action("npc_action", "waves"),
    action("give_item", null),
  ];
  const { get, say } = served([gives("", "", { actions })]);
  await say("Show me the way.");
  const { body } = await get("/player/p");
  assert.deepEqual(body.game_state, { tunnel_open: true, hearth_lit: true });
  assert.deepEqual(body.items, []);
});

test("a turn that is sent twice is played once", async () => {
  const { engine, say } = served([gives("necklace", "e1")]);
  const first = await say("Hello.", { turn_id: "t1" });
  assert.deepEqual((await say("Hello.", { turn_id: "t1" })).body, first.body);
  assert.equal(engine.asked.length, 1);
  const other = await say("Goodbye.", { turn_id: "t1" });
  assert.equal(other.status, 409);
  assert.equal(other.body.error.field, "turn_id");
});

test("words that no database keeps are the same words when they are sent again", async () => {
  const { engine, say } = served([gives("necklace", "e1")]);
  const first = await say("Hello\0 half \ud83d", { turn_id: "t1" });
  const again = await say("Hello\0 half \ud83d", { turn_id: "t1" });
  assert.deepEqual(again.body, first.body);
  assert.equal(engine.asked[0].text, "Hello  half \ufffd");
});

test("an effect happens once, whichever turn brings it", async () => {
  const lantern = { flag: "give_item", value: "lantern", text: "", effect_id: "e1" };
  const again = gives("", "", { actions: [lantern] });
  const { say } = served([gives("necklace", "e1"), again]);
  await say("Hello.");
  assert.deepEqual((await say("Hello again.")).body.player.items, ["necklace"]);
});

test("a turn without an answer is asked again with the same id and context", async () => {
  const { engine, post, say } = served([new Silent("gone"), gives("necklace", "e1")]);
  const lost = await say("Is this Jason?");
  assert.equal(lost.status, 503);
  assert.equal(lost.body.error.retryable, true);
  await post("/player/p/items", { items: ["rope"] });
  const found = await say("Is this Jason?", { turn_id: lost.headers["x-turn-id"] });
  assert.deepEqual(engine.asked[1], engine.asked[0]);
  assert.deepEqual(found.body.player.items, ["rope", "necklace"]);
});

test("what an unanswered turn granted is not lost when something else is said", async () => {
  const { engine, say } = served([
    new Silent("gone"),
    new Silent("still gone"),
    gives("necklace", "e1"),
    gives("ring", "e2"),
  ]);
  await say("First.");
  assert.equal((await say("Second.")).status, 503);
  assert.deepEqual((await say("Third.")).body.player.items, ["necklace", "ring"]);
  const texts = engine.asked.map((turn) => turn.text);
  assert.deepEqual(texts, ["First.", "First.", "First.", "Third."]);
});

test("an unanswered turn outlives a restart", async () => {
  const folder = mkdtempSync(join(tmpdir(), "game-"));
  const path = join(folder, "game.db");
  const before = new Store(path);
  const lost = await served([new Silent("gone")], before).say("First.", { turn_id: "t1" });
  assert.equal(lost.status, 503);
  before.close();
  const after = new Store(path);
  const { engine, say } = served([gives("necklace", "e1"), gives("ring", "e2")], after);
  assert.deepEqual((await say("Second.")).body.player.items, ["necklace", "ring"]);
  assert.equal(engine.asked[0].turn_id, "t1");
  after.close();
  rmSync(folder, { recursive: true });
});

test("a turn that the engine refuses leaves nothing behind", async () => {
  const unknown = new Refused({ code: "unknown_npc", message: "who?", field: "npc_id" });
  const odd = new Refused({ code: "internal", message: "odd", field: null });
  const { get, say } = served([unknown, odd, gives("necklace", "e1")]);
  const refused = await say("Hello.", { turn_id: "t1" });
  assert.equal(refused.status, 404);
  assert.deepEqual(refused.body.error, {
    code: "unknown_npc",
    message: "who?",
    retryable: false,
    field: "npc_id",
  });
  assert.equal((await say("Hello.")).status, 502);
  assert.deepEqual((await get("/player/p")).body.quests, {});
  assert.equal((await say("Goodbye.", { turn_id: "t1" })).status, 200);
});

test("two turns of a player at once run one after the other", async () => {
  const { engine, say } = served([gives("necklace", "e1"), gives("ring", "e2")]);
  await Promise.all([say("First."), say("Second.")]);
  assert.deepEqual(engine.asked[1].context.items, ["necklace"]);
});

test("no more goes along than the engine takes, the newest first of all", async () => {
  const { engine, post, say } = served([gives("necklace", "e1")]);
  const names = Array.from({ length: 70 }, (_, number) => `item_${number}`);
  await post("/player/p/items", { items: names.slice(0, 40) });
  await post("/player/p/items", { items: names.slice(40) });
  await say("Hello.");
  assert.deepEqual(engine.asked[0].context.items, names.slice(-64));
});

test("players do not see each other's things", async () => {
  const { get, post } = served([]);
  await post("/player/p/items", { items: ["photo"] });
  assert.deepEqual((await get("/player/q")).body.items, []);
});

test("a body of another shape is refused in plain words", async () => {
  const { engine, get, post, say } = served([]);
  for (const [url, body] of [
    ["/talk", { player_id: "p", npc_id: "silvia" }],
    ["/talk", { player_id: 7, npc_id: "silvia", text: "Hello." }],
    ["/talk", { player_id: "p", npc_id: "silvia", text: "Hello.", npc: "x" }],
    ["/player/p/items", { items: "photo" }],
    ["/player/p/items", { items: [] }],
    ["/player/p/items", { items: ["half a \ud83d"] }],
    ["/talk", { player_id: "p", npc_id: "silvia", text: "Hello.", turn_id: "two\nlines" }],
  ]) {
    const { status, body: told } = await post(url, body);
    assert.equal(status, 400, JSON.stringify(body));
    assert.equal(told.error.code, "invalid_request");
  }
  assert.equal((await say("")).status, 400);
  assert.equal((await say("a".repeat(20_000))).status, 413);
  assert.equal((await get("/nowhere")).status, 404);
  assert.equal(engine.asked.length, 0);
});

test("a failure of the server itself tells no details", async () => {
  const { say } = served([new TypeError("secret")]);
  const { status, body } = await say("Hello.");
  assert.equal(status, 500);
  assert.doesNotMatch(body.error.message, /secret/);
});
