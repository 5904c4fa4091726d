// The dialog that shows a request as code to copy.

import { copyText } from "./clipboard.js";
import { size } from "./image.js";
import { azurePython, curl, openaiPython } from "./snippets.js";

const PROGRAMS = { curl, azure: azurePython, openai: openaiPython };
const dialog = /** @type {HTMLDialogElement} */ (document.querySelector("#code"));
const form = dialog.querySelector("form");
const code = dialog.querySelector("pre code");
const note = dialog.querySelector("#code-note");
const copied = dialog.querySelector("#copied");

let request = null;
let program = "";

/**
 * @param {Record<string, any>} body
 * @param {string} key the key that was sent
 * @param {boolean} needsKey
 */
export function showCode(body, key, needsKey) {
  const base = new URL(".", document.baseURI).href.replace(/\/$/, "");
  request = { base, body, needsKey, sentKey: key };
  form.with_key.checked = false;
  dialog.querySelector("#code-key").hidden = !(needsKey && key);
  write();
  dialog.showModal();
}

function write() {
  const { sentKey, ...rest } = request;
  const write = PROGRAMS[form.language.value];
  program = write({ ...rest, key: form.with_key.checked ? sentKey : null });
  copied.textContent = "";
  // Showing megabytes of base64 would stall the browser and help nobody.
  let left = 0;
  let pictures = 0;
  code.textContent = program.replace(/(;base64,[\w+/]{40})([\w+/=]{40,})/g, (_, start, rest) => {
    left += rest.length;
    pictures += 1;
    return `${start}…`;
  });
  const [what, all] = pictures > 1 ? ["pictures are", "them"] : ["picture is", "it"];
  note.textContent = left ? `The ${what} shortened here by ${size(left)}; the copied code has all of ${all}.` : "";
}

form.addEventListener("change", write);
dialog.querySelector("#copy").addEventListener("click", async () => {
  copied.textContent = (await copyText(program)) ? "Copied" : "The browser did not allow copying";
});
