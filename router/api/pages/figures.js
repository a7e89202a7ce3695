// Figures of an answer, and where two part. Pure: knows neither the document nor the clock.

/** Counts tokens and the layers at which they left. Times are milliseconds. */
export class Figures {
  constructor(startedAt) {
    this.startedAt = startedAt;
    this.firstAt = this.lastAt = null;
    this.tokens = [];
    this.byLayer = new Map();
  }

  add(token, now) {
    this.firstAt ??= now;
    this.tokens.push({ ...token, sinceLast: this.lastAt === null ? null : now - this.lastAt });
    this.lastAt = now;
    this.byLayer.set(token.layer, (this.byLayer.get(token.layer) ?? 0) + 1);
  }

  /** Time to first token. */
  get ttft() {
    return this.firstAt === null ? null : this.firstAt - this.startedAt;
  }

  /** Tokens per second after the first one; null until there is a second one. */
  get rate() {
    const time = this.lastAt - this.firstAt;
    return time > 0 ? (1000 * (this.tokens.length - 1)) / time : null;
  }

  /** The mean layer of tokens that were drawn, not forced; null if none was. */
  get meanLayer() {
    const drawn = this.tokens.filter(({ layer }) => layer > 0);
    return drawn.length ? drawn.reduce((sum, { layer }) => sum + layer, 0) / drawn.length : null;
  }

  /** `[layer, number of tokens]`, the shallowest first. */
  get layers() {
    return [...this.byLayer].sort(([a], [b]) => a - b);
  }
}

/** The index of the first token in which two answers differ; null if none does. */
export function firstDifference(some, others) {
  const length = Math.max(some.length, others.length);
  for (let at = 0; at < length; at++) if (some[at]?.text !== others[at]?.text) return at;
  return null;
}
