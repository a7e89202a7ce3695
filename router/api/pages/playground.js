// The page at /. What is said is kept in this tab's memory alone.

import { Answer, layersOf, shadeOf } from "./answer.js";
import { firstDifference } from "./figures.js";
import { Key, call, element, number, request, setText } from "./helios.js";
import { callOf, curlOf, readForm } from "./parameters.js";
import { partsOf } from "./stream.js";
import { Tip } from "./tip.js";

const LOADING_MS = 2000; // between two looks at a server that loads
const EXAMPLES = {
  chat: ["Why is the sky blue?", "Write a short poem about the sea.", "How do I boil an egg?"],
  completion: ["Once upon a time", "The capital of France is", "def fibonacci(n):"],
};

const HINTS = {
  full: "In mode full every token goes through all layers. With --exit-mode per_row and --exits they may leave early.",
  speculative: "In mode speculative all layers verify what an exit drafts: every token counts as full depth's.",
};

const $ = (id) => document.getElementById(id);
const root = document.documentElement;
const form = $("ask");
const key = new Key("API");
const tip = new Tip();
let model = null; // what /info says of it
let messages = []; // the conversation so far
let follows = true; // the page stays at its end while an answer grows, unless one scrolls away from it
let running = null; // AbortController of the call under way

/* ---- what is served ---- */

async function readModel() {
  let info;
  try {
    info = await call("info", { key });
  } catch (error) {
    setText($("served"), wordsOf(error));
    return;
  }
  if (info.num_layers === null) {
    setText($("served"), "The model is being loaded.");
    setTimeout(readModel, LOADING_MS);
    return;
  }
  model = {
    name: info.model_id,
    mode: info.exit_mode,
    depth: info.depth,
    numLayers: info.num_layers,
    thresholds: info.exit_thresholds,
    supportsChat: info.supports_chat,
    supportsExact: info.supports_exact,
  };
  showModel();
}

function showModel() {
  const { name, mode, depth, numLayers, thresholds } = model;
  const layers = depth < numLayers ? `${depth} of ${numLayers} layers` : `${numLayers} layers`;
  setText($("served"), `${name}, ${layers}, mode ${mode}`);
  const items = layersOf(model).map((layer) => {
    const name = layer === numLayers ? `all ${layer}` : String(layer);
    return element("li", { class: `token ${shadeOf(layer, model)}` }, name);
  });
  $("legend").replaceChildren(...items);
  showThresholds(Object.entries(thresholds));
  offer("kind", "chat", model.supportsChat);
  for (const value of ["exact", "both"]) offer("mode", value, model.supportsExact);
  showHint();
  showExamples();
}

function showThresholds(limits) {
  $("exit_threshold").disabled = !limits.length;
  const words = limits.map(([layer, limit]) => `${layer}: ${limit < 1 ? number(limit) : "never"}`);
  const without = `Mode ${model.mode} compares no threshold.`;
  setText($("thresholds"), limits.length ? `Without one, by layer: ${words.join(", ")}.` : without);
}

/** Greys a choice that the model does not have, and takes the other one if it was taken. */
function offer(name, value, isOffered) {
  const choice = form.querySelector(`[name=${name}][value=${value}]`);
  choice.disabled = !isOffered;
  if (isOffered || !choice.checked) return;
  form.querySelector(`[name=${name}]:not(:disabled)`)?.click();
  if (name === "kind") form.elements.kind.value = "completion";
}

function showHint() {
  const hints = [];
  if (!model.supportsChat) hints.push("This model has no chat template, so that it completes texts but does not chat.");
  if (!model.supportsExact) hints.push("Exact answers need all layers, and no shard has them loaded.");
  if (HINTS[model.mode]) hints.push(HINTS[model.mode]);
  setText($("hint"), hints.join(" "));
  $("hint").hidden = !hints.length;
}

function showExamples() {
  const use = (text) => () => {
    $("prompt").value = text;
    form.requestSubmit();
  };
  const buttons = EXAMPLES[form.elements.kind.value].map((text) =>
    element("button", { type: "button", onclick: use(text) }, text),
  );
  $("examples").replaceChildren(...buttons);
}

/* ---- asking ---- */

/** The calls of a prompt, in the order in which they are made: `[title, call]`. */
function callsOf(prompt) {
  const asked = readForm(form);
  if (asked.mode === "both" && asked.parameters.temperature !== 0) asked.parameters.seed ??= drawSeed();
  const system = form.elements.system.value.trim();
  const before = [...(system ? [{ role: "system", content: system }] : []), ...messages];
  const threshold = asked.parameters.exit_threshold;
  const own = `${model.mode}${threshold === undefined ? "" : `, threshold ${threshold}`}`;
  const made = [
    [`Server's mode: ${own}`, callOf(asked, prompt, before, false)],
    [`Exact: all ${model.numLayers} layers`, callOf(asked, prompt, before, true)],
  ];
  return { own: made.slice(0, 1), exact: made.slice(1), both: made }[asked.mode];
}

