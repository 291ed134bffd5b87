// What a client's program is told, and how it tells what came of each feature; as
// scripts/clients/program.py is for those in Python.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const { env } = process;
export const BASE = env.SIGHTLINE_TAUGHT;
export const EYES = env.SIGHTLINE_DEMO;
export const ANSWER = env.SIGHTLINE_ANSWER;
export const SUNNY = env.SIGHTLINE_SUNNY;
export const KEY = "none";
export const MODEL = "taught";
export const QUESTION = "What is the capital of France?";
export const WEATHER = "What is the weather in Ulm?";
export const STORY = "Tell a long story.";
export const LOOK = "What is in this picture?";
export const BADGER = "badger";
export const TOO_LONG = "word ".repeat(Number(env.SIGHTLINE_CONTEXT) / 4);
export const CITIES = ["Paris", "Rome", "Ulm"];

export const picture = () => readFileSync(env.SIGHTLINE_PICTURE);
export const pictureUri = () => `data:image/png;base64,${picture().toString("base64")}`;

export function expect(told, wanted) {
  const [one, other] = [JSON.stringify(told), JSON.stringify(wanted)];
  if (one !== other) throw new Error(`${one} is not ${other}`);
}

export function expectIn(wanted, told) {
  if (!String(told).includes(wanted)) throw new Error(`${wanted} is not in ${told}`);
}

export function expectPieces(pieces) {
  expect(pieces.join(""), ANSWER);
  if (pieces.length < 4) throw new Error(`it came in ${pieces.length} pieces`);
}

export function expectUsage(prompt, answer) {
  if (!(prompt > QUESTION.length && answer > 4 && answer < ANSWER.length))
    throw new Error(`usage tells ${prompt} and ${answer}`);
}

// What is done must fail with these words of the server.
export async function refused(done, ...words) {
  let error;
  try {
    await done();
  } catch (thrown) {
    error = thrown;
  }
  if (error === undefined) throw new Error("nothing was thrown");
  for (const word of words.length ? words : ["context ends at"]) expectIn(word, error);
  return error;
}

async function figure(name) {
  const reply = await fetch(BASE.replace(/\/v1$/, "") + "/metrics");
  const line = (await reply.text()).split("\n").find((one) => one.startsWith(`${name} `));
  return line ? Number(line.split(" ").at(-1)) : 0;
}

// What is left within must be seen by the server within seconds.
export async function cancelled(leave) {
  const name = 'sightline_answers_total{reason="cancelled"}';
  const before = await figure(name);
  await leave();
  const deadline = Date.now() + 20_000;
  while ((await figure(name)) === before) {
    if (Date.now() > deadline) throw new Error("the server went on with the answer");
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

function versionOf(name) {
  for (const folder of createRequire(import.meta.url).resolve.paths(name)) {
    try {
      return JSON.parse(readFileSync(join(folder, name, "package.json"))).version;
    } catch {
      continue;
    }
  }
  return "";
}

export async function report(name, features) {
  console.log(JSON.stringify({ package: name, version: versionOf(name) }));
  const only = (env.SIGHTLINE_FEATURES ?? "").split(" ").filter(Boolean);
  for (const [feature, done] of Object.entries(features)) {
    if (only.length && !only.includes(feature)) continue;
    let problem = null;
    try {
      await done();
    } catch (error) {
      problem = String(error?.stack ?? error).slice(0, 600);
    }
    console.log(JSON.stringify({ feature, problem }));
  }
  process.exit(0); // some keep connections, and with them the program, for a while
}
