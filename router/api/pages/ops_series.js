// The figures of one span of time: what is asked for, what is kept, and the columns that charts draw.

/** The spans offered. Steps of a minute and more are kept for a day, shorter ones for an hour. `slow`: the steps of
    what only a sample of answers tells, whose interval would be wide in short ones. */
export const SPANS = [
  { name: "5 min", seconds: 300, step: 5, slow: 60 },
  { name: "15 min", seconds: 900, step: 5, slow: 60 },
  { name: "1 h", seconds: 3600, step: 20, slow: 300 },
  { name: "6 h", seconds: 21600, step: 60, slow: 1800 },
  { name: "24 h", seconds: 86400, step: 300, slow: 3600 },
];
const LATE_S = 10; // routers may write windows so much later than this one
const FLUSH_S = 2; // after a step's end, until it is written
const LONG_S = 15; // from then on a step that is not over is shown, as rates of what has passed

/** The points of a span by time, continued by asking for the newest steps only. */
export class Figures {
  constructor(span, step = span.step) {
    this.span = span;
    this.step = step;
    this.until = null; // Unix time by the server's clock
    this.points = new Map();
  }

  /** What to ask for next, given the server's time. */
  path(now) {
    const { step } = this;
    const oldest = now - this.span.seconds;
    const since = this.until === null ? oldest : Math.max(oldest, this.until - step - LATE_S);
    return `ops/windows?by=all&step=${step}&since=${since.toFixed(3)}&until=${now.toFixed(3)}`;
  }

  /** Whether there may be more to know than the last answer told. */
  isDue(now) {
    return this.until === null || now >= this.until + Math.min(this.step, LONG_S);
  }

  /** Takes an answer of `/ops/windows` over, which was asked for at that time. */
  add(windows, now) {
    for (const at of [...this.points.keys()]) if (at >= windows.since) this.points.delete(at);
    for (const series of windows.series) for (const point of series.points) this.points.set(point.at, point);
    this.until = now;
    for (const at of [...this.points.keys()]) if (at < this.since) this.points.delete(at);
  }

  get since() {
    return this.until - this.span.seconds;
  }

  /** Every step from the first one known, empty ones as null: `[at, point]`, in order; at last the end of the last. */
  rows() {
    const { step } = this;
    const known = [...this.points.keys()].sort((a, b) => a - b);
    if (!known.length) return [];
    const rows = [];
    const last = Math.floor(this.until / step) * step;
    for (let at = known[0]; at <= last; at += step) {
      if (this.until - at >= Math.min(step + FLUSH_S, LONG_S)) rows.push([at, this.points.get(at) ?? null]);
    }
    const [end, point] = rows.at(-1) ?? [];
    if (end !== undefined) rows.push([Math.min(end + step, this.until), point]);
    return rows;
  }

  /** Exit layers that any point has, in order. */
  layers() {
    const found = new Set();
    for (const point of this.points.values()) for (const layer in point.tokens_by_exit) found.add(Number(layer));
    return [...found].sort((a, b) => a - b);
  }
}

/** A column of values, one for each row; `empty` stands for steps in which nothing happened. */
export function column(rows, of, empty = null) {
  return rows.map(([, point]) => (point === null ? empty : (of(point) ?? null)));
}
