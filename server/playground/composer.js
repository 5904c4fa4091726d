// The form for a message and its pictures, which are picked, dropped, pasted or samples.

import { readPicture } from "./image.js";

const form = /** @type {HTMLFormElement} */ (document.querySelector("#composer"));
const prompt = /** @type {HTMLTextAreaElement} */ (document.querySelector("#prompt"));
const attachment = /** @type {HTMLElement} */ (document.querySelector("#attachment"));
const attached = /** @type {HTMLTemplateElement} */ (document.querySelector("#attached"));
const complaint = /** @type {HTMLElement} */ (document.querySelector("#composer-error"));
const picker = /** @type {HTMLInputElement} */ (document.querySelector("#file"));
const dropZone = /** @type {HTMLElement} */ (document.querySelector("#drop"));
const touch = matchMedia("(pointer: coarse)");

export class Composer {
  /** @type {import("./request.js").Picture[]} */
  #pictures = [];
  #reading = Promise.resolve(); // the pictures added last
  #suggested = ""; // a sample's prompt; unlike typed text, the next sample replaces it

  /**
   * @param {import("./image.js").Limits} limits
   * @param {(text: string, pictures: import("./request.js").Picture[]) => void} onSend
   */
  constructor(limits, onSend) {
    this.limits = limits;
    this.onSend = onSend;
    this.isBusy = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    prompt.addEventListener("keydown", (event) => {
      // Touch keyboards have no Shift+Enter, and in an input method Enter ends a word.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch.matches) return;
      event.preventDefault();
      this.#send();
    });
    picker.multiple = limits.images_per_prompt > 1;
    picker.addEventListener("change", () => {
      this.#add(picker.files);
      picker.value = ""; // so that the same file can be picked again
    });
    document.addEventListener("paste", (event) => {
      if (!event.clipboardData.files.length) return;
      event.preventDefault();
      this.#add(event.clipboardData.files);
    });
    for (const button of document.querySelectorAll("[data-sample]")) {
      button.addEventListener("click", () => this.#addSample(button.dataset));
    }
    this.#takeDrops();
  }

  /** Shows the Stop button instead of Send while an answer streams. */
  setBusy(isBusy) {
    this.isBusy = isBusy;
    const hadFocus = document.activeElement?.closest("#send, #stop");
    document.querySelector("#send").hidden = isBusy;
    document.querySelector("#stop").hidden = !isBusy;
    if (hadFocus) this.focus();
  }

  focus() {
    if (!touch.matches) prompt.focus(); // on touch screens this would open the keyboard
  }

  clear() {
    prompt.value = "";
    this.#show([]);
  }

  async #send() {
    await this.#reading;
    const text = prompt.value.trim();
    if (this.isBusy || !(text || this.#pictures.length)) return;
    const pictures = this.#pictures;
    this.clear();
    this.onSend(text, pictures);
  }

  #add(files) {
    const images = [...files].filter(({ type }) => type.startsWith("image/"));
    const added = images.length ? images : [...files].slice(0, 1);
    if (!added.length) return;
    this.#reading = this.#reading.then(() => this.#read(added)); // one after the other, to keep their order
    this.focus();
  }

  /** Reads files and attaches them; a single picture replaces the one before. */
  async #read(files) {
    const most = this.limits.images_per_prompt;
    if (most === 1) this.#pictures = [];
    const room = most - this.#pictures.length;
    try {
      const read = await Promise.all(files.slice(0, room).map((file) => readPicture(file, this.limits)));
      this.#show([...this.#pictures, ...read], files.length > room ? tooMany(most, room) : "");
    } catch (error) {
      this.#show(this.#pictures, error.message);
    }
  }

  async #addSample({ sample, prompt: question }) {
    const response = await fetch(`playground/samples/${sample}.svg`);
    const blob = await response.blob();
    this.#add([new File([blob], `${sample}.svg`, { type: "image/svg+xml" })]);
    if (!prompt.value || prompt.value === this.#suggested) {
      prompt.value = this.#suggested = question;
    }
  }

  #show(pictures, problem = "") {
    this.#pictures = pictures;
    attachment.replaceChildren(...pictures.map((picture) => this.#item(picture)));
    attachment.hidden = !pictures.length;
    complaint.hidden = !problem;
    complaint.textContent = problem;
  }

  /** A picture to send, with a button that removes it. */
  #item(picture) {
    const item = /** @type {HTMLElement} */ (attached.content.firstElementChild.cloneNode(true));
    const image = item.querySelector("img");
    image.hidden = !picture.width; // 0 if the browser cannot read it
    image.src = picture.url;
    item.querySelector("strong").textContent = picture.name;
    item.querySelector("span").textContent = picture.note;
    const remove = item.querySelector("button");
    remove.setAttribute("aria-label", `Remove the picture ${picture.name}`);
    remove.addEventListener("click", () => {
      this.#show(this.#pictures.filter((other) => other !== picture));
      this.focus();
    });
    return item;
  }

  #takeDrops() {
    let depth = 0; // dragging over a child enters it before it leaves the parent
    const bringsFiles = (event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragenter", (event) => {
      if (!bringsFiles(event)) return;
      depth += 1;
      dropZone.hidden = false;
    });
    addEventListener("dragleave", (event) => {
      if (!bringsFiles(event)) return;
      depth -= 1;
      dropZone.hidden = depth <= 0;
    });
    addEventListener("dragover", (event) => bringsFiles(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      if (!bringsFiles(event)) return;
      event.preventDefault();
      depth = 0;
      dropZone.hidden = true;
      this.#add(event.dataTransfer.files);
    });
  }
}

/** Why not all pictures were added. */
function tooMany(most, room) {
  if (most === 1) return "A message can have only one picture; the first was added.";
  return `A message can have at most ${most} pictures; ${room ? "the rest were left out" : "remove one first"}.`;
}
