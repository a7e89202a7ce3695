// Commands: each asks first, in a dialog that says what will happen, to which shards, and what it costs.

import { element, milliseconds, number, openDialog } from "./helios.js";

const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const layersOf = (depth, numLayers) => (numLayers ? `${depth} of ${numLayers} layers` : `${depth} layers`);

export class Controls {
  /** `ask(path)` and `send(path, body)` call this router; `follow(what, answer)` tells what becomes of a command. */
  constructor({ ask, send, follow }) {
    Object.assign(this, { ask, send, follow });
  }

  /** The buttons of commands that concern the whole router. */
  buttons() {
    const made = [
      ["Change model or depth…", () => this.change("swap")],
      ["Pin…", () => this.change("pin")],
      ["Unpin…", () => this.unpin()],
      ["Roll back…", () => this.rollback()],
      ["Threshold…", () => this.threshold()],
      ["Drain…", () => this.drain()],
      ["Resume…", () => this.resume()],
      ["Clear caches…", () => this.clearCache()],
    ];
    return made.map(([name, act]) => element("button", { onclick: () => this.guarded(act) }, name));
  }

  /** The buttons of one shard; `row()` tells which. */
  shardButtons(row) {
    const made = [
      ["Change…", (id) => this.change("swap", id)],
      ["Drain…", (id) => this.drain(id)],
      ["Resume…", (id) => this.resume(id)],
    ];
    return made.map(([name, act]) => {
      const press = () => this.guarded(() => act(row().shard.id));
      return element("button", { class: "small", onclick: press }, name);
    });
  }

  async guarded(act) {
    try {
      await act();
    } catch (error) {
      this.follow(error.message, null);
    }
  }

  async confirmed(title, lines, action, path, body, danger = false) {
    if (!(await openDialog(title, lines, action, { danger }))) return;
    const sent = typeof body === "function" ? body() : body;
    this.follow(title, await this.send(path, sent));
  }

  /** Another model or depth; `kind` is swap or pin. */
  async change(kind, shard = null) {
    const state = await this.ask("ops/state");
    const candidates = [...new Set(state.candidates.map((one) => one.candidate))];
    const serving = state.shards.find((one) => shard === null || one.id === shard) ?? state.shards[0];
    const candidate = chooser("Model", candidates, serving?.model);
    const depth = chooser("Depth", [], null);
    const shards = kind === "swap" ? chooser("Shards", ["all", ...state.shards.map((one) => one.id)], shard ?? "all") : null;
    const inflight = kind === "swap" ? chooser("What runs", ["finishes on the old model", "moves to the new one"]) : null;
    const preview = element("div", { class: "preview", role: "status" });
    const offer = () => {
      const offered = state.candidates.filter((one) => one.candidate === candidate.value);
      const wanted = depth.value || String(serving?.depth);
      depth.replaceChildren(...offered.map((one) => element("option", { value: one.depth }, layersOf(one.depth, one.num_layers))));
      if (offered.some((one) => String(one.depth) === wanted)) depth.value = wanted;
      tell();
    };
    const asked = () => ({ candidate: candidate.value, depth: Number(depth.value), shard: shards && shards.value !== "all" ? Number(shards.value) : null });
    const tell = () => preview.replaceChildren(...whatChanges(state, asked(), inflight?.selectedIndex === 1).map((line) => element("p", {}, line)));
    candidate.addEventListener("change", offer);
    for (const select of [depth, shards, inflight]) select?.addEventListener("change", tell);
    offer();
    const fields = [candidate, depth, shards, inflight].filter(Boolean).map((select) => select.parentElement);
    const body = () => {
      const { shard: only, ...what } = asked();
      if (kind === "pin") return what;
      return { ...what, ...(only === null ? {} : { shard: only }), inflight: inflight.selectedIndex ? "migrate" : "finish" };
    };
    const title = kind === "pin" ? "Pin what is served" : "Change model or depth";
    const note = kind === "pin" ? "Reassessment changes nothing until it is unpinned." : null;
    await this.confirmed(title, [element("div", { class: "fields" }, ...fields), preview, note], kind === "pin" ? "Pin" : "Change", `ops/${kind}`, body);
  }

  async unpin() {
    const { pinned, reassessment } = await this.ask("ops/state");
    const now = pinned ? `${pinned} is pinned.` : "Nothing is pinned.";
    const then = reassessment.state === "off" ? `Reassessment is off: ${reassessment.why}` : "Reassessment may change what is served again.";
    await this.confirmed("Unpin", [now, then], "Unpin", "ops/unpin");
  }

  async rollback() {
    const state = await this.ask("ops/state");
    const lines = ["Each shard goes back to what it served before its last change.", ...served(state), running(state.running, false)];
    await this.confirmed("Roll back", lines, "Roll back", "ops/rollback", {});
  }

