// The seed's JavaScript samples against a server: node azure.mjs ENDPOINT KEY DATA_URL
// Corrected where a sample cannot run: the stream sample lacks `stream: true` and the import of
// createSseStream, and plain http needs allowInsecureConnection.
import ModelClient, { isUnexpected } from "@azure-rest/ai-inference";
import { AzureKeyCredential } from "@azure/core-auth";
import { createSseStream } from "@azure/core-sse";

const [endpoint, key, dataUrl] = process.argv.slice(2);
const insecure = { allowInsecureConnection: true };
const client = new ModelClient(endpoint, new AzureKeyCredential(key), insecure);
const results = {};

const info = await client.path("/info").get();
results.info = info.body;

const messages = [
  { role: "system", content: "You are a helpful assistant" },
  { role: "user", content: "How many languages are in the world?" },
];
const complete = async (body, headers = {}) => {
  const response = await client.path("/chat/completions").post({ body, headers });
  if (isUnexpected(response)) throw response.body.error;
  return response.body;
};
results.plain = await complete({ messages, max_tokens: 8 });

const parameters = {
  messages,
  presence_penalty: "0.1",
  frequency_penalty: "0.8",
  max_tokens: 16,
  stop: ["<|endoftext|>"],
  temperature: 0,
  top_p: 1,
  response_format: { type: "text" },
};
results.parameters = await complete(parameters);

results.extras = await complete(
  { messages, logprobs: true, max_tokens: 4 },
  { "extra-params": "pass-through" },
);

const picture = [
  { type: "text", text: "Which conclusion can be extracted from the following chart?" },
  { type: "image_url", image: { url: dataUrl } }, // the seed's key; the SDK's own is image_url
];
const image = { messages: [messages[0], { role: "user", content: picture }], max_tokens: 8 };
results.image = await complete({ ...image, temperature: 0, top_p: 1 });

const response = await client
  .path("/chat/completions")
  .post({ body: { ...parameters, stream: true } })
  .asNodeStream();
if (response.status !== "200") throw new Error(`status ${response.status}`);
results.stream = { text: "", events: 0, done: false };
for await (const event of createSseStream(response.body)) {
  if (event.data === "[DONE]") {
    results.stream.done = true;
    break;
  }
  const chunk = JSON.parse(event.data);
  results.stream.events += 1;
  results.stream.usage = chunk.usage;
  for (const choice of chunk.choices) results.stream.text += choice.delta?.content ?? "";
}

try {
  await complete({ messages, temperature: 9 });
} catch (error) {
  results.error = error;
}

const stranger = new ModelClient(endpoint, new AzureKeyCredential("wrong"), insecure);
const refused = await stranger.path("/info").get();
results.refused = { unexpected: isUnexpected(refused), status: refused.status, body: refused.body };

console.log(JSON.stringify(results));
