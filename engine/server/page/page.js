// The chat page: what is asked, what is answered, and what is kept for the next visit.

import { listModels, requestAnswer } from "./api.js";
import { copyButton, el, setIcon } from "./dom.js";
import { keyAsker } from "./key.js";
import { renderMarkdown } from "./markdown.js";
import { contentOf, isText, picturesOf, showParts } from "./parts.js";
import { partsTray } from "./tray.js";
import * as store from "./store.js";

const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));
const options = store.loadOptions();
const tray = partsTray(ui, notice, fitText); // what the next message holds before the text box
const withKey = keyAsker(ui);

// A turn is {parts, answer}, its parts those of the question, and an answer
// {state, text, status, stats, note, error}, its state one of running, done, stopped, failed.
let turns = [];
let running = null; // the AbortController of the answer that is being written
let atEnd = true; // whether to stay with the end of the conversation as it grows
const views = new WeakMap(); // the nodes of each turn

const allPictures = () => turns.flatMap(picturesOf);

// --- The conversation on the page ---------------------------------------------------------

function showTurn(turn) {
  const question = el("article", { class: "question" }, el("h2", { class: "hidden" }, "You"), ...showParts(turn.parts));
  const thought = el("details", { class: "thought", hidden: true }, el("summary", {}, "Thought"), el("p", { class: "words", dir: "auto" }));
  const body = el("div", { class: "body", dir: "auto" });
  const foot = el("div", { class: "foot" });
  // The conversation is a live region; of an answer, only the whole is read out, by `announce`.
  const answer = el("article", { class: "answer", "aria-live": "off", hidden: true }, el("h2", { class: "hidden" }, "Answer"), thought, body, foot);
  views.set(turn, { question, answer, thought, body, foot });
  ui.log.append(question, answer);
  showAnswer(turn);
}

function showAnswer(turn) {
  const { answer } = turn;
  const { question, answer: node, thought, body, foot } = views.get(turn);
  question.classList.toggle("left-out", isLeftOut(turn));
  node.hidden = !answer;
  if (!answer) return;
  thought.hidden = !answer.thought;
  if (answer.thought) thought.lastChild.textContent = answer.thought;
  renderMarkdown(body, answer.text);
  const isRunning = answer.state === "running";
  node.setAttribute("aria-busy", isRunning);
  const status = answer.thought ? "Thinking" : answer.status;
  const note = isRunning ? (answer.text ? "" : status) : answerNote(turn);
  foot.replaceChildren();
  if (note) foot.append(el("p", { class: isRunning ? "status" : "stats" }, note));
  if (answer.error) foot.append(el("p", { class: "error" }, answer.error));
  if (isRunning) return;
  if ((answer.state === "failed" || !answer.text) && turn === turns.at(-1)) {
    foot.append(
      el("button", { type: "button", class: "outlined", onclick: () => tryAgain(turn) }, "Try again"),
      el("button", { type: "button", class: "outlined", onclick: () => edit(turn) }, "Edit the message"));
  } else if (answer.text) {
    foot.append(copyButton("Copy the answer", () => answer.text));
  }
}

function answerNote(turn) {
  const { answer } = turn;
  const stopped = answer.state === "stopped" && (answer.text ? "stopped" : "stopped before an answer");
  const out = isLeftOut(turn) && "left out of what follows";
  return [answer.stats, stopped, answer.note, out].filter(Boolean).join(" · ");
}

function showAll() {
  ui.log.setAttribute("aria-live", "off"); // what was there before is not news
  ui.log.replaceChildren();
  turns.forEach(showTurn);
  ui.empty.hidden = turns.length > 0;
  requestAnimationFrame(() => ui.log.setAttribute("aria-live", "polite"));
}

function describe(usage) {
  const count = (number, word) => `${number.toLocaleString("en-GB")} ${word}${number === 1 ? "" : "s"}`;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const own = usage.sightline ?? {};
  const parts = [`${count(usage.prompt_tokens, "token")} (${cached.toLocaleString("en-GB")} cached)`];
  if (own.time_to_first_token != null) parts.push(`first token ${own.time_to_first_token.toFixed(2)} s`);
  if (own.tokens_per_second) parts.push(`${own.tokens_per_second.toFixed(1)} tokens/s`);
  if (own.images_encoded) parts.push(`${count(own.images_encoded, "picture")} encoded`);
  if (own.images_reused) parts.push(`${count(own.images_reused, "picture")} reused`);
  return parts.join(" · ");
}

function announce(text) {
  ui.announcer.textContent = text;
}

