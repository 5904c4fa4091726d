// The tokens of an answer, tinted by probability. Hovering over one, or moving to it with the arrow
// keys, shows the alternatives.

const BOUNDS = [0.9, 0.6, 0.3, 0.1]; // lower bounds of the probability for each tint
const tip = /** @type {HTMLElement} */ (document.querySelector("#tip"));
let explained = /** @type {Element | null} */ (null);
const percent = new Intl.NumberFormat("en", { style: "percent", maximumSignificantDigits: 3 });

/** @typedef {{token: string, logprob: number, bytes: number[], top_logprobs: {token: string, logprob: number}[]}} Token */

export class TokenList {
  /** @param {HTMLElement} element a listbox */
  constructor(element) {
    this.element = element;
    /** @type {Token[]} */
    this.tokens = [];
    this.decoder = new TextDecoder(); // a character may span several tokens
    element.addEventListener("pointerover", (event) => this.#show(event.target));
    element.addEventListener("pointerleave", hideTip);
    element.addEventListener("focusin", (event) => this.#show(event.target));
    element.addEventListener("focusout", hideTip);
    element.addEventListener("keydown", (event) => this.#move(event));
  }

  /** @param {Token[]} tokens */
  add(tokens) {
    for (const token of tokens) {
      const option = document.createElement("span");
      option.role = "option";
      option.tabIndex = this.tokens.length ? -1 : 0; // a single tab stop for the list
      option.className = `token p${level(token)}`;
      const text = this.decoder.decode(new Uint8Array(token.bytes), { stream: true });
      option.textContent = text ? text.replaceAll("\n", "↵\n") : "·";
      option.ariaLabel = `${spoken(token.token)}, ${probability(token)}`;
      option.ariaSelected = "false";
      this.element.append(option);
      this.tokens.push(token);
    }
  }

  #show(target) {
    if (target.role !== "option") return;
    const token = this.tokens[[...this.element.children].indexOf(target)];
    const rows = token.top_logprobs.length ? token.top_logprobs : [token];
    const list = document.createElement("ul");
    for (const row of rows.some(({ token: text }) => text === token.token) ? rows : [token, ...rows]) {
      const item = document.createElement("li");
      const text = document.createElement("code");
      text.textContent = spoken(row.token);
      item.append(text, ` ${probability(row)}`);
      item.classList.toggle("chosen", row.token === token.token);
      list.append(item);
    }
    tip.replaceChildren(list);
    tip.hidden = false;
    explained = target;
    place();
    this.element.querySelector("[aria-describedby]")?.removeAttribute("aria-describedby");
    target.setAttribute("aria-describedby", "tip");
  }

  #move(event) {
    const options = [...this.element.children];
    const at = options.indexOf(event.target);
    const to = {
      ArrowRight: at + 1,
      ArrowLeft: at - 1,
      ArrowDown: at + 10,
      ArrowUp: at - 10,
      Home: 0,
      End: options.length - 1,
    }[event.key];
    if (event.key === "Escape") hideTip();
    if (to === undefined || at < 0) return;
    event.preventDefault();
    const next = options[Math.max(0, Math.min(options.length - 1, to))];
    for (const [option, isNext] of [[options[at], false], [next, true]]) {
      option.tabIndex = isNext ? 0 : -1;
      option.ariaSelected = String(isNext);
    }
    next.focus();
  }
}

function hideTip() {
  tip.hidden = true;
}

function level({ logprob }) {
  const at = BOUNDS.findIndex((bound) => Math.exp(logprob) >= bound);
  return at < 0 ? BOUNDS.length : at;
}

const probability = ({ logprob }) => percent.format(Math.exp(logprob));

/** A token with visible white space. */
function spoken(text) {
  return `“${text.replaceAll("\n", "↵").replaceAll(" ", "␣").replaceAll("\t", "⇥")}”`;
}

/** Places the tip below its token, or above if there is no room. */
function place() {
  const [around] = explained.getClientRects(); // the first of its lines
  if (tip.hidden || !around) return;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(around.left, innerWidth - width - 8));
  const below = around.bottom + 6;
  const top = below + height > innerHeight - 8 ? Math.max(8, around.top - height - 6) : below;
  tip.style.left = `${left}px`;
  tip.style.top = `${top}px`;
}

addEventListener("scroll", () => explained && place(), true); // focus may scroll to the token
