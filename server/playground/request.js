// Builds request bodies from the conversation and settings, and reads response streams.

/**
 * @typedef {{url: string, name: string, width: number, height: number, note: string}} Picture
 * @typedef {{text: string, pictures: Picture[], answer: string, failed: boolean}} Exchange
 * @typedef {{name: string, value: unknown}[]} Parameters
 */

/** Azure's route; `pass-through` allows the engine's own parameters, such as top_k. */
export const ENDPOINT = new URL("chat/completions", document.baseURI);
export const HEADERS = { "Content-Type": "application/json", "extra-parameters": "pass-through" };

/** An error to show instead of an answer. */
export class Failure extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, code?: string, param?: string | null}} [details]
   */
  constructor(message, { status, code, param } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
  }
}

/**
 * The messages of a conversation. Only the last pictures are sent, because the model sees no others. In
 * their message they come first, as in the model's training. Failed exchanges are left out.
 *
 * @param {string} system
 * @param {Exchange[]} exchanges the last one is the new question
 * @param {string} detail of the pictures; empty for the server's default
 * @param {number} most how many pictures the model sees
 */
export function messagesOf(system, exchanges, detail, most) {
  const asked = exchanges.at(-1);
  const sent = exchanges.filter((exchange) => exchange === asked || !exchange.failed);
  const seen = sent.flatMap(({ pictures }) => pictures).slice(-most);
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const exchange of sent) {
    const { text, pictures } = exchange;
    const shown = pictures.filter((picture) => seen.includes(picture));
    messages.push({ role: "user", content: shown.length ? parts(text, shown, detail) : text });
    if (exchange !== asked) messages.push({ role: "assistant", content: exchange.answer });
  }
  return messages;
}

function parts(text, pictures, detail) {
  const images = pictures.map(({ url }) => ({ type: "image_url", image_url: detail ? { url, detail } : { url } }));
  return text ? [...images, { type: "text", text }] : images;
}

/**
 * Sends a request and yields the chunks of its answer.
 *
 * @param {object} body
 * @param {string} key
 * @param {AbortSignal} signal
 * @throws {Failure} if the answer is not complete
 */
export async function* chunksOf(body, key, signal) {
  const response = await ask(ENDPOINT, key, {
    method: "POST",
    headers: HEADERS,
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Failure(chunk.error.message, chunk.error);
    yield chunk;
  }
  throw new Failure("The connection closed before the answer was complete.");
}

/** Fetches with the API key; throws a Failure unless the request succeeds. */
export async function ask(url, key, options = {}) {
  const headers = { ...options.headers, ...(key && { "api-key": key }) };
  let response;
  try {
    response = await fetch(url, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Failure(`Cannot reach the server (${error.message}).`);
  }
  if (response.ok) return response;
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    throw new Failure(error.message, { ...error, status: response.status });
  } catch (error) {
    if (error instanceof Failure) throw error;
    // Not in this server's format; perhaps from a proxy.
    throw new Failure(text || response.statusText, { status: response.status });
  }
}

/** Yields the data of server-sent events. */
async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) yield event.replace(/^data: /, "");
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The connection was lost before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