/** A line above the message box, with one action at most, until the next message. */
function notice(text = "", label = "", action = null) {
  ui.notice.replaceChildren(text);
  const act = () => {
    notice();
    action();
  };
  if (action) ui.notice.append(" ", el("button", { type: "button", class: "link", onclick: act }, label));
}

// --- Asking -------------------------------------------------------------------------------

/** Whether the turn takes part in what is sent: it was answered, were it in part. */
const isPart = ({ answer }) => Boolean(answer?.text);
const isLeftOut = (turn) => !isPart(turn) && turn !== turns.at(-1);

async function send() {
  const parts = running ? [] : tray.take();
  if (!parts.length) return;
  const turn = { parts, answer: null };
  notice();
  announce("");
  const earlier = turns.at(-1);
  turns.push(turn);
  if (earlier) showAnswer(earlier); // it loses its "Try again"
  showTurn(turn);
  ui.empty.hidden = true;
  followEnd(true);
  await ask(turn);
}

function tryAgain(turn) {
  ui.text.focus(); // the button that has the focus goes
  return ask(turn);
}

function edit(turn) {
  turns.pop();
  tray.put(turn.parts.filter((part) => isText(part) || part.blob));
  showAll();
  save();
  ui.text.focus();
}

async function ask(turn) {
  running = new AbortController();
  const { signal } = running;
  const answer = (turn.answer = { state: "running", text: "", status: "Waiting for the model" });
  showRunning();
  showAnswer(turn);
  save();
  keepPictures();
  try {
    const messages = await writeMessages(turn);
    if (!ui.model.value) await loadModels();
    const body = { model: ui.model.value, messages, ...numbers() };
    const events = await withKey((key) => requestAnswer(body, key, signal));
    for await (const event of events) {
      if (event.text) answer.text += event.text;
      if (event.thought) answer.thought = (answer.thought ?? "") + event.thought;
      if (event.status) answer.status = event.status;
      if (event.usage) answer.stats = describe(event.usage);
      if (event.finish === "length") answer.note = "cut off at the token limit";
      showSoon(turn);
    }
    answer.state = "done";
    if (!answer.text) answer.note = ["The answer is empty", answer.note].filter(Boolean).join(", ");
  } catch (problem) {
    answer.state = signal.aborted ? "stopped" : "failed";
    if (!signal.aborted) answer.error = problem.message;
    if (problem.status === 404) ui.model.replaceChildren(); // perhaps the server has another by now
  }
  running = null;
  showRunning();
  if (!turns.includes(turn)) return; // a new chat was begun
  showAnswer(turn);
  const words = [...views.get(turn).body.children].map((block) => block.textContent).join("\n");
  announce([words, answer.state === "stopped" && "Stopped.", answer.error].filter(Boolean).join("\n"));
  save();
}

function stop() {
  running?.abort();
}

let due = null;

/** Shows the turn's state at the next frame, however many tokens come before it. */
function showSoon(turn) {
  due ??= requestAnimationFrame(() => {
    due = null;
    if (turn.answer?.state === "running") showAnswer(turn);
  });
}

function showRunning() {
  const label = running ? "Stop" : "Send";
  ui.send.setAttribute("aria-label", label);
  ui.send.title = label;
  setIcon(ui.send.firstElementChild, label.toLowerCase());
  ui.send.classList.toggle("stops", Boolean(running));
}

async function writeMessages(last) {
  await restored;
  const messages = options.system ? [{ role: "system", content: options.system }] : [];
  for (const turn of turns) {
    if (turn !== last && !isPart(turn)) continue;
    messages.push({ role: "user", content: await contentOf(turn.parts) });
    const { text, thought } = turn.answer ?? {};
    if (turn !== last) messages.push({ role: "assistant", content: text, reasoning_content: thought });
  }
  return messages;
}

function numbers() {
  const chosen = {};
  if (Number.isFinite(options.temperature)) chosen.temperature = options.temperature;
  if (options.maxTokens > 0) chosen.max_tokens = options.maxTokens;
  return chosen;
}

async function loadModels() {
  const ids = await withKey(listModels);
  ui.model.replaceChildren(...ids.map((id) => el("option", { value: id }, id)));
  if (ids.includes(options.model)) ui.model.value = options.model;
  ui.model.hidden = ids.length < 2;
  ui.modelName.textContent = ids.length < 2 ? ids.join() : "";
}

// --- What is kept -------------------------------------------------------------------------

function save() {
  if (!store.saveTurns(turns)) notice("This conversation has become too long for this browser to keep.");
}

