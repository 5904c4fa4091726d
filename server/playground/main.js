// The playground: sends requests, streams the answers, and keeps the conversation.

import { showCode } from "./code_dialog.js";
import { Composer } from "./composer.js";
import { Panel } from "./panel.js";
import { ask, chunksOf, Failure, messagesOf } from "./request.js";
import { Turn } from "./turn.js";

const RETRY_AFTER = 1000; // milliseconds, while the model loads
const log = /** @type {HTMLElement} */ (document.querySelector("#log"));
const list = document.querySelector("#turns");
const welcome = /** @type {HTMLElement} */ (document.querySelector("#welcome"));
const connection = document.querySelector("#connection");
const announcement = document.querySelector("#announcement");

const limits = await (await fetch("playground/settings.json")).json();
const panel = new Panel(limits);
const composer = new Composer(limits, send);
/** @type {Turn[]} */
let turns = [];
/** @type {AbortController | null} */
let running = null;
let model = "";

function send(text, pictures) {
  const turn = new Turn(text, pictures, {
    again: () => run(turn),
    code: () => showCode(turn.body, panel.key, limits.api_key_required),
    draw: keepEndInView,
  });
  turns.push(turn);
  list.append(turn.element);
  welcome.hidden = true;
  run(turn);
  log.scrollTop = log.scrollHeight;
}

async function run(turn) {
  if (running) return;
  const asking = (running = new AbortController());
  composer.setBusy(true);
  composer.focus();
  announcement.textContent = "";
  turn.begin({
    ...(model && { model }),
    messages: messagesOf(panel.system, turns, panel.detail, limits.images_per_prompt),
    ...panel.parameters,
    stream: true,
  });
  try {
    for await (const chunk of chunksOf(turn.body, panel.key, asking.signal)) turn.take(chunk);
    turn.end(false);
    announcement.textContent = `The model says: ${turn.spoken}`;
  } catch (error) {
    if (asking.signal.aborted) {
      turn.end(true);
      announcement.textContent = "Stopped.";
    } else {
      turn.fail(error);
      panel.blame(error.param);
      if (error.status === 401) panel.askForKey();
      if (!(error instanceof Failure)) throw error; // a bug in this page, for the console
    }
  } finally {
    if (running === asking) {
      running = null;
      composer.setBusy(false);
    }
  }
}

/** Keeps the end of the answer in view, unless the user has scrolled up. */
function keepEndInView(change) {
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  change();
  if (follows) log.scrollTop = log.scrollHeight;
}

/** Shows the model's name, or why it is not available. */
async function connect() {
  if (limits.api_key_required && !panel.key) {
    connection.textContent = "API key required";
    return;
  }
  try {
    const info = await (await ask(new URL("info", document.baseURI), panel.key)).json();
    connection.textContent = model = info.model_name;
  } catch (error) {
    connection.textContent = error.message;
    if (error.status === 503) setTimeout(connect, RETRY_AFTER);
  }
}

const stop = () => running?.abort();

document.querySelector("#stop").addEventListener("click", stop);
document.querySelector("#new-chat").addEventListener("click", () => {
  stop();
  turns = [];
  list.replaceChildren();
  welcome.hidden = false;
  composer.clear();
  composer.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (panel.covers) panel.show(false);
  else stop();
});
panel.onKey(connect);
connect();
