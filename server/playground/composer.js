// The form for a message and its picture, which is picked, dropped, pasted or a sample.

import { readPicture } from "./image.js";

const form = /** @type {HTMLFormElement} */ (document.querySelector("#composer"));
const prompt = /** @type {HTMLTextAreaElement} */ (document.querySelector("#prompt"));
const attachment = /** @type {HTMLElement} */ (document.querySelector("#attachment"));
const complaint = /** @type {HTMLElement} */ (document.querySelector("#composer-error"));
const picker = /** @type {HTMLInputElement} */ (document.querySelector("#file"));
const dropZone = /** @type {HTMLElement} */ (document.querySelector("#drop"));
const touch = matchMedia("(pointer: coarse)");

export class Composer {
  #picture = null;
  #reading = Promise.resolve(); // the picture added last
  #suggested = ""; // a sample's prompt; unlike typed text, the next sample replaces it

  /**
   * @param {{max_image_pixels: number, max_body_bytes: number}} limits
   * @param {(text: string, picture: import("./request.js").Picture | null) => void} onSend
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
    picker.addEventListener("change", () => {
      this.#add(picker.files);
      picker.value = ""; // so that the same file can be picked again
    });
    document.addEventListener("paste", (event) => {
      if (!event.clipboardData.files.length) return;
      event.preventDefault();
      this.#add(event.clipboardData.files);
    });
    document.querySelector("#detach").addEventListener("click", () => {
      this.#show(null);
      this.focus();
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
    this.#show(null);
  }

  async #send() {
    await this.#reading;
    const text = prompt.value.trim();
    if (this.isBusy || !(text || this.#picture)) return;
    const picture = this.#picture;
    this.clear();
    this.onSend(text, picture);
  }

  #add(files) {
    const file = [...files].find(({ type }) => type.startsWith("image/")) ?? files[0];
    if (!file) return;
    const isOne = files.length === 1;
    const reading = readPicture(file, this.limits).then(
      (picture) => [picture, isOne ? "" : "A message can have only one picture; the first was added."],
      (error) => [null, error.message],
    );
    this.#reading = reading.then(([picture, problem]) => this.#show(picture, problem));
    this.focus();
  }

  async #addSample({ sample, prompt: question }) {
    const response = await fetch(`playground/samples/${sample}.svg`);
    const blob = await response.blob();
    this.#add([new File([blob], `${sample}.svg`, { type: "image/svg+xml" })]);
    if (!prompt.value || prompt.value === this.#suggested) {
      prompt.value = this.#suggested = question;
    }
  }

  #show(picture, problem = "") {
    this.#picture = picture;
    attachment.hidden = !picture;
    complaint.hidden = !problem;
    complaint.textContent = problem;
    if (!picture) return;
    const image = attachment.querySelector("img");
    image.hidden = !picture.width; // 0 if the browser cannot read it
    image.src = picture.url;
    attachment.querySelector("strong").textContent = picture.name;
    attachment.querySelector("span").textContent = picture.note;
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
