// What the next message holds before the text box: pictures that were chosen, pasted or dropped, and
// texts that were put among them. Shown in order, with a way to take each out again.

import { el, icon } from "./dom.js";
import { isText, showPicture } from "./parts.js";

const LIMIT = 20 * 2 ** 20;

export function partsTray(ui, notice, fitText) {
  let parts = [];

  function add(files) {
    const problems = [];
    for (const file of files) {
      if (!file.type.startsWith("image/")) problems.push(`${file.name} is not a picture.`);
      else if (file.size > LIMIT) problems.push(`${file.name} is too large: ${megabytes(file.size)} of at most ${megabytes(LIMIT)}.`);
      else {
        // randomUUID exists only over HTTPS and on localhost.
        const id = `${Date.now()}-${Math.random().toString(36).slice(2)}`;
        parts.push({ id, name: file.name || "picture", size: file.size, blob: file });
      }
    }
    show();
    notice(problems.join(" "));
    ui.text.focus();
  }

  function show() {
    ui.pending.hidden = !parts.length;
    ui.pending.replaceChildren(...parts.map((part, i) => {
      const label = isText(part) ? "Put this text back into the message box" : `Remove ${part.name}`;
      const button = el("button", { type: "button", "aria-label": label, title: label, onclick: () => remove(i) }, icon("close"));
      return el("li", {}, isText(part) ? el("p", { dir: "auto" }, part.text) : showPicture(part), button);
    }));
  }

  function remove(i) {
    const [part] = parts.splice(i, 1);
    if (isText(part)) write([part.text, ui.text.value].filter(Boolean).join("\n"));
    else URL.revokeObjectURL(part.url);
    show();
    const next = ui.pending.querySelectorAll("button")[Math.min(i, parts.length - 1)];
    (isText(part) ? ui.text : next ?? ui.text).focus();
  }

  function write(text) {
    ui.text.value = text;
    fitText();
  }

  /** Puts what the box holds behind the parts that are there, so that others may follow it. */
  function addText() {
    const text = ui.text.value.trim();
    if (text) parts.push({ text });
    write("");
    show();
    ui.text.focus();
  }

  ui.choose.addEventListener("click", () => ui.files.click());
  ui.addText.addEventListener("click", addText);
  ui.files.addEventListener("change", () => {
    add(ui.files.files);
    ui.files.value = "";
  });
  addEventListener("paste", (event) => {
    const { files, types } = event.clipboardData;
    // Office programs put a picture of copied text beside it; there the text is meant.
    if (!files.length || (types.includes("text/html") && types.includes("text/plain"))) return;
    event.preventDefault();
    add(files);
  });

  const holdsFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    ui.drop.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) ui.drop.hidden = true; // the pointer left the window
  });
  addEventListener("drop", (event) => {
    ui.drop.hidden = true;
    if (!holdsFiles(event)) return;
    event.preventDefault();
    add(event.dataTransfer.files);
  });

  return {
    /** The parts of the message with what the box holds as the last of them; both are empty then. */
    take: () => {
      const text = ui.text.value.trim();
      const taken = text ? [...parts, { text }] : parts;
      parts = [];
      write("");
      show();
      return taken;
    },
    /** Puts the parts of an earlier message before what is there; its last text into the box. */
    put: (earlier) => {
      const last = parts.length === 0 && earlier.length && isText(earlier.at(-1)) ? earlier.at(-1).text : "";
      parts = [...(last ? earlier.slice(0, -1) : earlier), ...parts];
      write([last, ui.text.value].filter(Boolean).join("\n"));
      show();
    },
  };
}

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1).replace(".0", "")} MB`;
