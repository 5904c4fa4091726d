// The settings panel: parameters that are sent with each request, and the API key.

const KEY = "phi3v-api-key"; // in sessionStorage, so it is limited to this tab and cleared when the tab closes
const NUMBERS = [
  ...["temperature", "top_p", "max_tokens", "seed", "top_k", "min_p", "presence_penalty"],
  ...["frequency_penalty", "repetition_penalty", "min_tokens"],
];
const narrow = matchMedia("(max-width: 60rem)"); // as in page.css: the panel covers the conversation

export class Panel {
  /** @param {{api_key_required: boolean, max_output_tokens: number}} limits */
  constructor(limits) {
    this.element = /** @type {HTMLElement} */ (document.querySelector("#panel"));
    this.form = /** @type {HTMLFormElement} */ (document.querySelector("#settings"));
    this.toggle = document.querySelector("#panel-toggle");
    const { api_key: key, max_tokens: most } = this.form.elements;
    document.querySelector("#key-field").hidden = !limits.api_key_required;
    key.value = sessionStorage.getItem(KEY) ?? "";
    key.addEventListener("input", () => sessionStorage.setItem(KEY, key.value.trim()));
    most.placeholder = limits.max_output_tokens;
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", ({ target }) => target.removeAttribute("aria-invalid"));
    this.toggle.addEventListener("click", () => this.show(!this.isOpen));
    narrow.addEventListener("change", () => this.show(!narrow.matches));
    this.show(!narrow.matches);
  }

  get isOpen() {
    return !this.element.hidden;
  }

  /** Whether the panel covers the conversation. */
  get covers() {
    return this.isOpen && narrow.matches;
  }

  show(open) {
    this.element.hidden = !open;
    this.toggle.setAttribute("aria-expanded", String(open));
    for (const part of document.querySelector("main").children) part.inert = this.covers;
  }

  get key() {
    return sessionStorage.getItem(KEY) ?? "";
  }

  /** @param {() => void} listener */
  onKey(listener) {
    this.form.elements.api_key.addEventListener("change", listener);
  }

  askForKey() {
    this.show(true);
    this.form.elements.api_key.focus();
  }

  get system() {
    return this.form.elements.system.value.trim();
  }

  get detail() {
    return this.form.elements.detail.value;
  }

  /** The parameters that are filled in, by their API names. */
  get parameters() {
    const fields = this.form.elements;
    const parameters = {};
    for (const name of NUMBERS) {
      if (fields[name].value.trim()) parameters[name] = number(fields[name].value.trim());
    }
    const stop = fields.stop.value.split("\n").filter((line) => line);
    if (stop.length) parameters.stop = stop;
    if (fields.ignore_eos.checked) parameters.ignore_eos = true;
    if (fields.logprobs.checked) {
      parameters.logprobs = true;
      const top = fields.top_logprobs.value.trim();
      if (top) parameters.top_logprobs = number(top);
    }
    return parameters;
  }

  /** Marks the field that the server rejected. */
  blame(param) {
    const field = this.form.elements[param?.split(".")[0] ?? ""];
    if (!field) return;
    field.setAttribute("aria-invalid", "true");
    const more = field.closest("details");
    if (more) more.open = true;
  }
}

/** Parses a number. Invalid or inexact ones stay strings, and the server explains what is wrong. */
function number(text) {
  const value = Number(text);
  const isExact = Number.isFinite(value) && (!Number.isInteger(value) || Number.isSafeInteger(value));
  return isExact ? value : text;
}
