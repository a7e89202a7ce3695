// The tables below the charts: shards, candidates, thresholds, decisions, requests. Rows are kept, cells rewritten.

import { element, exitStep, milliseconds, number, percent, seconds, setText, timeOfDay } from "./helios.js";
import { currentShards, routerName } from "./ops_routers.js";
import { chosen } from "./ops_timeline.js";

const PAGE = 100; // rows shown at first, and more with each press

/** A column: `of(row)` gives text, a number or an element's `[class, text]`. */
const text = (name, of) => ({ name, of });
const figure = (name, of) => ({ name, of, isNumber: true });

/** Draws one table into `panel`; keeps rows (and the focus in them) from one draw to the next. */
export class Table {
  constructor(panel, { caption, columns, open, actions, empty }) {
    Object.assign(this, { columns, open, actions, empty });
    this.rows = new Map();
    this.most = PAGE;
    this.body = element("tbody");
    const heads = columns.map(({ name, isNumber }) => element("th", { scope: "col", class: isNumber ? "number" : null }, name));
    if (actions) heads.push(element("th", { scope: "col" }, element("span", { class: "visually-hidden" }, "Commands")));
    this.none = element("p", { class: "muted none" });
    this.more = element("button", { onclick: () => ((this.most += PAGE), this.draw(this.latest, this.words)) }, "Show more");
    const title = element("caption", { class: "visually-hidden" }, caption);
    panel.replaceChildren(element("table", {}, title, element("thead", {}, element("tr", {}, ...heads)), this.body), this.none, this.more);
  }

  /** `found`: rows, each with an `id`; `words`: what their text must contain. */
  draw(found, words) {
    Object.assign(this, { latest: found, words });
    const wanted = words.toLowerCase();
    const fitting = wanted ? found.filter((row) => this.textOf(row).includes(wanted)) : found;
    const shown = fitting.slice(0, this.most);
    const ids = new Set(shown.map((row) => row.id));
    for (const [id, line] of this.rows) {
      if (ids.has(id)) continue;
      line.node.remove();
      this.rows.delete(id);
    }
    shown.forEach((row, index) => this.place(row, index));
    setText(this.none, fitting.length ? "" : found.length ? "No row has these words." : this.empty);
    this.more.hidden = fitting.length <= shown.length;
    setText(this.more, `Show more (${fitting.length - shown.length} hidden)`);
  }

  textOf(row) {
    return this.columns.map(({ of }) => [of(row)].flat().pop()).join(" ").toLowerCase();
  }

  place(row, index) {
    const line = this.rows.get(row.id) ?? this.made(row);
    line.row = row;
    this.columns.forEach(({ of }, column) => {
      const [kind, written] = Array.isArray(of(row)) ? of(row) : ["", of(row)];
      const target = line.cells[column];
      setText(target, String(written ?? "–"));
      if (target.dataset.kind !== kind) target.dataset.kind = kind;
      if (kind === "clip") target.title = written;
    });
    if (this.body.children[index] !== line.node) this.body.insertBefore(line.node, this.body.children[index] ?? null);
  }

  made(row) {
    const line = { row };
    line.cells = this.columns.map((_, column) => {
      const isLink = column === 0 && this.open;
      return element(isLink ? "button" : "span", isLink ? { class: "link", onclick: () => this.open(line.row) } : {});
    });
    const cells = line.cells.map((cell, index) => element("td", { class: this.columns[index].isNumber ? "number" : null }, cell));
    if (this.actions) cells.push(element("td", { class: "row-actions" }, ...this.actions(() => line.row)));
    line.node = element("tr", {}, ...cells);
    this.rows.set(row.id, line);
    return line;
  }
}

const OF_STATE = { serving: "good", dead: "bad" };
const OF_OUTCOME = { committed: "good", rolled_back: "warn", refused: "warn", failed: "bad" };
const byNumber = (a, b) => a - b;

export function shardColumns(overview) {
  const stateOf = ({ shard, isDown }) => (isDown ? ["muted", "router down"] : [OF_STATE[shard.state] ?? "warn", shard.swap_phase ? `${shard.state} (${shard.swap_phase})` : shard.state]);
  const name = ({ router, shard }) => (overview.routers.length > 1 ? `${routerName(router)}:${shard.id}` : `${shard.id}`);
  return [
    figure("Shard", name),
    text("Model", ({ shard }) => shard.model),
    figure("Depth", ({ shard }) => `${shard.depth}/${shard.num_layers}`),
    text("Mode", ({ shard }) => shard.exit_mode || "–"),
    text("State", stateOf),
    figure("Batch", ({ shard }) => shard.running ?? 0),
    figure("KV", ({ shard }) => (shard.num_blocks ? percent(1 - (shard.num_free_blocks ?? 0) / shard.num_blocks, 0) : null)),
    figure("Tokens/s", ({ figures }) => number(figures.tokens_per_s)),
    figure("Watts", ({ figures }) => number(figures.watts)),
    figure("Heard", ({ shard, age_s }) => (shard.heartbeat_age_ms == null ? "never" : seconds(age_s + shard.heartbeat_age_ms / 1000))),
    figure("Deaths", ({ shard }) => shard.num_deaths ?? 0),
    text("Version", ({ shard }) => ["clip", shard.version]),
  ];
}

/** Shards with the age of their router's state. */
export function shardRows({ routers, shards }) {
  const known = new Map(routers.map((router) => [router.snapshot.router, router]));
  return shards.map((row) => {
    const { age_s = 0, is_alive = true } = known.get(row.router) ?? {};
    return { ...row, id: `${row.router}:${row.shard.id}`, age_s, isDown: !is_alive };
  });
}

