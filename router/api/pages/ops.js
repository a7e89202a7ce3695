// The page at /ops: reads overviews and figures, shows them, and says so when they are old.

import { call, element, Key, milliseconds, NoKey, Refused, seconds, setText } from "./helios.js";
import { Charts } from "./ops_charts.js";
import { Controls } from "./ops_controls.js";
import { showDecision, showRequest } from "./ops_details.js";
import { Figures, SPANS } from "./ops_series.js";
import { stripsOf } from "./ops_strips.js";
import { CANDIDATE_COLUMNS, candidateRows, DECISION_COLUMNS, REQUEST_COLUMNS, shardColumns, shardRows, Table, THRESHOLD_COLUMNS, thresholdRows } from "./ops_tables.js";
import { marksOf, Timeline } from "./ops_timeline.js";
import { figuresTable, nowLines, tilesOf } from "./ops_summary.js";

const INTERVAL_MS = 2000;
const SHARD_MS = 5; // or so much for each shard: of a thousand, an overview takes a router 20 ms
const TIMEOUT_MS = 10000;
const MAX_DECISIONS = 300;

const $ = (id) => document.getElementById(id);
const key = new Key("admin");
const ask = (path) => call(path, { key, timeout: TIMEOUT_MS });

class Page {
  constructor() {
    this.choose(SPANS[1]);
    this.decisions = new Map();
    this.overview = null;
    this.requests = [];
    this.followed = null; // the decision of the last command given here
    this.table = null;
    this.tab = "shards";
    this.charts = new Charts($("charts"), {
      span: () => this.span,
      marks: () => marksOf([...this.decisions.values()]),
      onCursor: (at) => this.timeline?.pointAt(at),
    });
    this.controls = new Controls({
      ask,
      send: (path, body) => call(path, { key, method: "POST", body }),
      follow: (what, answer) => this.follow(what, answer),
    });
    this.timeline = new Timeline($("over-time").closest("section").querySelector(".timeline-place"), {
      span: () => this.span,
      onPoint: (at) => this.charts.pointAt(at),
      onOpen: showDecision,
    });
  }

  get span() {
    const until = this.overview?.at ?? Date.now() / 1000;
    return [until - this.figures.span.seconds, until];
  }

  /** Another span of time: all figures are read anew. */
  choose(span) {
    this.figures = new Figures(span);
    this.slow = new Figures(span, span.slow);
  }

  start() {
    $("commands").append(...this.controls.buttons());
    this.offerSpans();
    this.offerTabs();
    $("filter").addEventListener("input", () => this.drawTable());
    $("as-table").addEventListener("click", () => this.toggleFigures());
    $("give-key").addEventListener("click", () => this.poll());
    document.addEventListener("visibilitychange", () => document.hidden || this.poll());
    setInterval(() => this.tellAge(), 1000);
    this.poll();
  }

  /** Reads all that is shown, then waits and does it again. */
  async poll() {
    if (this.isReading) return;
    this.isReading = true;
    clearTimeout(this.next);
    $("give-key").hidden = true;
    let isWanted = !document.hidden;
    try {
      await this.read();
      this.trouble = null;
      this.heard = Date.now();
      this.draw();
    } catch (error) {
      if (!(error instanceof Refused || error instanceof DOMException || error instanceof TypeError)) console.error(error);
      this.trouble = error;
      isWanted = isWanted && !(error instanceof NoKey);
    }
    this.isReading = false;
    this.tellAge();
    if (isWanted) this.next = setTimeout(() => this.poll(), this.pause);
  }

  /** Milliseconds until the next look. */
  get pause() {
    return Math.max(INTERVAL_MS, SHARD_MS * (this.overview?.shards.length ?? 0));
  }

  async read() {
    const overview = await ask("ops/overview");
    const before = this.overview;
    if (overview.redis === "ok") this.complete = Date.now();
    else if (before) Object.assign(overview, { total: before.total, models: before.models });
    this.overview = overview;
    for (const decision of overview.decisions) this.decisions.set(decision.id, decision);
    const { figures } = this;
    if (figures.until === null) await this.readDecisions(overview.at - figures.span.seconds);
    for (const due of [figures, this.slow].filter((one) => one.isDue(overview.at))) {
      const windows = await ask(due.path(overview.at));
      if (windows.redis === "ok") due.add(windows, overview.at);
    }
    if (this.tab === "requests") await this.readRequests();
  }

