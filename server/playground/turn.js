// One question and its answer: contents, timing and rendering.

import { copyText } from "./clipboard.js";
import { showMarkdown } from "./markdown.js";
import { TokenList } from "./tokens.js";

const template = /** @type {HTMLTemplateElement} */ (document.querySelector("#turn"));
const figureTemplate = /** @type {HTMLTemplateElement} */ (document.querySelector("#picture"));

export class Turn {
  /** The request body. @type {Record<string, any>} */
  body = {};
  answer = "";
  /** Whether there is no answer to continue the conversation from. */
  failed = true;

  #tokens = /** @type {TokenList | null} */ (null);
  #showsTokens = true;
  #drawing = 0;

  /**
   * @param {string} text
   * @param {import("./request.js").Picture[]} pictures
   * @param {{again: () => void, code: () => void, draw: (change: () => void) => void}} actions
   */
  constructor(text, pictures, actions) {
    this.text = text;
    this.pictures = pictures;
    this.actions = actions;
    const fragment = /** @type {DocumentFragment} */ (template.content.cloneNode(true));
    this.element = /** @type {HTMLElement} */ (fragment.firstElementChild);
    this.#part(".text").textContent = text;
    this.#part(".text").hidden = !text;
    this.#part(".text").before(...pictures.map(figureOf));
    const act = {
      copy: (button) => this.#copy(button),
      code: actions.code,
      again: actions.again,
      tokens: () => this.#toggleTokens(),
    };
    for (const button of this.element.querySelectorAll("[data-action]")) {
      button.addEventListener("click", () => act[button.dataset.action](button));
    }
  }

  /** Starts a request, for the first time or again. */
  begin(body) {
    Object.assign(this, { body, answer: "", failed: true });
    this.usage = this.finishReason = null;
    this.pieces = 0;
    this.started = performance.now();
    this.first = this.last = 0;
    this.#tokens = null;
    const tokens = this.#part(".tokens");
    const fresh = /** @type {HTMLElement} */ (tokens.cloneNode(false)); // without old listeners
    tokens.replaceWith(fresh);
    for (const name of [".tokens", ".failure", ".figures", ".actions"]) this.#part(name).hidden = true;
    this.element.classList.add("waiting");
    this.element.setAttribute("aria-busy", "true");
    this.#draw();
  }

  /** Adds a chunk of the stream. */
  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices[0];
    if (!choice) return;
    if (choice.finish_reason) this.finishReason = choice.finish_reason;
    const tokens = choice.logprobs?.content ?? [];
    if (!choice.delta.content && !tokens.length) return;
    this.last = performance.now();
    this.first ||= this.last;
    this.pieces += tokens.length || 1;
    this.answer += choice.delta.content;
    if (tokens.length) this.#tokenList().add(tokens);
    // Draw at most once per frame.
    this.#drawing ||= requestAnimationFrame(() => this.#draw());
  }

  /** Ends the turn with a complete or stopped answer. */
  end(wasStopped) {
    this.failed = wasStopped && !this.answer;
    this.#close("Regenerate", () => {
      this.#part(".figures").replaceChildren(...figures(this, wasStopped).map(listItem));
      this.#part(".figures").hidden = false;
    });
  }

  /** @param {import("./request.js").Failure} failure */
  fail(failure) {
    this.#close("Try again", () => {
      const box = this.#part(".failure");
      const what = [failure.status, failure.code].filter(Boolean).join(" ");
      const follows = "Later messages will not include this one.";
      box.querySelector("p").textContent = failure.message;
      box.querySelector("small").textContent = what ? `${what} · ${follows}` : follows;
      box.hidden = false;
    });
  }

  /** The answer as a screen reader should read it. */
  get spoken() {
    return this.#part(".markdown").textContent;
  }

  /** Draws the final state and the buttons. */
  #close(again, showEnd) {
    cancelAnimationFrame(this.#drawing);
    this.element.classList.remove("waiting");
    this.element.removeAttribute("aria-busy");
    this.actions.draw(() => {
      this.#draw();
      showEnd();
      this.#part("[data-action=again]").textContent = again;
      this.#part("[data-action=copy]").hidden = !this.answer;
      this.#part("[data-action=tokens]").hidden = !this.#tokens;
      this.#part(".actions").hidden = false;
    });
  }

  #draw() {
    this.#drawing = 0;
    this.actions.draw(() => {
      const showsTokens = this.#tokens !== null && this.#showsTokens;
      showMarkdown(this.#part(".markdown"), this.answer);
      this.#part(".markdown").hidden = showsTokens;
      this.#part(".tokens").hidden = !showsTokens;
    });
  }

  #tokenList() {
    this.#tokens ??= new TokenList(this.#part(".tokens"));
    return this.#tokens;
  }

  #toggleTokens() {
    this.#showsTokens = !this.#showsTokens;
    this.#part("[data-action=tokens]").setAttribute("aria-pressed", String(this.#showsTokens));
    this.#draw();
  }

  async #copy(button) {
    const label = button.textContent;
    button.textContent = (await copyText(this.answer)) ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = label), 1500);
  }

  /** @returns {HTMLElement} */
  #part(selector) {
    return this.element.querySelector(selector);
  }
}

/** A picture with its caption. */
function figureOf({ url, name, width, height, note }) {
  const figure = /** @type {HTMLElement} */ (figureTemplate.content.firstElementChild.cloneNode(true));
  const image = figure.querySelector("img");
  if (width) Object.assign(image, { src: url, alt: name, width, height });
  image.hidden = !width;
  figure.querySelector("figcaption").textContent = `${name}, ${note}`;
  return figure;
}

/** Token counts and timings, as `[number, words]`. */
function figures({ usage, pieces, started, first, last, finishReason }, wasStopped) {
  const found = [];
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens;
    found.push([usage.prompt_tokens, `in${cached ? `, ${cached} cached` : ""}`]);
  }
  // A stopped stream has no usage, so count the chunks.
  const out = usage?.completion_tokens ?? pieces;
  found.push([usage ? out : `about ${out}`, "out"]);
  if (first) found.push([`${((first - started) / 1000).toFixed(2)} s`, "to the first token"]);
  if (last > first && out > 1) {
    found.push([(((out - 1) * 1000) / (last - first)).toFixed(1), "tokens/s"]);
  }
  if (wasStopped) found.push(["", "stopped"]);
  if (finishReason === "length") found.push(["", "cut off at max tokens"]);
  return found;
}

function listItem([number, words]) {
  const item = document.createElement("li");
  const strong = document.createElement("strong");
  strong.textContent = number;
  item.append(strong, number ? ` ${words}` : words);
  return item;
}