export const CANDIDATE_COLUMNS = [
  text("Candidate", (row) => row.candidate),
  figure("Depth", (row) => (row.num_layers ? `${row.depth}/${row.num_layers}` : row.depth)),
  figure("Shards", (row) => row.num_shards),
  text("Prompts", (row) => (row.measured ? row.measured.prompts || "mixed" : "–")),
  figure("Requests", (row) => number(row.measured?.num_requests)),
  figure("Tokens/s", (row) => number(row.measured?.throughput)),
  figure("Agreement", (row) => interval(row.measured?.agreement)),
  figure("Breaches", (row) => (row.measured?.num_tokens ? percent(row.measured.breaches / row.measured.num_tokens) : "–")),
  figure("TTFT p95", (row) => milliseconds(row.measured?.ttft_p95_ms)),
  figure("ITL p95", (row) => milliseconds(row.measured?.itl_p95_ms)),
  figure("J/token", (row) => number(row.measured?.joules_per_token)),
  figure("To swap", (row) => milliseconds(row.measured?.swap_ms ?? row.measured?.deepen_ms)),
  figure("Measured", (row) => (row.measured ? timeOfDay(row.measured.measured_at) : "never")),
];

function interval(measured) {
  return measured ? `${percent(measured[0])} [${percent(measured[1])}, ${percent(measured[2])}]` : null;
}

export const THRESHOLD_COLUMNS = [
  text("Model", (row) => row.name),
  figure("Exit layer", (row) => [`exit-${row.step}`, `${row.layer} of ${row.numLayers}`]),
  figure("Leaves at confidence", (row) => row.threshold),
  figure("Tokens of the last minute", (row) => row.share),
  text("Set by", (row) => row.by),
];

export const DECISION_COLUMNS = [
  text("Taken", (row) => timeOfDay(row.at)),
  text("Kind", (row) => row.kind),
  text("Chosen", (row) => chosen(row) || "–"),
  text("By", (row) => row.by),
  text("Outcome", (row) => [OF_OUTCOME[row.outcome] ?? "", row.outcome ?? "under way"]),
  text("Why", (row) => row.error || row.why),
];

export const REQUEST_COLUMNS = [
  figure("Request", (row) => row.name),
  text("Label", (row) => row.label || "–"),
  text("Status", (row) => (row.outcome ? `${row.status}: ${row.outcome}` : row.status)),
  figure("Shard", (row) => row.shard),
  text("Model", (row) => row.model || "–"),
  figure("Prompt", (row) => number(row.num_prompt_tokens ?? 0)),
  figure("Tokens", (row) => `${row.num_generated_tokens ?? 0}/${row.max_new_tokens}`),
  figure("Preempted", (row) => row.num_preemptions ?? 0),
  figure("Age", (row) => seconds(row.age_ms / 1000)),
];

/** Candidates as they are offered and as they were measured, one row for each kind of prompts. */
export function candidateRows(overview) {
  const listed = new Map();
  for (const { snapshot } of overview.routers) for (const one of snapshot.candidates) listed.set(`${one.candidate}@${one.depth}`, one);
  for (const row of overview.history) {
    const [candidate, depth] = row;
    if (!listed.has(`${candidate}@${depth}`)) listed.set(`${candidate}@${depth}`, { candidate, depth, num_layers: 0 });
  }
  const history = overview.history.map(historyRow);
  return [...listed.entries()].sort().flatMap(([id, one]) => {
    const serving = ({ shard }) => shard.model === one.candidate && shard.depth === one.depth;
    const row = { ...one, num_shards: currentShards(overview).filter(serving).length };
    const measured = history.filter((measured) => measured.candidate === one.candidate && measured.depth === one.depth);
    if (!measured.length) return [{ ...row, id }];
    return measured.map((measured) => ({ ...row, measured, id: `${id}:${measured.prompts}` }));
  });
}

const HISTORY_FIELDS = `candidate depth measured_at num_requests num_tokens throughput cost exits breaches agreement
  perplexity bits_per_byte joules_per_token swap_ms deepen_ms version prompts ttft_p95_ms itl_p95_ms`.split(/\s+/);

/** A row of the history by name: on the wire it is an array. */
export function historyRow(values) {
  return Object.fromEntries(HISTORY_FIELDS.map((name, index) => [name, values[index]]));
}

/** Thresholds in force, by model and exit layer. */
export function thresholdRows(overview) {
  const rows = new Map();
  for (const { router, shard } of currentShards(overview)) {
    const setting = overview.routers.find(({ snapshot }) => snapshot.router === router)?.snapshot.threshold ?? {};
    const served = overview.models.find((one) => one.candidate === shard.model && one.depth === shard.depth);
    const layers = Object.keys(shard.exit_thresholds ?? {}).map(Number).sort(byNumber);
    for (const layer of layers) {
      const own = shard.exit_thresholds[layer];
      const id = `${shard.model}@${shard.depth}:${layer}:${setting.value}`;
      const tokens = served?.tokens_by_exit?.[layer] ?? 0;
      rows.set(id, {
        id,
        layer,
        name: `${shard.model}@${shard.depth}`,
        numLayers: shard.num_layers,
        step: exitStep(layer, shard.num_layers),
        threshold: setting.value != null ? number(setting.value) : own < 1 ? number(own) : "never",
        share: served?.tokens ? percent(tokens / served.tokens) : "–",
        by: (setting.value != null ? `${setting.by}, for all exits` : "the exit's own") + (setting.value == null && setting.by ? `, restored by ${setting.by}` : ""),
      });
    }
  }
  return [...rows.values()];
}
