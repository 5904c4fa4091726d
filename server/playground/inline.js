// Renders inline Markdown as DOM nodes. All text becomes text nodes, so the model's output cannot
// inject markup.

const DEEPEST = 6; // levels of nested emphasis; deeper marks stay text
// Bounds on the time that hostile text can take:
const FARTHEST = 2000; // characters searched for a closing mark
const MOST_TRIES = 20; // candidates tried as the closing mark
const PROTOCOLS = ["http:", "https:", "mailto:"];
const ESCAPABLE = /[\\`*_{}[\]()#+\-.!|~<>]/;
const WORD = /[\p{L}\p{N}]/u;

/**
 * @param {string} text
 * @param {number} [depth]
 * @returns {DocumentFragment}
 */
export function inline(text, depth = 0) {
  const fragment = document.createDocumentFragment();
  let plain = "";
  let position = 0;
  while (position < text.length) {
    const rule = depth < DEEPEST && RULES[text[position]];
    const found = rule && rule(text, position, depth);
    if (found) {
      if (plain) fragment.append(plain);
      plain = "";
      fragment.append(found.node);
      position = found.end;
    } else {
      plain += text[position];
      position += 1;
    }
  }
  if (plain) fragment.append(plain);
  return fragment;
}

/** @type {Record<string, (text: string, start: number, depth: number) => {node: Node | string, end: number} | null>} */
const RULES = {
  "\n": (_, start) => ({ node: document.createElement("br"), end: start + 1 }),
  "\\": (text, start) =>
    ESCAPABLE.test(text[start + 1] ?? "") ? { node: text[start + 1], end: start + 2 } : null,
  "`": code,
  "*": (text, start, depth) => emphasis(text, start, depth, "*"),
  _: (text, start, depth) =>
    WORD.test(text[start - 1] ?? "") ? null : emphasis(text, start, depth, "_"),
  "~": (text, start, depth) =>
    text.startsWith("~~", start) ? wrapped(text, start, depth, "~~", "del") : null,
  "!": (text, start, depth) => {
    const found = text[start + 1] === "[" && link(text, start + 1, depth);
    return found || null; // remote pictures are not loaded but linked
  },
  "[": link,
  "<": (text, start) => {
    const end = find(text, ">", start + 1);
    if (end < 0) return null;
    const url = text.slice(start + 1, end);
    const node = /\s/.test(url) ? null : anchor(url, url);
    return node && { node, end: end + 1 };
  },
  h: (text, start) => {
    if (!/^https?:\/\//.test(text.slice(start, start + 8))) return null;
    if (WORD.test(text[start - 1] ?? "")) return null;
    const [url] = /^[^\s<>"`*]{1,1000}/.exec(text.slice(start, start + 1000)) ?? [""];
    const address = url.replace(/[.,;:!?'")\]]+$/, "");
    const node = anchor(address, address);
    return node && { node, end: start + address.length };
  },
};

function code(text, start) {
  const [marks] = /^`+/.exec(text.slice(start, start + 20));
  const end = find(text, marks, start + marks.length);
  if (end < 0 || text[end + marks.length] === "`") return null;
  const node = document.createElement("code");
  node.textContent = text.slice(start + marks.length, end).replace(/^ (.*) $/s, "$1");
  return { node, end: end + marks.length };
}

function emphasis(text, start, depth, mark) {
  if (text[start + 1] === mark) return wrapped(text, start, depth, mark + mark, "strong");
  return wrapped(text, start, depth, mark, "em");
}

/** An element for the text between two marks, if no space follows the first or precedes the second. */
function wrapped(text, start, depth, marks, name) {
  const from = start + marks.length;
  if (/\s/.test(text[from] ?? " ")) return null;
  let end = find(text, marks, from + 1);
  for (let tries = 0; end >= 0 && !closes(text, end, marks); tries += 1) {
    end = tries < MOST_TRIES ? find(text, marks, end + 1) : -1;
  }
  if (end < 0) return null;
  // In ***this*** the outer marks end last.
  while (text[end + marks.length] === marks[0] && marks.length === 2) end += 1;
  const node = document.createElement(name);
  node.append(inline(text.slice(from, end), depth + 1));
  return { node, end: end + marks.length };
}

function closes(text, end, marks) {
  const after = text[end + marks.length] ?? " ";
  if (/\s/.test(text[end - 1])) return false;
  if (marks === "_" || marks === "__") return !WORD.test(after);
  return marks !== "*" || (after !== "*" && text[end - 1] !== "*");
}

function link(text, start, depth) {
  const middle = find(text, "](", start + 1);
  let end = middle < 0 ? -1 : find(text, ")", middle + 2);
  if (end < 0) return null;
  if (text[end + 1] === ")" && text.slice(middle, end).includes("(", 2)) end += 1; // .../Name_(kind)
  const label = text.slice(start + 1, middle);
  if (label.includes("\n\n") || label.includes("[")) return null;
  const [address] = text.slice(middle + 2, end).trim().split(/\s/);
  const node = anchor(address, "");
  if (!node) return null;
  node.append(label ? inline(label, depth + 1) : address);
  return { node, end: end + 1 };
}

/** A link that opens in a new tab; null unless its protocol is allowed. */
function anchor(address, label) {
  let url;
  try {
    url = new URL(address); // no base, because relative addresses would point to this server
  } catch {
    return null;
  }
  if (!PROTOCOLS.includes(url.protocol)) return null;
  const node = document.createElement("a");
  node.href = url.href;
  node.target = "_blank";
  node.rel = "noopener noreferrer";
  node.textContent = label;
  return node;
}

/** The next position of the marks within FARTHEST characters; -1 if there is none. */
function find(text, marks, from) {
  const at = text.slice(from, from + FARTHEST).indexOf(marks);
  return at < 0 ? -1 : from + at;
}
