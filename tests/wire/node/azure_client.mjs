// Azure's SDK for JavaScript, with its REST client's own error path: node azure_client.mjs URL KEY IMAGE
// Prints what the programs in ../clients print: for the client, what its cells returned or raised.
import ModelClient, { isUnexpected } from "@azure-rest/ai-inference";
import { AzureKeyCredential } from "@azure/core-auth";
import { createSseStream } from "@azure/core-sse";

const [url, key, image] = process.argv.slice(2);
const insecure = { allowInsecureConnection: true }; // or the SDK refuses plain http
const client = (given = key) => new ModelClient(url, new AzureKeyCredential(given), insecure);
const settings = { temperature: 0, max_tokens: 256 };
const asked = [{ role: "user", content: "How many languages are in the world?" }];
const shown = [
  {
    role: "user",
    content: [
      { type: "text", text: "What is in this image?" },
      { type: "image_url", image_url: { url: image } },
    ],
  },
];
const weather = { name: "weather", parameters: { type: "object", properties: {} } };

const result = (pieces, usage) => ({
  text: pieces.join(""),
  pieces: pieces.length,
  prompt_tokens: usage.prompt_tokens,
  completion_tokens: usage.completion_tokens,
});

class Unexpected extends Error {
  constructor(response) {
    super(response.body.error.message);
    this.status = Number(response.status);
    // The SDK's types promise both of them.
    if (response.headers["x-ms-error-code"] !== response.body.error.code) {
      throw new TypeError(`x-ms-error-code is ${response.headers["x-ms-error-code"]}`);
    }
  }
}

const complete = async (body, given = key) => {
  const response = await client(given)
    .path("/chat/completions")
    .post({ body: { messages: asked, ...settings, ...body } });
  if (isUnexpected(response)) throw new Unexpected(response);
  return result([response.body.choices[0].message.content], response.body.usage);
};

const stream = async () => {
  const response = await client()
    .path("/chat/completions")
    .post({ body: { messages: asked, ...settings, stream: true } })
    .asNodeStream();
  if (response.status !== "200") throw new Error(`status ${response.status}`);
  const pieces = [];
  let usage;
  for await (const event of createSseStream(response.body)) {
    if (event.data === "[DONE]") return result(pieces, usage);
    const chunk = JSON.parse(event.data);
    usage = chunk.usage;
    for (const choice of chunk.choices) if (choice.delta?.content) pieces.push(choice.delta.content);
  }
  throw new Error("the stream ended without [DONE]");
};

const info = async () => {
  const { body } = await client().path("/info").get();
  return [body.model_name, body.model_type, body.model_provider_name];
};

const insist = async () => {
  const secure = new ModelClient(url, new AzureKeyCredential(key));
  return (await secure.path("/info").get()).status;
};

const cells = {
  answer: () => complete({}),
  stream,
  image: () => complete({ messages: shown }),
  error: () => complete({ top_p: 2 }),
  auth: () => complete({}, "wrong"),
  info,
  insist,
  tools: () => complete({ tools: [{ type: "function", function: weather }] }),
};
const results = {};
for (const [name, cell] of Object.entries(cells)) {
  try {
    results[name] = { returned: await cell() };
  } catch (error) {
    results[name] = {
      raised: [error.constructor.name],
      status: error.status ?? null,
      message: error.message,
      traceback: error.stack,
    };
  }
}
console.log(JSON.stringify({ client: results }));