  async threshold() {
    const { threshold, running: count } = await this.ask("ops/state");
    const own = chooser("Requests that give no threshold", ["leave at each exit's own", "leave at one for all exits"]);
    const value = element("input", { type: "number", min: "0", max: "1", step: "0.01", value: threshold.value ?? 0.8 });
    const field = element("label", {}, "Confidence from which a token leaves early, 0 to 1", value);
    const follow = () => (field.hidden = own.selectedIndex === 0);
    own.selectedIndex = threshold.value === null ? 0 : 1;
    own.addEventListener("change", follow);
    follow();
    const now = threshold.value === null ? "Now each exit has its own." : `Now it is ${threshold.value}, set by ${threshold.by}.`;
    const lines = [now, own.parentElement, field, `It holds for requests that come from then on; ${plural(count, "running request")} will keep theirs. Lower means earlier exits and less agreement.`];
    await this.confirmed("Exit threshold", lines, "Set", "ops/threshold", () => ({ value: own.selectedIndex ? Number(value.value) : null }));
  }

  async drain(shard = null) {
    const state = await this.ask("ops/state");
    const others = state.shards.filter((one) => one.id !== shard && one.state === "serving").length;
    const count = shard === null ? state.running : (state.shards.find((one) => one.id === shard)?.running ?? 0);
    const then = shard === null || !others ? "No shard is left to serve: new requests are refused, and readiness fails." : `${plural(others, "other shard")} will serve what comes.`;
    const lines = [`${shard === null ? "All shards get" : `Shard ${shard} gets`} nothing new; ${plural(count, "running request")} will finish there.`, then];
    await this.confirmed(shard === null ? "Drain all shards" : `Drain shard ${shard}`, lines, "Drain", "ops/drain", shard === null ? {} : { shard }, true);
  }

  async resume(shard = null) {
    const which = shard === null ? "All shards take" : `Shard ${shard} takes`;
    await this.confirmed(shard === null ? "Resume all shards" : `Resume shard ${shard}`, [`${which} new requests again.`], "Resume", "ops/resume", shard === null ? {} : { shard });
  }

  async clearCache() {
    const { shards } = await this.ask("ops/state");
    const total = (name) => shards.reduce((sum, { cache }) => sum + (cache?.[name] ?? 0), 0);
    const queried = total("queried_tokens");
    const saved = queried ? ` So far ${number((100 * total("hit_tokens")) / queried)}% of prompt tokens were found there.` : "";
    const lines = [`${plural(total("cached_blocks"), "cached block")} on ${plural(shards.length, "shard")} will be forgotten.${saved}`, "Prompts that were cached are computed once more. No running request changes."];
    await this.confirmed("Clear prefix caches", lines, "Clear", "ops/cache/clear", {}, true);
  }

  async abort(request) {
    const done = request.num_generated_tokens ?? 0;
    const lines = [`It ends with an error for its client${request.label ? ` (label ${request.label})` : ""}, after ${plural(done, "token")}. What it wrote so far stays with the client.`];
    await this.guarded(() => this.confirmed(`Abort request ${request.id}`, lines, "Abort it", "ops/abort", { request_id: request.id }, true));
  }
}

function chooser(name, options, chosen) {
  const select = element("select", {}, ...options.map((option) => element("option", { value: option }, String(option))));
  if (chosen !== undefined && chosen !== null) select.value = chosen;
  element("label", {}, name, select);
  return select;
}

function running(count, moves) {
  if (!count) return "Nothing runs.";
  return `${plural(count, "running request")} ${moves ? "will move to the new model and go on there" : "will finish on the old model"}.`;
}

/** What each shard serves now, shards that serve the same together. */
function served(state, shard = null) {
  const groups = new Map();
  for (const one of state.shards) {
    if (shard !== null && one.id !== shard) continue;
    const name = `${one.model} at ${layersOf(one.depth, one.num_layers)}`;
    groups.set(name, [...(groups.get(name) ?? []), one.id]);
  }
  return [...groups].map(([name, ids]) => `${ids.length > 1 ? "Shards" : "Shard"} ${ranges(ids)}: ${name}`);
}

/** Such as 0–3, 7. */
function ranges(ids) {
  const found = [];
  for (const id of [...ids].sort((a, b) => a - b)) {
    const last = found.at(-1);
    if (last && last[1] === id - 1) last[1] = id;
    else found.push([id, id]);
  }
  return found.map(([first, last]) => (first === last ? `${first}` : `${first}–${last}`)).join(", ");
}

function whatChanges(state, { candidate, depth, shard }, moves) {
  const to = state.candidates.find((one) => one.candidate === candidate && one.depth === depth);
  if (!to) return [];
  const affected = state.shards.filter((one) => shard === null || one.id === shard);
  const lines = served(state, shard).map((line) => `${line} → ${candidate} at ${layersOf(depth, to.num_layers)}.`);
  lines.push(running(affected.reduce((sum, one) => sum + one.running, 0), moves));
  const isOnlyDepth = affected.every((one) => one.model === candidate);
  const measured = to.measured.map((row) => (isOnlyDepth ? row.deepen_ms : row.swap_ms)).filter((ms) => ms != null);
  const cost = measured.length ? `Such a change took ${milliseconds(measured[0])} before.` : "How long it takes was not measured yet.";
  lines.push(`${cost} It is prepared beside what runs; if it fails, the old model serves on.`);
  return lines;
}
