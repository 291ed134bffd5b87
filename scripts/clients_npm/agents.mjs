// Coding agents without a screen: opencode and Qwen Code, with the prompts and tools that they
// bring. Each is asked for the weather, for which the model has it run a command.
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import * as p from "./program.mjs";

const BIN = join(fileURLToPath(new URL(".", import.meta.url)), "node_modules", ".bin");
const place = mkdtempSync(join(tmpdir(), "agent-"));
const work = join(place, "work");
mkdirSync(work);

function run(command, args, env) {
  return new Promise((resolve, reject) => {
    const home = { HOME: place, PWD: work, XDG_CONFIG_HOME: place, XDG_DATA_HOME: place };
    const child = spawn(join(BIN, command), args, {
      cwd: work,
      env: { ...process.env, ...home, XDG_CACHE_HOME: place, XDG_STATE_HOME: place, ...env },
      stdio: ["ignore", "pipe", "pipe"],
      timeout: 400_000,
    });
    let [out, err] = ["", ""];
    child.stdout.on("data", (data) => (out += data));
    child.stderr.on("data", (data) => (err += data));
    child.on("error", reject);
    child.on("close", (code) =>
      code === 0 ? resolve(out) : reject(new Error(`ended with ${code}: ${(err + out).slice(-500)}`)),
    );
  });
}

async function opencode() {
  const model = { name: "Taught", limit: { context: 262144, output: 4096 } };
  const provider = {
    npm: "@ai-sdk/openai-compatible",
    name: "Sightline",
    options: { baseURL: p.BASE, apiKey: p.KEY },
    models: { [p.MODEL]: model },
  };
  const config = {
    $schema: "https://opencode.ai/config.json",
    autoupdate: false,
    share: "disabled",
    provider: { sightline: provider },
    permission: "allow",
  };
  writeFileSync(join(work, "opencode.json"), JSON.stringify(config));
  return run("opencode", ["run", "-m", `sightline/${p.MODEL}`, p.WEATHER], {
    OPENCODE_DISABLE_MODELS_FETCH: "1",
  });
}

const qwen = () =>
  run("qwen", ["--yolo", p.WEATHER], {
    OPENAI_API_KEY: p.KEY,
    OPENAI_BASE_URL: p.BASE,
    OPENAI_MODEL: p.MODEL,
    QWEN_TELEMETRY_ENABLED: "false",
  });

const AGENTS = { opencode: ["opencode-ai", opencode], qwen: ["@qwen-code/qwen-code", qwen] };
const [name, ask] = AGENTS[process.argv[2]];
await p.report(name, {
  async tools() {
    p.expectIn(p.SUNNY, await ask());
    p.expect(readFileSync(join(work, "marmot.txt"), "utf8"), "sunny in Ulm\n");
  },
});
