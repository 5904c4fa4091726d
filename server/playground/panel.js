// The settings beside the conversation: what is sent with each request, and the key.

const KEY = "phi3v-api-key"; // in sessionStorage: this tab's alone, gone when it closes
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

  /** Whether the panel lies over the conversation. */
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

  /** What is filled in, by the names of the API. */
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

  /** Marks the field that the server found fault with. */
  blame(param) {
    const field = this.form.elements[param?.split(".")[0] ?? ""];
    if (!field) return;
    field.setAttribute("aria-invalid", "true");
    const more = field.closest("details");
    if (more) more.open = true;
  }
}

/** A number; what is none, or too long for one, stays text: the server judges, and says why. */
function number(text) {
  const value = Number(text);
  const isExact = Number.isFinite(value) && (!Number.isInteger(value) || Number.isSafeInteger(value));
  return isExact ? value : text;
}
