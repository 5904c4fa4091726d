// Writes a program that sends the given request. Does not touch the page.

/**
 * @typedef {object} Request
 * @property {string} base the server's address, without a trailing slash
 * @property {Record<string, any>} body
 * @property {string | null} key the key to include; with null, the program reads it from the environment
 * @property {boolean} needsKey whether the server requires a key
 */

const VARIABLE = "PHI3V_API_KEY";
// Named parameters of the SDKs' methods; all others go into model_extras or extra_body.
const AZURE = ["model", "temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens", "seed", "stop"];
const OPENAI = [...AZURE, "logprobs", "top_logprobs"];
// Characters that terminals interpret or editors hide; their escapes are the same in JSON and Python.
const UNSEEN = /[\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** @param {Request} request */
export function curl({ base, body, key, needsKey }) {
  const lines = [
    `curl -N ${shell(`${base}/chat/completions`)}`,
    "-H 'Content-Type: application/json'",
    "-H 'extra-parameters: pass-through'",
    ...(needsKey ? [`-H ${key === null ? `"api-key: $${VARIABLE}"` : shell(`api-key: ${key}`)}`] : []),
    "-d @- <<'JSON'",
  ];
  return `${about(key, needsKey)}${lines.join(" \\\n  ")}\n${json(body, 2)}\nJSON\n`;
}

/** @param {Request} request */
export function azurePython({ base, body, key, needsKey }) {
  const { pictures, messages } = takePictures(body.messages);
  const kinds = new Set();
  const written = messages.map((message) => azureMessage(message, kinds));
  return lines(
    "# pip install azure-ai-inference",
    about(key, needsKey).trimEnd(),
    needsKey && key === null ? "import os\n" : "",
    "from azure.ai.inference import ChatCompletionsClient",
    `from azure.ai.inference.models import ${[...kinds].sort().join(", ")}`,
    "from azure.core.credentials import AzureKeyCredential\n",
    pictures.map(({ name, url }) => `${name} = ${json(url)}\n`).join(""),
    `client = ChatCompletionsClient(${json(base)}, AzureKeyCredential(${pythonKey(key, needsKey)}))`,
    "stream = client.complete(",
    `    messages=[\n${written.map((message) => `        ${message},\n`).join("")}    ],`,
    ...parameters(body, AZURE, "model_extras"),
    ")",
    "for update in stream:",
    "    if update.choices:",
    '        print(update.choices[0].delta.content, end="", flush=True)',
    "print()",
  );
}

/** @param {Request} request */
export function openaiPython({ base, body, key, needsKey }) {
  const { pictures, messages } = takePictures(body.messages);
  return lines(
    "# pip install openai",
    about(key, needsKey).trimEnd(),
    needsKey && key === null ? "import os\n" : "",
    "from openai import OpenAI\n",
    pictures.map(({ name, url }) => `${name} = ${json(url)}\n`).join(""),
    `client = OpenAI(base_url=${json(`${base}/v1`)}, api_key=${pythonKey(key, needsKey)})`,
    "stream = client.chat.completions.create(",
    `    messages=[\n${messages.map((message) => `        ${python(message)},\n`).join("")}    ],`,
    // The SDK requires a model; the server accepts any name.
    ...parameters({ model: "any", ...body }, OPENAI, "extra_body"),
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    '        print(chunk.choices[0].delta.content, end="", flush=True)',
    "print()",
  );
}

const lines = (...texts) => `${texts.filter((text) => text).join("\n")}\n`;

function about(key, needsKey) {
  if (!needsKey) return "";
  if (key !== null) return "# Contains the API key: do not share it.\n";
  return `# The API key is read from the environment: export ${VARIABLE}=...\n`;
}

function pythonKey(key, needsKey) {
  if (!needsKey) return '"any"';
  return key === null ? `os.environ["${VARIABLE}"]` : json(key);
}

/** An identifier in Python source, as opposed to a string. */
class Name {
  constructor(name) {
    this.name = name;
  }
}

/** Replaces the pictures in the messages, which may be megabytes, by names. */
function takePictures(messages) {
  const pictures = [];
  const parts = messages.flatMap(({ content }) => (typeof content === "string" ? [] : content));
  const isOnly = parts.filter(({ type }) => type === "image_url").length === 1;
  const short = messages.map((message) => {
    if (typeof message.content === "string") return message;
    const content = message.content.map((part) => {
      if (part.type !== "image_url") return part;
      const name = isOnly ? "PICTURE" : `PICTURE_${pictures.length + 1}`;
      pictures.push({ name, url: part.image_url.url });
      return { ...part, image_url: { ...part.image_url, url: new Name(name) } };
    });
    return { ...message, content };
  });
  return { pictures, messages: short };
}

const AZURE_MESSAGES = { system: "SystemMessage", user: "UserMessage", assistant: "AssistantMessage" };

/** A message in Azure's classes; adds their names to `kinds`. */
function azureMessage({ role, content }, kinds) {
  const kind = AZURE_MESSAGES[role];
  kinds.add(kind);
  if (typeof content === "string") return `${kind}(${python(content)})`;
  const parts = content.map((part) => {
    if (part.type === "text") {
      kinds.add("TextContentItem");
      return `TextContentItem(text=${python(part.text)})`;
    }
    kinds.add("ImageContentItem").add("ImageUrl");
    const { url, detail } = part.image_url;
    const rest = detail ? `, detail=${python(detail)}` : "";
    return `ImageContentItem(image_url=ImageUrl(url=${url.name}${rest}))`;
  });
  return `${kind}([${parts.join(", ")}])`;
}

/** Keyword arguments; parameters not in `own` go into a dictionary. */
function parameters(body, own, extras) {
  const { messages, stream, ...rest } = body;
  const entries = Object.entries(rest);
  const plain = entries.filter(([name]) => own.includes(name));
  const other = entries.filter(([name]) => !own.includes(name));
  return [
    ...plain.map(([name, value]) => `    ${name}=${python(value)},`),
    ...(other.length ? [`    ${extras}=${python(Object.fromEntries(other))},`] : []),
    `    stream=${python(stream)},`,
  ];
}

/** A JSON value as Python source. */
function python(value) {
  if (value instanceof Name) return value.name;
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    const items = Object.entries(value).map(([name, item]) => `${json(name)}: ${python(item)}`);
    return `{${items.join(", ")}}`;
  }
  return json(value);
}

function json(value, indent = 0) {
  return JSON.stringify(value, null, indent).replace(UNSEEN, escape);
}

const escape = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;

/** Quotes a word for the shell. */
const shell = (word) => `'${word.replaceAll("'", "'\\''")}'`;
