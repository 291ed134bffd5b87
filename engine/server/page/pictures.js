// The pictures of the next message: chosen, pasted or dropped, and shown with a way to remove each.

import { el, icon } from "./dom.js";

const LIMIT = 20 * 2 ** 20;

/** A picture is {id, name, size, blob}, its blob missing if the browser did not keep it. */
export function showPicture(picture) {
  if (!picture.blob) return el("p", { class: "lost" }, picture.lost ? `${picture.name} was not kept` : picture.name);
  picture.url ??= URL.createObjectURL(picture.blob);
  return el("img", { src: picture.url, alt: picture.name });
}

export const dataUri = ({ name, blob }) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Error(`${name} can no longer be read. Was its file moved?`));
  reader.readAsDataURL(blob);
});

export function pictureTray(ui, notice) {
  let pictures = [];

  function add(files) {
    const problems = [];
    for (const file of files) {
      if (!file.type.startsWith("image/")) problems.push(`${file.name} is not a picture.`);
      else if (file.size > LIMIT) problems.push(`${file.name} is too large: ${megabytes(file.size)} of at most ${megabytes(LIMIT)}.`);
      else {
        // randomUUID exists only over HTTPS and on localhost.
        const id = `${Date.now()}-${Math.random().toString(36).slice(2)}`;
        pictures.push({ id, name: file.name || "picture", size: file.size, blob: file });
      }
    }
    show();
    notice(problems.join(" "));
    ui.text.focus();
  }

  function show() {
    ui.pending.hidden = !pictures.length;
    ui.pending.replaceChildren(...pictures.map((picture, i) => {
      const label = `Remove ${picture.name}`;
      const button = el("button", { type: "button", "aria-label": label, title: label, onclick: () => remove(i) }, icon("close"));
      return el("li", {}, showPicture(picture), button);
    }));
  }

  function remove(i) {
    const [{ url }] = pictures.splice(i, 1);
    URL.revokeObjectURL(url);
    show();
    const next = ui.pending.querySelectorAll("button")[Math.min(i, pictures.length - 1)];
    (next ?? ui.text).focus();
  }

  ui.choose.addEventListener("click", () => ui.files.click());
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
    isEmpty: () => !pictures.length,
    take: () => {
      const taken = pictures;
      pictures = [];
      show();
      return taken;
    },
    put: (earlier) => {
      pictures = [...earlier, ...pictures];
      show();
    },
  };
}

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1).replace(".0", "")} MB`;
