// What was decided, below the charts on their time axis: a lane each for changes, for the loop's thoughts, for commands.

import { element, milliseconds, timeOfDay } from "./helios.js";
import { GUTTER } from "./ops_charts.js";

const LANES = [
  ["changes", new Set(["swap", "pin", "rollback", "deepen", "lighten", "switch", "split"])],
  ["loop", new Set(["evaluate", "stay", "hold"])],
  ["commands", null], // all others
];
const COLORS = { committed: "--good", rolled_back: "--warn", refused: "--warn", failed: "--bad" };
const RIGHT = 12;

export const laneOf = (decision) => LANES.findIndex(([, kinds]) => kinds === null || kinds.has(decision.kind));

const colorOf = (decision) => COLORS[decision.outcome] ?? "--accent";

/** Lines through the charts: where what is served was changed. */
export function marksOf(decisions) {
  return decisions.filter((one) => laneOf(one) === 0).map((one) => ({ at: one.at, color: colorOf(one) }));
}

/** What a decision chose, in a few words. */
export function chosen(decision) {
  const { candidate, depth, shard, value, request } = decision.chosen ?? {};
  const parts = [candidate && (depth ? `${candidate}@${depth}` : candidate)];
  if (shard !== undefined) parts.push(`shard ${shard}`);
  if (value !== undefined) parts.push(value === null ? "each exit's own" : String(value));
  if (request !== undefined) parts.push(`request ${request}`);
  return parts.filter(Boolean).join(", ");
}

export class Timeline {
  /** `onPoint(at)` when a decision is pointed at or focused, `onOpen(decision)` when it is chosen. */
  constructor(root, { span, onPoint, onOpen }) {
    Object.assign(this, { span, onPoint, onOpen });
    this.marks = new Map();
    this.cursor = element("div", { class: "cursor", hidden: true });
    this.lanes = LANES.map(([name]) => {
      const track = element("div", { class: "track" });
      track.style.setProperty("--gutter", `${GUTTER}px`);
      track.style.setProperty("--right", `${RIGHT}px`);
      const lane = element("div", { class: "lane" }, element("span", { class: "lane-name muted" }, name), track);
      return { lane, track };
    });
    this.lanes[0].track.append(this.cursor);
    this.node = element("div", { class: "timeline", role: "group", "aria-label": "Decisions over time" });
    this.node.append(...this.lanes.map(({ lane }) => lane));
    root.append(this.node);
  }

  draw(decisions) {
    const [since, until] = this.span();
    const shown = decisions.filter((one) => one.at >= since && one.at <= until);
    const ids = new Set(shown.map((one) => one.id));
    for (const [id, mark] of this.marks) {
      if (ids.has(id)) continue;
      mark.remove();
      this.marks.delete(id);
    }
    for (const decision of shown) this.place(decision, since, until);
  }

  place(decision, since, until) {
    const mark = this.marks.get(decision.id) ?? this.made(decision);
    mark.decision = decision;
    const label = labelOf(decision);
    if (mark.title !== label) {
      mark.title = label;
      mark.setAttribute("aria-label", label);
      mark.style.setProperty("--mark", `var(${colorOf(decision)})`);
    }
    const took = Object.values(decision.phases_ms ?? {}).reduce((sum, ms) => sum + ms, 0) / 1000;
    mark.style.setProperty("left", `${(100 * (decision.at - since)) / (until - since)}%`);
    mark.style.setProperty("width", `max(8px, ${(100 * Math.min(took, until - decision.at)) / (until - since)}%)`);
  }

  made(decision) {
    const mark = element("button", { class: "mark" });
    mark.addEventListener("click", () => this.onOpen(mark.decision));
    for (const enters of ["pointerenter", "focus"]) mark.addEventListener(enters, () => this.onPoint(mark.decision.at));
    for (const leaves of ["pointerleave", "blur"]) mark.addEventListener(leaves, () => this.onPoint(null));
    this.marks.set(decision.id, mark);
    this.lanes[laneOf(decision)].track.append(mark);
    return mark;
  }

  /** Shows where the charts' cursor is. */
  pointAt(at) {
    const [since, until] = this.span();
    this.cursor.hidden = at === null;
    if (at !== null) this.cursor.style.setProperty("left", `${(100 * (at - since)) / (until - since)}%`);
  }
}

function labelOf(decision) {
  const took = Object.values(decision.phases_ms ?? {}).reduce((sum, ms) => sum + ms, 0);
  const parts = [timeOfDay(decision.at), decision.kind, chosen(decision), decision.outcome ?? "under way"];
  return parts.filter(Boolean).join(" · ") + (took ? ` in ${milliseconds(took)}` : "");
}
