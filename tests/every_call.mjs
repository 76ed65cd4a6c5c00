/**
 * Makes the calls that come as JSON lines on stdin with the JavaScript client, in order, and prints
 * each answer as a JSON line. `{"stream": true}` lists every event of a call, `{"times": N}` makes it
 * from N clients at once.
 *
 *     node every_call.mjs http://127.0.0.1:7860 < calls.jsonl
 */
import { createInterface } from "node:readline";

import { Client } from "@gradio/client";

const url = process.argv[2];
const connect = () => Client.connect(url, { events: ["data", "status"] });
const client = await connect();

async function events(name, given) {
  const found = [];
  for await (const event of client.submit(name, given)) {
    // A copy: the client writes the next event's changes into the last one's object.
    if (event.type === "data") found.push(structuredClone(event.data[0]));
    if (event.type === "status" && event.stage === "complete") break;
    if (event.type === "status" && event.stage === "error") throw new Error(event.message);
  }
  return found;
}

async function crowd(name, given, times) {
  const clients = await Promise.all(Array.from({ length: times }, connect));
  const answers = clients.map((one, at) =>
    one.predict(name, { ...given, player_id: `${given.player_id}-${at}` }),
  );
  return (await Promise.all(answers)).map((answer) => answer.data[0]);
}

for await (const line of createInterface({ input: process.stdin })) {
  const { name, given, stream = false, times = 0 } = JSON.parse(line);
  const answer = stream
    ? await events(name, given)
    : times
      ? await crowd(name, given, times)
      : (await client.predict(name, given)).data[0];
  console.log(JSON.stringify({ name, answer }));
}
process.exit(0);