  async readDecisions(since) {
    const { decisions } = await ask(`ops/decisions?limit=${MAX_DECISIONS}&since=${since.toFixed(0)}`);
    this.decisions = new Map([...decisions, ...this.overview.decisions].map((one) => [one.id, one]));
  }

  /** Requests of this router with their labels, of others as their snapshots have them. */
  async readRequests() {
    const { requests } = await ask("ops/requests");
    const { router, routers } = this.overview;
    const named = (name, request) => ({ ...request, router: name, number: request.id, id: `${name}:${request.id}`, name: request.id });
    const others = routers.filter(({ snapshot }) => snapshot.router !== router);
    this.requests = [
      ...requests.map((request) => named(router, request)),
      ...others.flatMap(({ snapshot }) => snapshot.requests.map((request) => named(snapshot.router, request))),
    ];
  }

  draw() {
    const { overview } = this;
    setText($("deployment"), `${overview.deployment}${overview.routers.length > 1 ? `, ${overview.routers.length} routers` : ""}`);
    tilesOf(overview, $("tiles"));
    nowLines(overview, $("now"));
    this.drawCharts();
    this.drawTable();
    this.tellOutcome();
  }

  drawCharts() {
    const { overview } = this;
    const numLayers = Math.max(0, ...overview.shards.map(({ shard }) => shard.num_layers ?? 0));
    const floor = overview.routers.find(({ snapshot }) => snapshot.floor != null)?.snapshot.floor ?? null;
    this.strips = stripsOf({ layers: this.figures.layers(), numLayers, floor });
    this.rows = this.figures.rows();
    const slow = this.slow.rows();
    this.charts.draw(this.strips, (strip) => (strip.isSlow ? slow : this.rows));
    this.timeline.draw([...this.decisions.values()]);
    if (!$("figures").hidden) figuresTable(this.strips, this.rows, $("figures"));
  }

  drawTable() {
    if (!this.overview) return;
    const tab = TABS[this.tab];
    const shape = `${this.tab} ${this.overview.routers.length > 1} ${this.overview.router}`;
    if (this.shape !== shape) {
      this.table = new Table($("panel"), tab.table(this));
      this.shape = shape;
    }
    this.table.draw(tab.rows(this), $("filter").value.trim());
  }

  numLayersOf(model) {
    const { shards } = this.overview;
    const found = shards.find(({ shard }) => shard.model === model) ?? shards[0];
    return found?.shard.num_layers ?? 0;
  }

  async openRequest(row) {
    const isOwn = row.router === this.overview.router;
    try {
      const report = isOwn ? await ask(`ops/requests/${row.number}`) : { ...row, request: { ...row, id: row.number } };
      showRequest(report, this.numLayersOf(row.model), isOwn ? (request) => this.controls.abort(request) : null);
    } catch (error) {
      this.follow(error.message, null);
    }
  }

  /** Says what a command did, or why it did not. */
  follow(what, answer) {
    this.followed = answer?.decision_id ?? null;
    setText($("outcome"), this.followed ? `${what}: under way …` : answer ? `${what}: done.` : what);
    $("outcome").classList.toggle("error", !answer);
    this.poll();
  }

  tellOutcome() {
    const decision = this.decisions.get(this.followed);
    if (!decision?.outcome) return;
    this.followed = null;
    const took = Object.values(decision.phases_ms).reduce((sum, ms) => sum + ms, 0);
    const text = `${decision.kind}: ${decision.outcome.replace("_", " ")}${took ? ` in ${milliseconds(took)}` : ""}.`;
    setText($("outcome"), decision.error ? `${text} ${decision.error}` : text);
    $("outcome").classList.toggle("error", decision.outcome !== "committed");
  }

