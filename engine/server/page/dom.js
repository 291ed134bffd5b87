// Small helpers that make DOM nodes.

const SVG = "http://www.w3.org/2000/svg";

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(SVG, "use"));
  setIcon(svg, name);
  return svg;
}

export function setIcon(svg, name) {
  svg.firstElementChild.setAttribute("href", `#i-${name}`);
}

/** A button that copies what `text()` returns and says so for a moment. */
export function copyButton(label, text) {
  const button = el("button", { type: "button", class: "plain copy", "aria-label": label, title: label }, icon("copy"));
  const show = (name, words) => {
    setIcon(button.firstElementChild, name);
    button.setAttribute("aria-label", words);
  };
  button.addEventListener("click", async () => {
    await copy(text());
    show("done", "Copied");
    setTimeout(() => show("copy", label), 2000);
  });
  return button;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Over plain HTTP from another machine there is no clipboard object.
  const helper = el("textarea", { class: "hidden" });
  const focused = document.activeElement;
  helper.value = text;
  document.body.append(helper);
  helper.select();
  document.execCommand("copy");
  helper.remove();
  focused?.focus();
}
