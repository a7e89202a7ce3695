// Dialogs that look into one thing: a decision with what it weighed, a request with its time line.

import { element, exitStep, milliseconds, number, timeOfDay } from "./helios.js";
import { chosen } from "./ops_timeline.js";

/** Shows a dialog that only tells. */
function show(title, ...content) {
  const heading = element("h2", { id: "details-title" }, title);
  const close = element("button", { onclick: () => dialog.close() }, "Close");
  const dialog = element("dialog", { class: "wide", "aria-labelledby": "details-title" }, heading, ...content, element("div", { class: "actions" }, close));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  close.focus();
  return dialog;
}

function facts(entries) {
  const shown = entries.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return element("dl", { class: "facts" }, ...shown.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

export function showDecision(decision) {
  const phases = Object.entries(decision.phases_ms ?? {}).map(([name, ms]) => `${name} ${milliseconds(ms)}`);
  const cost = Object.entries(decision.cost ?? {}).map(([name, value]) => `${name} ${number(value)}`);
  show(
    `${decision.kind} ${chosen(decision)}`,
    element("p", {}, decision.why),
    decision.error ? element("p", { class: "error" }, decision.error) : null,
    facts([
      ["Taken", timeOfDay(decision.at)],
      ["By", decision.origin ? `${decision.by}, from ${decision.origin}` : decision.by],
      ["Router", decision.router],
      ["Outcome", decision.outcome ?? "under way"],
      ["Phases", phases.join(", ")],
      ["Cost", cost.join(", ")],
      ["Id", decision.id],
    ]),
    ...json("What it rests on", decision.seen),
    ...json("Alternatives", decision.considered),
  );
}

function json(title, value) {
  if (!value || !Object.keys(value).length) return [];
  return [element("h3", {}, title), element("pre", { class: "mono", tabindex: "0" }, JSON.stringify(value, null, 2))];
}

/** `report` is the answer of `/ops/requests/ID`, or what a snapshot has of a request. */
export function showRequest(report, numLayers, abort) {
  const { request, timeline, exit_layers: layers = [] } = report;
  const dialog = show(
    `Request ${request.id}`,
    facts([
      ["Label", request.label],
      ["Status", request.outcome ? `${request.status}: ${request.outcome}` : request.status],
      ["Model", [request.model, request.version].filter(Boolean).join(" ")],
      ["Shard", request.shard],
      ["Prompt", `${number(request.num_prompt_tokens ?? 0)} tokens`],
      ["Answer", `${request.num_generated_tokens ?? 0} of ${request.max_new_tokens} tokens`],
      ["Mean exit", report.mean_exit_layer === null ? null : number(report.mean_exit_layer)],
    ]),
    report.error ? element("p", { class: "error" }, report.error) : null,
    element("h3", {}, "Time line"),
    bar(timeline, request.age_ms),
    moments(timeline),
    layers.length ? element("h3", {}, `Exit layers, ${tokens(layers.length)}`) : null,
    layers.length ? cells(layers, numLayers) : null,
  );
  if (abort && request.status !== "finished") {
    const button = element("button", { class: "danger", onclick: () => (dialog.close(), abort(request)) }, "Abort…");
    dialog.querySelector(".actions").prepend(button);
  }
}

const tokens = (count) => `${count} token${count === 1 ? "" : "s"}`;

const PHASES = { started: "prefill", resumed: "prefill", moved: "prefill", first_token: "decode" };

/** Spans from moment to moment, to scale: queued, prefill, decode. */
function bar(timeline, ageMs) {
  const isOver = timeline.at(-1)?.what.startsWith("finished");
  const end = isOver ? timeline.at(-1).at_ms : Math.max(ageMs, timeline.at(-1)?.at_ms ?? 0);
  let hasToken = false;
  const spans = timeline.map(({ at_ms: at, what }, index) => {
    hasToken ||= what === "first_token";
    const phase = PHASES[what] === "prefill" && hasToken ? "decode" : (PHASES[what] ?? "queue");
    const span = element("span", { class: `phase ${phase}`, title: `${phase}: ${milliseconds((timeline[index + 1]?.at_ms ?? end) - at)}` });
    span.style.setProperty("flex-grow", String(Math.max(0, (timeline[index + 1]?.at_ms ?? end) - at)));
    return span;
  });
  const keys = ["queue", "prefill", "decode"].map((name) => element("li", {}, element("span", { class: `swatch phase ${name}` }), name));
  return element("div", {}, element("div", { class: "phases", "aria-hidden": "true" }, ...spans), element("ul", { class: "legend" }, ...keys));
}

function moments(timeline) {
  const rows = timeline.map((moment) =>
    element(
      "tr",
      {},
      element("td", { class: "number" }, milliseconds(moment.at_ms)),
      element("td", {}, moment.what.replaceAll("_", " ")),
      element("td", {}, moment.shard == null ? "" : `shard ${moment.shard}`),
      element("td", {}, moment.model ? `${moment.model}@${moment.depth}` : ""),
      element("td", { class: "number" }, moment.num_generated_tokens ? `after ${tokens(moment.num_generated_tokens)}` : ""),
    ),
  );
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Moments" }, element("table", {}, element("tbody", {}, ...rows)));
}

function cells(layers, numLayers) {
  const mean = layers.reduce((sum, layer) => sum + layer, 0) / layers.length;
  const label = `One cell a token, the deeper the darker; on average layer ${number(mean)} of ${numLayers}`;
  const made = layers.map((layer) => element("span", { class: layer ? `exit-${exitStep(layer, numLayers)}` : "forced", title: layer ? `layer ${layer}` : "forced" }));
  return element("div", { class: "cells", role: "img", "aria-label": label }, ...made);
}