  /** The state of what is shown: live, or since when it is old and why. */
  tellAge() {
    const isLost = !this.trouble && this.overview?.redis === "lost";
    document.body.classList.toggle("away", Boolean(this.trouble));
    document.body.classList.toggle("lost", isLost);
    $("alert").hidden = !this.trouble && !isLost;
    setText($("alert").querySelector("span"), this.trouble ? this.troubleText() : isLost ? this.lostText() : "");
    $("give-key").hidden = !(this.trouble instanceof NoKey);
    const down = this.overview?.routers.filter((router) => !router.is_alive).length ?? 0;
    setText($("live"), this.trouble || isLost ? "old" : this.overview ? (down ? `live, ${down} ${down === 1 ? "router" : "routers"} down` : "live") : "…");
  }

  troubleText() {
    const age = this.heard ? ` Shown is what it said ${ageOf(this.heard)} ago.` : "";
    if (this.trouble instanceof NoKey) return "What goes on here is shown to those who have the key.";
    if (this.trouble instanceof Refused) return `The router refuses: ${this.trouble.message}${age}`;
    return `The router does not answer; trying again.${age}`;
  }

  lostText() {
    const age = this.complete ? `Figures are ${ageOf(this.complete)} old. ` : "There are no figures. ";
    return `Redis does not answer. ${age}Shards and requests are this router's own, as of now; it serves on.`;
  }

  offerSpans() {
    const buttons = SPANS.map((span) => {
      const choose = () => {
        for (const other of buttons) other.setAttribute("aria-pressed", other === button);
        this.choose(span);
        this.poll();
      };
      const button = element("button", { "aria-pressed": span === this.figures.span ? "true" : "false", onclick: choose }, span.name);
      return button;
    });
    $("spans").append(...buttons);
  }

  offerTabs() {
    const buttons = Object.entries(TABS).map(([id, { name }]) => {
      const button = element("button", { role: "tab", id: `tab-${id}`, "aria-controls": "panel", onclick: () => choose(id) }, name);
      return button;
    });
    const choose = (id) => {
      this.tab = id;
      for (const button of buttons) {
        const isChosen = button.id === `tab-${id}`;
        button.setAttribute("aria-selected", isChosen);
        button.tabIndex = isChosen ? 0 : -1;
      }
      $("panel").setAttribute("aria-labelledby", `tab-${id}`);
      this.drawTable();
      if (id === "requests") this.poll();
    };
    $("tabs").addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
      next.focus();
      next.click();
    });
    $("tabs").append(...buttons);
    choose(this.tab);
  }

  toggleFigures() {
    const isShown = $("figures").hidden;
    $("figures").hidden = !isShown;
    $("as-table").setAttribute("aria-expanded", isShown);
    if (isShown && this.rows) figuresTable(this.strips, this.rows, $("figures"));
  }
}

const ageOf = (since) => seconds((Date.now() - since) / 1000);

const TABS = {
  shards: {
    name: "Shards",
    table: (page) => ({ caption: "Shards", columns: shardColumns(page.overview), empty: "There are no shards.", actions: (row) => (row().router === page.overview.router ? page.controls.shardButtons(row) : []) }),
    rows: ({ overview }) => shardRows(overview),
  },
  candidates: {
    name: "Candidates",
    table: () => ({ caption: "Candidates and what was measured of them", columns: CANDIDATE_COLUMNS, empty: "Nothing may be served." }),
    rows: ({ overview }) => candidateRows(overview),
  },
  thresholds: {
    name: "Thresholds",
    table: () => ({ caption: "Thresholds by exit layer", columns: THRESHOLD_COLUMNS, empty: "No model that serves has exits in use." }),
    rows: ({ overview }) => thresholdRows(overview),
  },
  decisions: {
    name: "Decisions",
    table: () => ({ caption: "Decisions, the latest first", columns: DECISION_COLUMNS, empty: "Nothing was decided in this span.", open: showDecision }),
    rows: ({ decisions }) => [...decisions.values()].sort((a, b) => (a.id < b.id ? 1 : -1)),
  },
  requests: {
    name: "Requests",
    table: (page) => ({ caption: "Requests", columns: REQUEST_COLUMNS, empty: "There are no requests.", open: (row) => page.openRequest(row) }),
    rows: ({ requests }) => requests,
  },
};

new Page().start();
