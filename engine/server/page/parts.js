// A message's parts, in their order: a text is {text}, a picture {id, name, size, blob}, its blob
// missing if the browser did not keep it.

import { el } from "./dom.js";

export const isText = (part) => "text" in part;
export const picturesOf = ({ parts }) => parts.filter((part) => !isText(part));

/** The nodes of a message: pictures that follow each other stand side by side. */
export function showParts(parts) {
  const nodes = [];
  for (const part of parts) {
    if (isText(part)) nodes.push(el("p", { class: "words", dir: "auto" }, part.text));
    else if (nodes.at(-1)?.className === "pictures") nodes.at(-1).append(showPicture(part));
    else nodes.push(el("div", { class: "pictures" }, showPicture(part)));
  }
  return nodes;
}

export function showPicture(picture) {
  if (!picture.blob) return el("p", { class: "lost" }, picture.lost ? `${picture.name} was not kept` : picture.name);
  picture.url ??= URL.createObjectURL(picture.blob);
  return el("img", { src: picture.url, alt: picture.name });
}

/** A message's `content` as the server reads it, without the pictures that were not kept. */
export async function contentOf(parts) {
  const sent = [];
  for (const part of parts) {
    const before = sent.at(-1);
    if (!isText(part)) {
      if (part.blob) sent.push({ type: "image_url", image_url: { url: await dataUri(part) } });
    } else if (before?.type === "text") before.text += `\n${part.text}`; // each was a line of its own
    else sent.push({ type: "text", text: part.text });
  }
  if (!sent.length) return "";
  return sent.length === 1 && sent[0].type === "text" ? sent[0].text : sent;
}

const dataUri = ({ name, blob }) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Error(`${name} can no longer be read. Was its file moved?`));
  reader.readAsDataURL(blob);
});
