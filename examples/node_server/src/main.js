/** Starts the server by the settings in the environment, and stops it when told to. */
import { Engine } from "./engine.js";
import { build } from "./server.js";
import { Store } from "./store.js";

const env = process.env;
const store = new Store(env.DATABASE ?? "game.db");
const engine = new Engine({
  url: env.ENGINE_URL ?? "http://127.0.0.1:7860",
  timeoutMs: Number(env.ENGINE_TIMEOUT_MS ?? 30_000),
});
const app = build(store, engine, true);

for (const signal of ["SIGINT", "SIGTERM"]) {
  process.once(signal, async () => {
    await app.close(); // turns that are under way are answered first
    store.close();
    process.exit(0);
  });
}

const address = await app.listen({ host: env.HOST ?? "127.0.0.1", port: Number(env.PORT ?? 8080) });
console.log(`listening at ${address}`);
