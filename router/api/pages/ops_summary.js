// The figures on top, the lines that say what is served and what the loop thinks, and the charts as a table.

import { element, milliseconds, number, percent, setText, timeOfDay } from "./helios.js";
import { currentOf, currentShards, routerName } from "./ops_routers.js";
import { column } from "./ops_series.js";

const MAX_TOLD = 60; // steps in the table

/** Writes the tiles; they are made once. */
export function tilesOf(overview, root) {
  tiles(overview).forEach(([name, value, more, kind], index) => {
    const tile = root.children[index] ?? root.appendChild(made());
    const [title, figure, note] = tile.children;
    setText(title, name);
    setText(figure, value);
    setText(note, more);
    tile.dataset.kind = kind ?? "";
  });
}

function made() {
  return element("div", { class: "tile" }, element("dt"), element("dd", { class: "figure number" }), element("dd", { class: "more muted number" }));
}

function tiles(overview) {
  const { total, routers } = overview;
  const current = currentOf(routers);
  const shards = currentShards(overview);
  const sum = (of) => current.reduce((all, { snapshot }) => all + of(snapshot), 0);
  const refused = sum((one) => Object.values(one.refusals).reduce((all, count) => all + count, 0));
  const blocks = shards.reduce((all, { shard }) => all + (shard.num_blocks ?? 0), 0);
  const free = shards.reduce((all, { shard }) => all + (shard.num_free_blocks ?? 0), 0);
  const watts = shards.map(({ figures }) => figures.watts).filter((value) => value !== null);
  return [
    ["Tokens per second", number(total.tokens_per_s), `${number(sum((one) => one.running))} running, ${number(sum((one) => one.waiting))} waiting`],
    ["Time to first token", milliseconds(total.ttft_ms.p50), `median; p95 ${milliseconds(total.ttft_ms.p95)}`],
    ["Between tokens", milliseconds(total.itl_ms.p50), `median; p95 ${milliseconds(total.itl_ms.p95)}`],
    exitTile(total, shards),
    agreementTile(current),
    ["KV in use", blocks ? percent(1 - free / blocks, 0) : "–", `${number(blocks - free)} of ${number(blocks)} blocks`],
    ["Answers in a minute", number(total.requests), `${number(total.failures)} failed, ${number(refused)} refused`],
    ["Joules per token", number(total.joules_per_token), watts.length ? `${number(watts.reduce((all, value) => all + value, 0))} W while busy` : "not metered"],
  ];
}

function exitTile(total, shards) {
  const counts = Object.entries(total.tokens_by_exit).filter(([layer]) => layer !== "0");
  const drawn = counts.reduce((all, [, count]) => all + count, 0);
  const numLayers = Math.max(0, ...shards.map(({ shard }) => shard.num_layers ?? 0));
  if (!drawn) return ["Mean exit layer", "–", `of ${numLayers} layers`];
  const mean = counts.reduce((all, [layer, count]) => all + layer * count, 0) / drawn;
  const early = counts.reduce((all, [layer, count]) => all + (layer < numLayers ? count : 0), 0);
  return ["Mean exit layer", number(mean), `of ${numLayers}; ${percent(early / drawn, 0)} left early`];
}

/** The lowest agreement of the routers, and on which side of the floor its interval lies. */
function agreementTile(current) {
  const floor = current.find(({ snapshot }) => snapshot.floor != null)?.snapshot.floor;
  const shares = current.map(({ snapshot }) => snapshot.agreement.overall).filter(Boolean);
  const lowest = shares.sort((a, b) => a.low - b.low)[0];
  const least = floor == null ? "" : `; floor ${number(100 * floor)}%`;
  if (!lowest) return ["Agreement", "–", `not measured${least}`];
  const kind = floor == null ? "" : lowest.high < floor ? "bad" : lowest.low < floor ? "warn" : "good";
  return ["Agreement", percent(lowest.agreement), `${number(100 * lowest.low)}–${number(100 * lowest.high)}%${least}`, kind];
}

