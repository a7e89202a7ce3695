// The charts: one strip below the other, with one time axis and one cursor.

import { element, setText, timeOfDay } from "./helios.js";
import { column } from "./ops_series.js";

export const GUTTER = 64; // pixels left of every plot, where its axis is
const RIGHT = 12;
const HEIGHT = 76;
const AXIS = 22; // height of the time axis, below the last strip
const INSTANT_S = 0.001;
const FONT = "11px system-ui, sans-serif";

const colorOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function faded(color, alpha) {
  return color.length === 7 ? color + Math.round(255 * alpha).toString(16).padStart(2, "0") : color;
}

/** All strips. `span()` is the time shown, `marks()` the times to draw a line at, `onCursor(left, at)` hears of it. */
export class Charts {
  constructor(root, { span, marks, onCursor }) {
    Object.assign(this, { root, span, marks, onCursor });
    this.strips = [];
    this.shape = "";
    this.pointed = null; // by keys
    new ResizeObserver(() => this.resize()).observe(root);
    root.addEventListener("keydown", (event) => this.onKey(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild());
  }

  /** Draws these descriptions, each by its rows; builds the charts anew only if their lines are others. */
  draw(specs, rowsOf) {
    this.rowsOf = rowsOf;
    const shape = specs.map((spec) => spec.lines.map((line) => line.name + line.color)).join("|");
    this.specs = specs;
    if (shape !== this.shape) {
      this.shape = shape;
      this.rebuild();
    }
    this.strips.forEach((strip, index) => strip.draw(specs[index], rowsOf(specs[index])));
  }

  rebuild() {
    if (!this.specs) return;
    for (const strip of this.strips) strip.destroy();
    this.strips = this.specs.map((spec, index) => new Strip(this, spec, index === this.specs.length - 1));
    this.strips.forEach((strip, index) => strip.draw(this.specs[index], this.rowsOf(this.specs[index])));
  }

  resize() {
    for (const strip of this.strips) strip.resize();
  }

  /** Puts the cursor of all charts to a time, or nowhere. */
  pointAt(at) {
    const [first] = this.strips;
    if (!first) return;
    const left = at === null ? -10 : first.plot.valToPos(at, "x");
    first.plot.setCursor({ left, top: at === null ? -10 : 1 });
  }

  onKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const times = (this.strips[0]?.plot.data[0] ?? []).filter((at, index, all) => !(all[index + 1] - at <= 2 * INSTANT_S));
    if (!step || event.target !== this.root || !times.length) return;
    event.preventDefault();
    const from = this.pointed === null ? times.length : times.findIndex((at) => at >= this.pointed);
    this.pointed = times[Math.min(times.length - 1, Math.max(0, from + step))];
    this.pointAt(this.pointed);
  }
}

class Strip {
  constructor(charts, spec, isLast) {
    this.charts = charts;
    this.spec = spec;
    this.values = spec.lines.map((line) => element("span", { class: "value number" }, "–"));
    const legend = spec.lines.map((line, index) => {
      const swatch = element("span", { class: line.hidden || line.isEdge ? "swatch none" : "swatch" });
      if (line.color) swatch.style.setProperty("--swatch", `var(${line.color})`);
      return element("li", {}, swatch, element("span", { class: "name" }, line.name), this.values[index]);
    });
    this.canvas = element("div", { class: "canvas", role: "img" });
    this.missing = element("p", { class: "missing muted", hidden: true }, spec.missing ?? "");
    const title = element("h3", {}, spec.title, element("span", { class: "muted" }, ` ${spec.note}`));
    const head = element("div", { class: "strip-head" }, title, element("ul", { class: "legend" }, ...legend));
    this.node = element("div", { class: "strip", id: `chart-${spec.id}` }, head, this.canvas, this.missing);
    charts.root.append(this.node);
    this.height = (spec.height ?? HEIGHT) + (isLast ? AXIS : 0);
    this.plot = new window.uPlot(this.options(isLast), [[], ...spec.lines.filter(isDrawn).map(() => [])], this.canvas);
  }

  destroy() {
    this.plot.destroy();
    this.node.remove();
  }

  resize() {
    this.plot.setSize({ width: this.width, height: this.height });
  }

  get width() {
    return Math.max(200, this.canvas.clientWidth);
  }

  draw(spec, rows) {
    this.spec = spec;
    const told = spec.lines.map((line) => column(rows, line.of, line.always ?? spec.empty ?? null));
    const { times, columns } = withEnds(rows.map(([at]) => at), told);
    this.columns = columns;
    const drawn = this.columns.filter((_, index) => isDrawn(spec.lines[index]));
    const data = spec.stacked ? stacked(drawn) : drawn;
    this.plot.setData([times, ...data], true);
    const isMissing = Boolean(spec.missing) && this.columns[0].every((value) => value === null);
    this.missing.hidden = !isMissing;
    this.tell(this.plot.cursor.idx);
  }

