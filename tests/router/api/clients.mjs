// Drives @huggingface/inference against a server: node clients.mjs URL MODULE [MODEL]. The last line is what it saw, as JSON.
const [url, module, model] = process.argv.slice(2); // the former client asks the hub for a model unless it has one
const library = await import(module);
const Client = library.InferenceClient ?? library.HfInference;
const client = new Client().endpoint(url);

const inputs = "Once upon a time";
const parameters = { max_new_tokens: 8, temperature: 0 };
const chat = { model, messages: [{ role: "user", content: inputs }], max_tokens: 8, temperature: 0 };

async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

const seen = {
  text: await client.textGeneration({ model, inputs, parameters }),
  textEvents: await all(client.textGenerationStream({ model, inputs, parameters })),
  chat: await client.chatCompletion(chat),
  chatEvents: await all(client.chatCompletionStream(chat)),
  refusal: await client.textGeneration({ model, inputs, parameters: { max_new_tokens: 1e9 } }).catch(String),
};
console.log(JSON.stringify(seen));
