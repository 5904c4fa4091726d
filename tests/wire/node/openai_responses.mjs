// OpenAI's SDK for JavaScript and the Responses API: node openai_responses.mjs BASE_URL KEY IMAGE
// Prints what it got, for test_responses.py.
import OpenAI from "openai";

const [baseURL, apiKey, image] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const asked = {
  model: "any",
  input: "How many languages are in the world?",
  max_output_tokens: 16,
  temperature: 0,
};
const schema = {
  type: "object",
  properties: { city: { enum: ["Rome", "Paris"] }, rank: { enum: [1, 2] } },
  required: ["city", "rank"],
  additionalProperties: false,
};
const format = { type: "json_schema", name: "place", schema, strict: true };
const shown = [
  { type: "input_text", text: "What is in this image?" },
  { type: "input_image", image_url: image, detail: "auto" },
];

const failure = async (attempt) => {
  try {
    await attempt();
  } catch (error) {
    if (error instanceof OpenAI.APIError) return error;
    throw error;
  }
  throw new Error("it was not refused");
};

const whole = await client.responses.create(asked);
const kinds = [];
let streamed = "";
const stream = client.responses.stream(asked);
for await (const event of stream) {
  kinds.push(event.type);
  if (event.type === "response.output_text.delta") streamed += event.delta;
}
const parsed = await client.responses.parse({ ...asked, max_output_tokens: 300, text: { format } });
const more = await client.responses.create({ ...asked, previous_response_id: whole.id });
const seen = await client.responses.create({ ...asked, input: [{ role: "user", content: shown }] });
const tool = { type: "function", name: "visit", parameters: schema, strict: true };
const called = await client.responses.create({
  ...asked,
  max_output_tokens: 300,
  tools: [tool],
  tool_choice: "required",
});
const retrieved = await client.responses.retrieve(whole.id);
await client.responses.delete(whole.id);
const deleted = await failure(() => client.responses.retrieve(whole.id));
const refused = await failure(() => client.responses.create({ ...asked, top_p: 2 }));
console.log(
  JSON.stringify({
    text: whole.output_text,
    streamed,
    retrieved: retrieved.output_text ?? retrieved.output[0].content[0].text,
    kinds,
    parsed: JSON.parse(parsed.output_text),
    input: whole.usage.input_tokens,
    continued: more.usage.input_tokens,
    image: seen.usage.input_tokens,
    called: [called.output[0].type, called.output[0].name, JSON.parse(called.output[0].arguments)],
    deleted: deleted.status,
    error: [refused.status, refused.param],
  }),
);