/** What is served, what the loop does and why, and a change under way. */
export function nowLines(overview, root) {
  const lines = [["Serves", servedText(overview)], ...changes(overview), ...loops(currentOf(overview.routers))];
  while (root.children.length > lines.length) root.lastChild.remove();
  lines.forEach(([name, text], index) => {
    const line = root.children[index] ?? root.appendChild(element("p", {}, element("span", { class: "muted" }), element("span")));
    setText(line.children[0], name);
    setText(line.children[1], text);
  });
}

function servedText(overview) {
  const groups = new Map();
  for (const { shard } of currentShards(overview)) {
    const name = shard.model ? `${shard.model} at ${shard.depth} of ${shard.num_layers} layers` : shard.state;
    groups.set(name, (groups.get(name) ?? 0) + 1);
  }
  return [...groups].map(([name, count]) => `${name} on ${count === 1 ? "1 shard" : `${count.toLocaleString("en")} shards`}`).join("; ") || "nothing";
}

function changes(overview) {
  const phases = new Map();
  for (const { shard } of currentShards(overview)) if (shard.swap_phase) phases.set(shard.swap_phase, (phases.get(shard.swap_phase) ?? 0) + 1);
  const held = currentOf(overview.routers).reduce((all, { snapshot }) => all + snapshot.held, 0);
  if (!phases.size && !held) return [];
  const told = [...phases].map(([phase, count]) => `${phase} on ${count === 1 ? "1 shard" : `${count} shards`}`);
  return [["Changes", `${told.join(", ")}; ${held} requests held by it`]];
}

/** What concerns one router; of several, each line says which. */
function loops(current) {
  const called = ({ router }) => (current.length > 1 ? ` ${routerName(router)}` : "");
  return current.flatMap(({ snapshot }) => loopLines(snapshot).map(([name, text]) => [name + called(snapshot), text]));
}

function loopLines({ reassessment: loop, pinned, threshold }) {
  const parts = [loop.state];
  if (loop.trying) parts.push(`tries ${loop.trying}`);
  if (loop.next_in !== null) parts.push(loop.next_in ? `compares again after ${loop.next_in} answers` : "a decision is due");
  const lines = [["Loop", parts.join(", ") + (loop.why ? `. ${loop.why}` : "")]];
  if (pinned) lines.push(["Pinned", `${pinned}, until it is unpinned`]);
  if (threshold.value !== null) lines.push(["Threshold", `${threshold.value} for all exits, set by ${threshold.by}`]);
  const breach = [...loop.breaches].sort((a, b) => b.breaches / b.limit - a.breaches / a.limit)[0];
  if (breach?.breaches) lines.push(["Breaches", `${breach.breaches} of the last ${breach.tokens} tokens of ${breach.choice}; the loop acts at ${breach.limit} of ${breach.window}`]);
  return lines;
}

/** The charts' figures, the latest first. */
export function figuresTable(strips, rows, root) {
  const recent = rows.slice(0, -1).slice(-MAX_TOLD);
  const columns = strips.filter((strip) => !strip.isSlow).flatMap((strip) =>
    strip.lines.filter((line) => !line.always).map((line) => {
      const values = column(recent, line.of, strip.empty ?? null);
      const format = line.hidden ? number : strip.format;
      return { name: `${strip.title}: ${line.name}`, texts: values.map((value) => (value === null ? "–" : format(value))) };
    }),
  );
  const heads = ["Time", ...columns.map(({ name }) => name)].map((name) => element("th", { scope: "col" }, name));
  const lines = recent.map(([at], index) =>
    element("tr", {}, element("td", {}, timeOfDay(at)), ...columns.map(({ texts }) => element("td", { class: "number" }, texts[index]))),
  );
  root.replaceChildren(element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...lines.reverse())));
}
