// Reads streamed answers of /v1/chat/completions and /v1/completions. Knows nothing of the document.

import { Refused } from "./helios.js";

/** The parts of a streamed answer: `{text, token, finish}`. `token` is null in a part that only brings text; else
    `{text, logprob, layer, confidence}`, where `layer` is 0 if a grammar forced the token.
    Throws `Refused` for an event that tells of a failure, and when the stream breaks off. */
export async function* partsOf(response) {
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    const { error, choices } = JSON.parse(data);
    if (error) throw new Refused(response.status, error.message, error.param);
    if (choices.length) yield partOf(choices[0]);
  }
  throw new Refused(response.status, "The answer broke off: the server closed the stream.");
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let read; !(read = await reader.read()).done; ) {
    const events = (rest + read.value).split("\n\n");
    rest = events.pop();
    for (const event of events) if (event.startsWith("data: ")) yield event.slice("data: ".length);
  }
}

function partOf(choice) {
  const text = choice.delta ? (choice.delta.content ?? "") : choice.text;
  return { text, token: tokenOf(choice.logprobs), finish: choice.finish_reason };
}

function tokenOf(logprobs) {
  if (logprobs?.content?.length) {
    const { token, logprob, exit_layer, confidence } = logprobs.content[0];
    return { text: token, logprob, layer: exit_layer, confidence };
  }
  if (!logprobs?.tokens?.length) return null;
  const [text, logprob] = [logprobs.tokens[0], logprobs.token_logprobs[0]];
  return { text, logprob, layer: logprobs.exit_layers[0], confidence: logprobs.confidences[0] };
}
