// The form's parameters as the body of a call, and a call as a command for a terminal.

const NUMBERS = [
  "max_tokens",
  "temperature",
  "top_p",
  "top_k",
  "seed",
  "exit_threshold",
  "repetition_penalty",
  "presence_penalty",
  "frequency_penalty",
];
const PATHS = { chat: "v1/chat/completions", completion: "v1/completions" };

/** What is asked for: `{kind, mode, parameters}`. Fields that are empty are left to the server. */
export function readForm(form) {
  const { elements } = form;
  const parameters = {};
  for (const name of NUMBERS) {
    const { value, disabled } = elements[name];
    if (value !== "" && !disabled) parameters[name] = Number(value);
  }
  const stop = elements.stop.value.split("\n").filter((line) => line !== "");
  if (stop.length) parameters.stop = stop;
  return { kind: elements.kind.value, mode: elements.mode.value, parameters };
}

/** The call of a prompt: `{path, body}`. `messages` are those before it. */
export function callOf({ kind, parameters }, prompt, messages, isExact) {
  const asked = { ...parameters, ...(isExact ? { exact: true } : {}), stream: true };
  if (isExact) delete asked.exit_threshold;
  if (kind === "completion") return { path: PATHS[kind], body: { prompt, ...asked, logprobs: 0 } };
  const all = [...messages, { role: "user", content: prompt }];
  return { path: PATHS[kind], body: { messages: all, ...asked, logprobs: true } };
}

/** The same call by curl. The key, if there is one, is left to the environment. */
export function curlOf({ path, body }, base, hasKey) {
  const key = hasKey ? ` \\\n  -H "authorization: Bearer $HELIOS_API_KEY"` : "";
  return `curl -N ${quoted(new URL(path, base).href)} -H 'content-type: application/json'${key} \\\n  -d ${quoted(JSON.stringify(body))}`;
}

function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