async function keepPictures() {
  const pictures = allPictures();
  if ((await store.keepPictures(pictures)) || !pictures.length) return;
  notice("Some pictures of this conversation will be gone after a reload: this browser has no room for them.");
}

async function restore() {
  const blobs = new Map(allPictures().map(({ id, blob }) => [id, blob]));
  turns = store.loadTurns();
  for (const { answer } of turns) {
    if (answer?.state !== "running") continue;
    answer.state = answer.text ? "stopped" : "failed";
    if (!answer.text) answer.error = "The page was closed before the answer came.";
  }
  for (const picture of allPictures()) picture.blob = blobs.get(picture.id);
  showAll();
  await store.fetchPictures(allPictures());
  for (const picture of allPictures()) picture.lost = !picture.blob;
  if (allPictures().length) showAll();
}

function newChat() {
  const cleared = turns;
  stop();
  turns = [];
  const put = () => {
    showAll();
    followEnd(true);
    save();
    keepPictures();
    ui.text.focus();
  };
  put();
  notice();
  if (!cleared.length) return;
  notice("The conversation was cleared.", "Undo", () => {
    turns = cleared;
    put();
  });
}

// --- Controls -----------------------------------------------------------------------------

const THEMES = { auto: "automatic", light: "light", dark: "dark" };

function showTheme() {
  const theme = options.theme in THEMES ? options.theme : "auto";
  const label = `Theme: ${THEMES[theme]}`;
  document.documentElement.dataset.theme = theme;
  ui.theme.setAttribute("aria-label", label);
  ui.theme.title = label;
  setIcon(ui.theme.firstElementChild, theme);
}

function setOption(name, value) {
  options[name] = value;
  store.saveOptions(options);
}

ui.theme.addEventListener("click", () => {
  const names = Object.keys(THEMES);
  setOption("theme", names[(names.indexOf(options.theme ?? "auto") + 1) % names.length]);
  showTheme();
  announce(ui.theme.title);
});
ui.newChat.addEventListener("click", newChat);
ui.model.addEventListener("change", () => setOption("model", ui.model.value));
ui.system.addEventListener("input", () => setOption("system", ui.system.value.trim()));
for (const name of ["temperature", "maxTokens"]) {
  ui[name].addEventListener("input", () => setOption(name, ui[name].validity.valid ? ui[name].valueAsNumber : null));
}

ui.composer.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) stop();
  else send();
});
// The second click of a double click would stop the answer that the first one asked for.
ui.send.addEventListener("click", (event) => event.detail > 1 && event.preventDefault());
ui.text.addEventListener("keydown", (event) => {
  const composing = event.isComposing || event.keyCode === 229; // Safari's last key of a composition
  if (event.key !== "Enter" || event.shiftKey || composing) return;
  event.preventDefault();
  send();
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || ui.keyDialog.open) return;
  if (ui.options.open) closeOptions();
  else stop();
});
addEventListener("click", (event) => {
  if (!ui.options.contains(event.target)) ui.options.open = false;
});

function closeOptions() {
  ui.options.open = false;
  ui.options.firstElementChild.focus();
}

ui.text.addEventListener("input", fitText);

/** For browsers that do not let a text box grow with its text by themselves. */
function fitText() {
  if (!CSS.supports("field-sizing", "content")) ui.text.rows = Math.min(ui.text.value.split("\n").length, 10);
}

function followEnd(follow) {
  atEnd = follow;
  ui.latest.hidden = follow;
}

const toEnd = () => scrollTo(0, document.documentElement.scrollHeight);
let lastY = 0;
new ResizeObserver(() => atEnd && toEnd()).observe(document.body);
addEventListener("scroll", () => {
  // Growth alone leaves a gap below too, for a moment; only scrolling up leaves the end.
  const gap = document.documentElement.scrollHeight - innerHeight - scrollY;
  followEnd(gap < 40 || (atEnd && scrollY >= lastY));
  lastY = scrollY;
});
ui.latest.addEventListener("click", () => {
  ui.text.focus({ preventScroll: true }); // the button that has the focus goes
  toEnd();
});

addEventListener("pagehide", () => {
  if (!running) return; // another tab may know better
  stop(); // before the browser does, which would look like a broken connection
  save();
});
addEventListener("storage", (event) => {
  if (store.isChat(event) && !running) restored = restore();
});

showTheme();
showRunning();
ui.system.value = options.system ?? "";
ui.temperature.value = options.temperature ?? "";
ui.maxTokens.value = options.maxTokens ?? "";
let restored = restore();
loadModels().catch((problem) => notice(problem.message));
