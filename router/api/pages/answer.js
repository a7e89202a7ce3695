// An answer on the page: its tokens shaded by the layer at which they left, and its figures.

import { Figures } from "./figures.js";
import { element, exitStep, milliseconds, number, percent } from "./helios.js";

const END = "∎"; // shown for a last token that has no text, such as the end of the text
const REASONS = { length: "at the token limit", stop: "by itself or a stop string" };
const NUM_SHADES = 7;

/** One answer. `model` is `{numLayers, depth, thresholds}` of the server; `tip` tells what is known of a token. */
export class Answer {
  constructor(title, model, tip) {
    this.model = model;
    this.figures = new Figures(performance.now());
    this.text = "";
    this.isDone = false;
    this.spans = [];
    this.body = element("div", { class: "tokens", role: "group", "aria-label": `${title}: its tokens` });
    this.shares = element("div", { class: "shares", "aria-hidden": "true" });
    this.facts = element("dl", { class: "facts number" });
    this.element = element("section", { class: "answer" }, element("h2", {}, title), this.body, this.shares, this.facts);
    this.isDrawing = false;
    tip.follow(this);
  }

  /** The next part of the stream. */
  add({ text, token, finish }) {
    this.text += text;
    if (token) {
      this.figures.add(token, performance.now());
      this.#put(token, text || (finish ? END : ""));
    } else if (text) {
      this.body.append(text);
    }
    if (finish) this.reason = finish;
    this.#drawSoon();
  }

  /** The stream has ended: of itself, by a stop, or with an error. */
  end(how = REASONS[this.reason] ?? this.reason) {
    this.isDone = true;
    this.how = how;
    this.#draw();
  }

  /** Marks the first token that another answer does not have. */
  mark(at) {
    const span = this.spans[at];
    if (!span) return;
    span.classList.add("parting");
    span.prepend(element("span", { class: "visually-hidden" }, "Here the answers part: "));
  }

  /** Appends a token; the space before a word stays outside of its shade. */
  #put(token, shown) {
    const at = this.spans.length;
    const word = shown.trim() ? shown.trimStart() : shown;
    const kind = word.includes("\n") && !word.trim() ? "token newline" : "token";
    const span = element("span", { class: `${kind} ${shadeOf(token.layer, this.model)}`, tabindex: at ? -1 : 0 }, word);
    span.dataset.at = at;
    span.dataset.layer = token.layer || "forced";
    this.spans.push(span);
    this.body.append(shown.slice(0, shown.length - word.length), span);
  }

  #drawSoon() {
    if (this.isDrawing) return;
    this.isDrawing = true;
    requestAnimationFrame(() => {
      this.isDrawing = false;
      this.#draw();
    });
  }

  #draw() {
    const { figures, model } = this;
    const total = figures.tokens.length;
    const segments = figures.layers.map(([layer, count]) => {
      const name = layer || "forced";
      const segment = element("span", { class: shadeOf(layer, model) }, `${name} · ${percent(count / total, 0)}`);
      segment.style.setProperty("flex-grow", count);
      return segment;
    });
    this.shares.replaceChildren(...segments);
    const facts = [
      [number(figures.rate), "tokens/s"],
      [milliseconds(figures.ttft), "to the first token"],
      [number(figures.meanLayer), `mean layer, of ${model.numLayers}`],
      [String(total), this.how ? `tokens, ended ${this.how}` : "tokens"],
    ];
    this.facts.replaceChildren(...facts.map(([value, name]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  }
}

/** Layers at which tokens may leave, as far as is known: the exits in use, and the last one loaded. */
export function layersOf({ depth, thresholds }) {
  return [...new Set([...Object.keys(thresholds).map(Number), depth])];
}

/** The class that shades what left at a layer: all shades are spread over the exits of this model. */
export function shadeOf(layer, model) {
  if (!layer) return "forced";
  if (layer >= model.numLayers) return "full";
  const known = [...new Set([...layersOf(model), model.numLayers])];
  const at = known.indexOf(layer);
  return `exit-${at < 0 ? exitStep(layer, model.numLayers) : Math.floor((at * NUM_SHADES) / known.length)}`;
}

/** What is known of a token, as `[name, value]`. */
export function factsOf(token, { numLayers, thresholds }) {
  const facts = [["layer", layerOf(token, numLayers)]];
  if (token.layer) facts.push(["confidence", confidenceOf(token, thresholds)]);
  facts.push(["log-probability", `${token.logprob.toFixed(3)} (${percent(Math.exp(token.logprob))})`]);
  if (token.sinceLast !== null) facts.push(["since the last token", milliseconds(token.sinceLast)]);
  return facts;
}

function layerOf({ layer }, numLayers) {
  if (!layer) return "none: the grammar left no choice";
  return layer < numLayers ? `left after ${layer} of ${numLayers}` : `all ${numLayers}`;
}

function confidenceOf({ layer, confidence }, thresholds) {
  if (confidence === null) return "below every threshold, or not asked";
  const limit = thresholds[layer];
  if (limit === undefined) return number(confidence);
  return `${number(confidence)}, ${confidence < limit ? "under" : "over"} the threshold of ${number(limit)}`;
}
