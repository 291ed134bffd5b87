// Markdown as DOM nodes. The text is never parsed as HTML and nothing in it is ever fetched.

import { copyButton, el } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:\s+(.*))?$/;
const DELIMITERS = /^\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?$/;
const LINK = /\[((?:[^[\]\\]|\\.|\[[^[\]]*\])*)\]\(\s{0,9}<?((?:[^\s()<>]|\([^\s()<>]*\))*)>?(?:\s{1,9}"[^"\n]{0,200}")?\s{0,9}\)/y;
const BRACKETED = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/iy;
const ADDRESS = /https?:\/\/[^\s<>`]{0,2000}/iy;
const SPECIAL = /[\\`*_~[!<\n]|https?:\/\//;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;

// Bounds that keep the work on any text, however odd, proportional to its length.
const DEEPEST = 8;
const LONGEST_EMPHASIS = 1000;

const rendered = new WeakMap();

/** Shows `text` in `container`; blocks that are as they were at the last call keep their nodes. */
export function renderMarkdown(container, text) {
  const before = rendered.get(container) ?? [];
  const blocks = parse(text.split("\n"), 0);
  blocks.forEach((block, i) => {
    const old = before[i];
    if (old?.source === block.source && old.type === block.type) block.node = old.node;
    else if (old?.type === "code" && block.type === "code" && old.language === block.language) {
      block.node = old.node;
      block.node.querySelector("code").textContent = block.code;
    } else {
      block.node = block.build();
      if (old) old.node.replaceWith(block.node);
      else container.append(block.node);
    }
  });
  for (const old of before.slice(blocks.length)) old.node.remove();
  rendered.set(container, blocks);
}

function parse(lines, depth) {
  const blocks = [];
  let i = 0;
  while (i < lines.length) {
    if (!lines[i].trim()) {
      i += 1;
      continue;
    }
    const [type, end, build, more] = readBlock(lines, i, depth);
    blocks.push({ type, source: lines.slice(i, end).join("\n"), build, ...more });
    i = end;
  }
  return blocks;
}

function readBlock(lines, i, depth) {
  const line = lines[i];
  const fence = readFence(line);
  if (fence) return readCode(lines, i, fence);
  const heading = HEADING.exec(line);
  if (heading) {
    // The page's own headings are h1 and h2.
    const tag = `h${Math.min(heading[1].length + 2, 6)}`;
    return ["heading", i + 1, () => el(tag, { dir: "auto" }, ...inline(heading[2].replace(/\s#+\s*$/, "").trim()))];
  }
  if (RULE.test(line)) return ["rule", i + 1, () => el("hr")];
  if (depth < DEEPEST) {
    if (QUOTE.test(line)) {
      const end = until(lines, i, (next) => !QUOTE.test(next));
      const inner = lines.slice(i, end).map((quoted) => quoted.replace(QUOTE, ""));
      return ["quote", end, () => el("blockquote", { dir: "auto" }, ...nodes(parse(inner, depth + 1)))];
    }
    if (ITEM.test(line)) return readList(lines, i, depth);
  }
  if (startsTable(lines, i)) return readTable(lines, i);
  const end = until(lines, i, (next, at) => !next.trim() || interrupts(lines, at, depth));
  const text = lines.slice(i, end).map((part) => part.trim()).join("\n");
  return ["paragraph", end, () => el("p", { dir: "auto" }, ...inline(text)), { text }];
}

function interrupts(lines, i, depth) {
  const line = lines[i];
  if (readFence(line) || HEADING.test(line) || RULE.test(line) || startsTable(lines, i)) return true;
  if (depth >= DEEPEST) return false;
  const item = ITEM.exec(line);
  // "1999. …" at a line's start is hardly a list, as in CommonMark.
  return QUOTE.test(line) || (item !== null && item[3] !== undefined && (!/\d/.test(item[2]) || parseInt(item[2], 10) === 1));
}

function until(lines, i, ends) {
  let end = i + 1;
  while (end < lines.length && !ends(lines[end], end)) end += 1;
  return end;
}

const nodes = (blocks) => blocks.map((block) => block.build());

/** What opens a block of code: its indent, its mark and the language; null if the line does not. */
function readFence(line) {
  const [whole, mark, rest] = FENCE.exec(line) ?? [];
  if (!whole || (mark[0] === "`" && rest.includes("`"))) return null;
  return { indent: whole.search(/\S/), mark, language: rest.trim().split(/\s/, 1)[0] };
}

function readCode(lines, i, { indent, mark, language }) {
  const close = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
  const end = until(lines, i, close);
  const code = lines.slice(i + 1, end).map((line) => line.replace(new RegExp(`^ {0,${indent}}`), "")).join("\n");
  const build = () => {
    const content = el("code", {}, code);
    const label = language ? `Code, ${language}` : "Code";
    return el("div", { class: "code" },
      el("div", { class: "code-head" }, el("span", {}, language), copyButton("Copy the code", () => content.textContent)),
      el("pre", { dir: "ltr", tabindex: "0", role: "region", "aria-label": label }, content));
  };
  return ["code", Math.min(end + 1, lines.length), build, { language, code }];
}

function readList(lines, start, depth) {
  const [, { length: base }, firstMark] = ITEM.exec(lines[start]);
  const ordered = /\d/.test(firstMark);
  const items = [];
  let content = 0;
  let i = start;
  for (; i < lines.length; i += 1) {
    const line = lines[i];
    const item = ITEM.exec(line);
    const indent = line.search(/\S/);
    if (item && indent < base + 2 && !RULE.test(line)) {
      if (/\d/.test(item[2]) !== ordered) break;
      content = indent + item[2].length + 1;
      items.push([item[3] ?? ""]);
    } else if (indent >= base + 2) {
      items.at(-1).push(line.slice(Math.min(indent, content)));
    } else if (indent < 0) {
      items.at(-1).push("");
    } else if (!lines[i - 1].trim() || interrupts(lines, i, depth)) {
      break;
    } else {
      items.at(-1).push(line.trim());
    }
  }
  while (!lines[i - 1].trim()) i -= 1;
  const build = () => el(ordered ? "ol" : "ul", { start: ordered && parseInt(firstMark, 10) },
    ...items.map((item) => el("li", { dir: "auto" }, ...itemNodes(parse(item, depth + 1)))));
  return [ordered ? "ordered" : "bullets", i, build];
}

function itemNodes(blocks) {
  const [first, ...others] = blocks;
  if (first?.type !== "paragraph" || others.some(({ type }) => type === "paragraph")) return nodes(blocks);
  return [...inline(first.text), ...nodes(others)];
}

const startsTable = (lines, i) =>
  lines[i].includes("|") && i + 1 < lines.length && lines[i + 1].includes("|") && DELIMITERS.test(lines[i + 1].trim());

const cells = (row) => row.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "").split(/(?<!\\)\|/)
  .map((cell) => cell.trim().replaceAll("\\|", "|"));

function readTable(lines, i) {
  const end = until(lines, i + 1, (line) => !line.includes("|"));
  const head = cells(lines[i]);
  const aligned = cells(lines[i + 1]).map((mark) =>
    mark.endsWith(":") ? (mark.startsWith(":") ? "centred" : "right") : null);
  const row = (tag, texts) => el("tr", {}, ...head.map((_, column) =>
    el(tag, { dir: "auto", class: aligned[column] }, ...inline(texts[column] ?? ""))));
  const build = () => el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" },
    el("table", {},
      el("thead", {}, row("th", head)),
      el("tbody", {}, ...lines.slice(i + 2, end).map((line) => row("td", cells(line))))));
  return ["table", end, build];
}

/** The text's nodes. `flat` is a place where no further link may start: within one. */
function inline(text, depth = 0, flat = false) {
  const out = [];
  const special = new RegExp(SPECIAL, "gi");
  const place = { text, depth, flat, unclosed: new Set() };
  let shown = 0;
  for (let match; (match = special.exec(text));) {
    const at = match.index;
    const [length, ...made] = readInline(place, at);
    if (made.length) {
      if (shown < at) out.push(text.slice(shown, at));
      out.push(...made);
      shown = at + length;
    }
    special.lastIndex = at + length;
  }
  if (shown < text.length) out.push(text.slice(shown));
  return out;
}

const within = ({ depth, flat }, text, inLink = flat) =>
  depth < DEEPEST ? inline(text, depth + 1, inLink) : [text];

/** How much was read, and what it becomes; nothing if it stands for itself. */
function readInline(place, at) {
  const { text, flat } = place;
  const next = text[at + 1] ?? "";
  switch (text[at]) {
    case "\n": return [1, el("br")];
    case "\\":
      if (next === "\n") return [2, el("br")];
      return PUNCTUATION.test(next) ? [2, next] : [1];
    case "`": return readCodeSpan(place, at);
    case "*": case "_": case "~": return readEmphasis(place, at);
    case "[": return readLink(place, at);
    case "!": return next === "[" ? readPicture(place, at) : [1];
    case "<": {
      const [whole, address] = matchAt(BRACKETED, text, at) ?? [];
      return whole ? [whole.length, ...link(safe(address), flat, address)] : [1];
    }
    default: return readAddress(place, at);
  }
}

function matchAt(sticky, text, at) {
  sticky.lastIndex = at;
  return sticky.exec(text);
}

function readLink(place, at) {
  const match = matchAt(LINK, place.text, at);
  if (!match) return [1];
  const href = safe(match[2]);
  return [match[0].length, ...(href ? link(href, place.flat, ...within(place, match[1], true)) : [match[0]])];
}

/** Pictures are not fetched: where they are is shown as a link. */
function readPicture({ text, flat }, at) {
  const match = matchAt(LINK, text, at + 1);
  if (!match) return [1];
  const href = safe(match[2]);
  const label = match[1] ? `Picture: ${match[1]}` : "Picture";
  return [match[0].length + 1, ...(href ? link(href, flat, label) : [`!${match[0]}`])];
}

function readAddress({ text, flat }, at) {
  if (WORD.test(text[at - 1] ?? "")) return [1];
  let [address] = matchAt(ADDRESS, text, at);
  address = address.replace(/[.,;:!?'"*_~\]]+$/, "");
  if (address.endsWith(")") && !address.includes("(")) address = address.slice(0, -1);
  return [address.length, ...link(safe(address), flat, address)];
}

function link(href, flat, ...children) {
  if (!href || flat) return children;
  return [el("a", { href, target: "_blank", rel: "noopener noreferrer", title: href }, ...children)];
}

function safe(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function readCodeSpan({ text, unclosed }, at) {
  const mark = runAt(text, at);
  if (unclosed.has(mark)) return [mark.length];
  const from = at + mark.length;
  let end = text.indexOf("`", from);
  for (let run; end >= 0 && (run = runAt(text, end)) !== mark;) end = text.indexOf("`", end + run.length);
  if (end < 0) {
    unclosed.add(mark);
    return [mark.length];
  }
  let code = text.slice(from, end).replaceAll("\n", " ");
  if (code.startsWith(" ") && code.endsWith(" ") && code.trim()) code = code.slice(1, -1);
  return [end + mark.length - at, el("code", {}, code)];
}

function readEmphasis(place, at) {
  const { text } = place;
  const mark = text[at];
  const { length: size } = runAt(text, at);
  const start = at + size;
  if (size > 3 || !/\S/.test(text[start] ?? "") || (mark === "~" && size !== 2)) return [size];
  if (mark === "_" && WORD.test(text[at - 1] ?? "")) return [size];
  const end = closing(text, start, mark, size);
  if (end < 0) return [size];
  const inner = within(place, text.slice(start, end));
  const node = el(mark === "~" ? "del" : size === 1 ? "em" : "strong", {}, ...inner);
  return [end + size - at, size === 3 ? el("em", {}, node) : node];
}

/** Where the marks that end the emphasis are: in a run of this size, or else of a greater one. */
function closing(text, start, mark, size) {
  let greater = -1;
  const limit = Math.min(text.length, start + LONGEST_EMPHASIS);
  for (let at = text.indexOf(mark, start); at >= 0 && at < limit;) {
    const { length } = runAt(text, at);
    const end = at + length;
    if (/[^\s\\]/.test(text[at - 1]) && !(mark === "_" && WORD.test(text[end] ?? ""))) {
      if (length === size) return at;
      if (length > size && greater < 0) greater = end - size;
    }
    at = text.indexOf(mark, end);
  }
  return greater;
}

/** The run of equal characters that starts here. */
function runAt(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return text.slice(at, end);
}