/** Both answers of a comparison draw with the same noise. */
function drawSeed() {
  return Math.floor(Math.random() * 2 ** 32);
}

async function ask(prompt) {
  const calls = callsOf(prompt);
  const isChat = form.elements.kind.value === "chat";
  const answers = element("div", { class: calls.length > 1 ? "answers two" : "answers" });
  const turn = element("article", { class: "turn" }, element("p", { class: "prompt" }, prompt), answers);
  $("empty").hidden = true;
  $("turns").append(turn);
  const done = [];
  begin();
  try {
    // One after the other: together they would share steps, and neither would be as fast as alone. Nor does the
    // second one find in the cache what the first one computed of the prompt.
    for (const [title, made] of calls) {
      if (calls.length > 1) made.body.cache_salt = `playground ${Math.random()}`;
      const answer = new Answer(title, modelFor(made), tip);
      answers.append(answer.element);
      done.push(answer);
      await stream(made, answer);
    }
    if (isChat) messages.push({ role: "user", content: prompt }, { role: "assistant", content: done[0].text });
    if (done.length > 1) turn.append(verdictOf(...done));
  } catch (error) {
    showError(error, turn, done.at(-1), prompt);
  } finally {
    end(done.at(-1));
    readModel();
  }
}

/** The model with the thresholds of a call. */
function modelFor({ body: { exit_threshold: threshold } }) {
  if (threshold === undefined) return model;
  const layers = Object.keys(model.thresholds);
  return { ...model, thresholds: Object.fromEntries(layers.map((layer) => [layer, threshold])) };
}

async function stream({ path, body }, answer) {
  const response = await request(path, { key, method: "POST", body, signal: running.signal });
  for await (const part of partsOf(response)) answer.add(part);
  answer.end();
}

function begin() {
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  setText($("status"), "Answering…");
  for (const field of form.elements) field.removeAttribute("aria-invalid");
}

function end(answer) {
  running = null;
  $("send").hidden = false;
  $("stop").hidden = true;
  setText($("status"), answer?.how ? `Ended ${answer.how}.` : "");
}

/** Where two answers part, and how their speeds compare. */
function verdictOf(own, exact) {
  const at = firstDifference(own.figures.tokens, exact.figures.tokens);
  own.mark(at);
  exact.mark(at);
  const text =
    at === null
      ? `The same ${own.figures.tokens.length} tokens. `
      : `The answers part at token ${at + 1}: ${shown(own, at)} here, ${shown(exact, at)} at full depth. `;
  const [rate, full] = [own.figures.rate, exact.figures.rate];
  const speed = rate && full ? `${(rate / full).toFixed(2)} times the tokens/s of exact.` : "";
  return element("p", { class: "verdict" }, text + speed);
}

function shown(answer, at) {
  const token = answer.figures.tokens[at];
  return token ? JSON.stringify(token.text) : "the end";
}

/** Tells of it, shows its field, and gives back a prompt that was not answered. */
function showError(error, turn, answer, prompt) {
  answer?.end(error.name === "AbortError" ? "since you stopped it" : "with an error");
  if (error.name === "AbortError") return;
  const field = error.field && form.elements[error.field];
  turn.append(element("p", { class: "error", role: "alert" }, wordsOf(error)));
  if (!answer?.figures.tokens.length) {
    answer?.element.remove();
    $("prompt").value ||= prompt;
  }
  if (!(field instanceof HTMLElement)) return;
  $("parameters").open = true;
  field.setAttribute("aria-invalid", "true");
  field.focus();
}

function wordsOf(error) {
  return error instanceof TypeError ? "The server cannot be reached." : error.message;
}

/* ---- what people do ---- */

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = $("prompt").value;
  if (!prompt.trim() || running || !model) return;
  $("prompt").value = "";
  follows = true;
  ask(prompt);
});

$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

$("stop").addEventListener("click", () => running?.abort());

$("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  for (const turn of document.querySelectorAll(".turn")) turn.remove();
  $("empty").hidden = false;
  $("prompt").focus();
});

$("curl").addEventListener("click", async () => {
  if (!model) return;
  const [[, made]] = callsOf($("prompt").value || "Hello");
  await navigator.clipboard.writeText(curlOf(made, document.baseURI, key.value !== null));
  setText($("status"), "Copied.");
});

$("numbers").addEventListener("change", (event) => $("turns").classList.toggle("numbered", event.target.checked));
form.addEventListener("change", (event) => event.target.name === "kind" && showExamples());

let scrolledTo = 0;
addEventListener(
  "scroll",
  () => {
    // an answer may have grown between our own scrolling and its event: only upwards is away
    follows = innerHeight + scrollY > root.scrollHeight - 80 || (follows && scrollY >= scrolledTo);
    scrolledTo = scrollY;
  },
  { passive: true },
);
new ResizeObserver(() => follows && scrollTo({ top: root.scrollHeight })).observe($("turns"));

$("parameters").open = matchMedia("(min-width: 900px)").matches;
$("curl").hidden = !navigator.clipboard;
document.querySelector("main").append(tip.element);
readModel();