  /** Writes the figures at an index, or the latest. */
  tell(index) {
    const told = this.columns.map((values) => (index === null || index === undefined ? latest(values) : values[index]));
    const words = told.map((value, line) => {
      const text = this.spec.lines[line].hidden ? shortly(value) : value === null || value === undefined ? "–" : this.spec.format(value);
      setText(this.values[line], text);
      return `${this.spec.lines[line].name} ${text}`;
    });
    this.canvas.setAttribute("aria-label", `${this.spec.title}, ${this.spec.note}: ${words.join(", ")}`);
  }

  options(isLast) {
    const { spec, charts } = this;
    const axis = { stroke: colorOf("--muted"), font: FONT, ticks: { show: false } };
    const grid = { stroke: colorOf("--line"), width: 1 };
    const drawn = spec.lines.filter(isDrawn);
    return {
      width: this.width,
      height: this.height,
      padding: [8, RIGHT, isLast ? 0 : 6, 0],
      legend: { show: false },
      cursor: { sync: { key: "ops" }, drag: { x: false, y: false }, y: false, points: { size: 5 } },
      scales: { x: { time: true, range: () => charts.span() }, y: { range: (_, least, most) => rangeOf(this.spec, least, most) } },
      axes: [
        { ...axis, grid, size: isLast ? AXIS : 0, gap: 6, space: 70, values: (_, splits) => splits.map((at) => (isLast ? axisTime(at, splits) : "")) },
        { ...axis, grid, size: GUTTER, gap: 6, space: 26, values: (_, splits) => splits.map((value) => spec.format(value)) },
      ],
      series: [{}, ...drawn.map((line) => this.seriesOf(line))],
      bands: this.bands(drawn),
      hooks: {
        draw: [(plot) => drawMarks(plot, charts.marks())],
        setCursor: [(plot) => this.follow(plot)],
      },
    };
  }

  follow(plot) {
    if (!this.columns) return;
    const isIn = plot.cursor.left >= 0;
    this.tell(isIn ? plot.cursor.idx : null);
    if (this === this.charts.strips[0]) this.charts.onCursor(isIn ? plot.posToVal(plot.cursor.left, "x") : null);
  }

  seriesOf(line) {
    const color = colorOf(line.color);
    const stepped = window.uPlot.paths.stepped({ align: 1 });
    const fill = this.spec.stacked ? color : line.fill ? faded(color, 0.18) : undefined;
    return {
      stroke: color,
      width: this.spec.stacked || line.isEdge ? 0 : (line.width ?? 1.5),
      dash: line.dash,
      fill,
      paths: stepped,
      points: { show: false },
    };
  }

  /** The area between two lines, where lines enclose one. */
  bands(drawn) {
    if (this.spec.stacked) return drawn.slice(1).map((_, index) => ({ series: [index + 1, index + 2] }));
    if (!this.spec.interval) return [];
    const [high, low] = this.spec.interval;
    return [{ series: [high + 1, low + 1], fill: faded(colorOf(drawn[high].color), 0.2) }];
  }
}

const isDrawn = (line) => !line.hidden;

/** A row more at the end of each step after which a line is broken off: it ends there, and is seen if it has but one. */
function withEnds(starts, columns) {
  const times = [];
  const found = columns.map(() => []);
  const add = (at, index) => {
    times.push(at);
    columns.forEach((values, column) => found[column].push(values[index]));
  };
  starts.forEach((at, index) => {
    add(at, index);
    const isBroken = index + 1 < starts.length && columns.some((values) => values[index] !== null && values[index + 1] === null);
    if (isBroken) add(starts[index + 1] - INSTANT_S, index);
  });
  return { times, columns: found };
}

function latest(values) {
  for (let index = values.length - 1; index >= 0; index--) if (values[index] !== null) return values[index];
  return null;
}

function shortly(value) {
  return value === null || value === undefined ? "–" : String(Number(value.toPrecision(2)));
}

/** Sums from the last column (the bottom) up. */
function stacked(columns) {
  const sums = [];
  let below = null;
  for (const values of [...columns].reverse()) {
    const upTo = below;
    below = values.map((value, index) => (value === null ? null : value + (upTo?.[index] ?? 0)));
    sums.unshift(below);
  }
  return sums;
}

/** The range of an axis: from zero, but for shares near one, whose differences would vanish. */
function rangeOf(spec, least, most) {
  if (spec.near !== undefined) {
    const low = Math.min(least ?? 1, spec.near ?? 1);
    return [Math.max(0, Math.floor(20 * (low - 0.02)) / 20), 1];
  }
  if (spec.top) return [0, spec.top];
  return [0, most > 0 ? 1.1 * most : 1];
}

function axisTime(at, splits) {
  const time = timeOfDay(at).split(" ").pop();
  const isFine = splits.length > 1 && splits[1] - splits[0] < 60;
  return isFine ? time : time.slice(0, 5);
}

function drawMarks(plot, marks) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
  for (const { at, color } of marks) {
    const x = Math.round(plot.valToPos(at, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.strokeStyle = colorOf(color);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}
