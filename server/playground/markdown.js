// Renders Markdown as DOM nodes. Built for streaming: only blocks that changed are rendered again.

import { inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const DEEPEST = 8; // levels of nested lists and quotes; deeper ones become paragraphs
const LONGEST = 5000; // characters; a longer line is always part of a paragraph

/** @typedef {{kind: string, lines: string[]}} Block */

/**
 * Shows the text in the element. When called again with more text, keeps the unchanged nodes, so that
 * nothing flickers, selections survive, and only the end of a long answer is rendered again.
 *
 * @param {HTMLElement & {shown?: string[]}} element
 * @param {string} text
 */
export function showMarkdown(element, text) {
  const blocks = split(text.split("\n"));
  const sources = blocks.map((block) => `${block.kind}\n${block.lines.join("\n")}`);
  const shown = element.shown ?? [];
  let same = 0;
  while (same < sources.length && sources[same] === shown[same]) same += 1;
  while (element.childNodes.length > same) element.lastChild.remove();
  element.append(...blocks.slice(same).map((block) => render(block, 0)));
  element.shown = sources;
}

/**
 * @param {string[]} lines
 * @returns {Block[]}
 */
function split(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const kind = kindAt(lines, at);
    const end = END[kind](lines, at);
    blocks.push({ kind, lines: lines.slice(at, end) });
    at = end;
  }
  return blocks;
}

function kindAt(lines, at) {
  const line = lines[at];
  if (line.length > LONGEST) return "paragraph"; // matching takes more than linear time
  if (FENCE.test(line)) return "code";
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (QUOTE.test(line)) return "quote";
  if (ITEM.test(line)) return "list";
  return isTableHead(line, lines[at + 1] ?? "") ? "table" : "paragraph";
}

function isTableHead(line, next) {
  if (!line.includes("|") || !next.includes("-") || next.length > LONGEST) return false;
  const rules = cells(next);
  return rules.length === cells(line).length && rules.every((rule) => /^:?-+:?$/.test(rule));
}

/** For each kind of block, the line after the end of a block that begins at a line. */
const END = {
  code(lines, at) {
    const [, marks] = FENCE.exec(lines[at]);
    let end = at + 1;
    while (end < lines.length && !isFenceEnd(lines[end], marks)) end += 1;
    return end + 1;
  },
  heading: (_, at) => at + 1,
  rule: (_, at) => at + 1,
  quote: (lines, at) => until(lines, at, (line) => QUOTE.test(line)),
  list(lines, at) {
    let end = at + 1;
    for (; end < lines.length; end += 1) {
      const line = lines[end];
      const after = lines[end + 1] ?? "";
      if (!line.trim() && !ITEM.test(after) && !/^\s{2,}\S/.test(after)) break;
      const begins = kindAt(lines, end);
      if (line.trim() && !/^\s/.test(line) && begins !== "list" && begins !== "paragraph") break;
      if (begins === "list" && !/^\s/.test(line) && isOrdered(line) !== isOrdered(lines[at])) break;
    }
    return end;
  },
  table: (lines, at) => until(lines, at, (line) => line.includes("|")),
  paragraph: (lines, at) =>
    until(lines, at, (line, i) => line.trim() && kindAt(lines, i) === "paragraph"),
};

function isFenceEnd(line, marks) {
  const text = line.trim();
  return text.length >= marks.length && !text.replaceAll(marks[0], "");
}

const isOrdered = (line) => /^\s*\d/.test(line);

function until(lines, at, belongs) {
  let end = at + 1;
  while (end < lines.length && belongs(lines[end], end)) end += 1;
  return end;
}

function render(block, depth) {
  return depth < DEEPEST ? RENDER[block.kind](block.lines, depth) : paragraph(block.lines);
}

const RENDER = {
  code(lines) {
    const [, marks, language] = FENCE.exec(lines[0]);
    const closed = lines.length > 1 && isFenceEnd(lines.at(-1), marks);
    const pre = make("pre", make("code", lines.slice(1, closed ? -1 : undefined).join("\n")));
    pre.tabIndex = 0; // makes it scrollable with the arrow keys
    const [name] = language.trim().split(/\s/);
    if (name) pre.dataset.language = name.slice(0, 30);
    return pre;
  },
  heading(lines) {
    const [, marks, text] = HEADING.exec(lines[0]);
    const level = Math.min(6, marks.length + 2); // the page itself uses h1 and h2
    return make(`h${level}`, inline(text.trimEnd().replace(/ #{1,6}$/, "")));
  },
  rule: () => make("hr"),
  quote(lines, depth) {
    return make("blockquote", ...inner(lines.map((line) => line.replace(QUOTE, "")), depth));
  },
  list(lines, depth) {
    const list = make(isOrdered(lines[0]) ? "ol" : "ul");
    if (isOrdered(lines[0])) list.start = parseInt(lines[0], 10) || 1;
    const margin = ITEM.exec(lines[0])[1].length;
    for (let at = 0; at < lines.length; ) {
      const [, indent, mark, first] = ITEM.exec(lines[at]);
      const width = indent.length + mark.length + 1;
      const end = until(lines, at, (line) => !(ITEM.exec(line)?.[1].length <= margin));
      const rest = lines.slice(at + 1, end).map((line) => outdent(line, width));
      list.append(item([first, ...rest], depth));
      at = end;
    }
    return list;
  },
  table(lines) {
    const [head, , ...body] = lines.map(cells);
    const row = (name, texts) =>
      make("tr", ...texts.slice(0, head.length).map((text) => make(name, inline(text))));
    const rows = body.map((texts) => row("td", texts));
    const table = make("table", make("thead", row("th", head)), make("tbody", ...rows));
    const frame = make("div", table);
    frame.className = "table";
    frame.tabIndex = 0;
    frame.role = "region";
    frame.ariaLabel = "Table";
    return frame;
  },
  paragraph,
};

function paragraph(lines) {
  return make("p", inline(lines.map((line) => line.trim()).join("\n")));
}

/** A list item; a single paragraph is not wrapped in <p>. */
function item(lines, depth) {
  const nodes = inner(lines, depth);
  const [first, ...others] = nodes;
  const isPlain = first?.nodeName === "P" && others.every((node) => node.nodeName !== "P");
  return isPlain ? make("li", ...first.childNodes, ...others) : make("li", ...nodes);
}

const inner = (lines, depth) => split(lines).map((block) => render(block, depth + 1));

const outdent = (line, width) => line.replace(new RegExp(`^\\s{0,${Math.min(width, 20)}}`), "");

/** The cells of a table row; `\|` is an escaped bar. */
function cells(line) {
  const inside = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inside.split(/(?<!\\)\|/).map((text) => text.trim().replaceAll("\\|", "|"));
}

/**
 * @param {string} name
 * @param {...(Node | string)} content
 */
function make(name, ...content) {
  const element = document.createElement(name);
  element.append(...content);
  return element;
}
