// What the pages share: calls with a key, elements whose text is only ever text, dialogs, numbers as people read them.

/** A call that the server refused; `field` is the parameter at fault, if it names one. */
export class Refused extends Error {
  constructor(status, message, field = null) {
    super(message);
    this.status = status;
    this.field = field;
  }
}

/** The key was asked for and not given. */
export class NoKey extends Refused {
  constructor() {
    super(401, "No key was given.");
  }
}

/** An element with its attributes and children. Strings become text, never HTML; `null` children are left out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Puts text into an element if it differs: screen readers announce changes. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/* ---- keys ---- */

const asking = new Map();

/** One of the server's keys ("API" or "admin"), kept for this tab alone and asked for when a call needs it. */
export class Key {
  constructor(name) {
    this.name = name;
    this.slot = `helios ${name} key`;
  }

  get value() {
    return sessionStorage.getItem(this.slot);
  }

  forget() {
    sessionStorage.removeItem(this.slot);
  }

  /** Asks for the key, once for all calls that wait for it. Throws `NoKey`. */
  async ask(why) {
    if (!asking.has(this.slot)) {
      asking.set(
        this.slot,
        askForKey(this.name, why).finally(() => asking.delete(this.slot)),
      );
    }
    const given = await asking.get(this.slot);
    if (!given) throw new NoKey();
    sessionStorage.setItem(this.slot, given);
  }
}

async function askForKey(name, why) {
  const input = element("input", { type: "password", id: "asked-key", autocomplete: "off", required: true });
  const label = element("label", { for: "asked-key" }, `The ${name} key. It is kept until this tab is closed.`);
  const confirmed = await openDialog(`This server asks for a key`, [why, label, input], "Use this key");
  return confirmed ? input.value.trim() : null;
}

/* ---- calls ---- */

/** A response of the server, whose status is a success. Asks for the key as often as it is refused.
    `timeout`: milliseconds for one try. Throws `Refused` with the server's sentence, `NoKey`, or what `fetch` throws if there is no server. */
export async function request(path, { key, method = "GET", body, signal, timeout } = {}) {
  for (;;) {
    const sent = key?.value;
    const headers = {};
    if (sent) headers.Authorization = `Bearer ${sent}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const options = { method, headers, body: body === undefined ? undefined : JSON.stringify(body) };
    options.signal = timeout ? AbortSignal.timeout(timeout) : signal;
    const response = await fetch(path, options);
    if (response.ok) return response;
    if (response.status !== 401 || !key) throw await refusalOf(response);
    if (key.value === sent) {
      key.forget();
      await key.ask(sent ? "The server refused that key." : "Its answer needs one.");
    }
  }
}

/** The same, as JSON. */
export async function call(path, options) {
  return (await request(path, options)).json();
}

async function refusalOf(response) {
  const { status, headers } = response;
  const wait = headers.get("Retry-After");
  const when = wait ? ` Try again in ${wait} s.` : "";
  try {
    const { error } = await response.json();
    return new Refused(status, (error?.message ?? error ?? response.statusText) + when, error?.param);
  } catch {
    return new Refused(status, `${status} ${response.statusText}${when}`);
  }
}

/* ---- dialogs ---- */

/** Opens a dialog with a title, lines (text or elements) and one action; resolves to whether it was confirmed. */
export function openDialog(title, lines, action, { danger = false } = {}) {
  const heading = element("h2", { id: "dialog-title" }, title);
  const cancel = element("button", { type: "button", onclick: () => dialog.close("") }, "Cancel");
  const confirm = element("button", { class: danger ? "danger" : "primary" }, action);
  const shown = lines.filter(Boolean).map((line) => (typeof line === "string" ? element("p", {}, line) : line));
  const form = element("form", {}, ...shown, element("div", { class: "actions" }, cancel, confirm));
  const dialog = element("dialog", { "aria-labelledby": "dialog-title" }, heading, form);
  // `form-action 'none'` forbids what a form sends by itself, so the dialog is closed from here.
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close("confirmed");
  });
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "confirmed");
    });
  });
}

/* ---- exits ---- */

const NUM_EXIT_STEPS = 7;

/** Which of the colours `--exit-0` (early) to `--exit-6` (full depth) stands for a layer of so many. */
export function exitStep(layer, numLayers) {
  if (numLayers <= 1 || layer >= numLayers) return NUM_EXIT_STEPS - 1;
  return Math.min(NUM_EXIT_STEPS - 2, Math.floor((layer / numLayers) * (NUM_EXIT_STEPS - 1)));
}

/* ---- numbers ---- */

const NONE = "–";

/** Three digits that count: 12,345 · 97.2 · 0.0456. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return NONE;
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
}

export function percent(share, digits = 1) {
  return share === null || share === undefined ? NONE : `${(100 * share).toFixed(digits)}%`;
}

export function milliseconds(value) {
  if (value === null || value === undefined) return NONE;
  return value < 1000 ? `${number(value)} ms` : seconds(value / 1000);
}

/** A span of time: 0.4 s · 12 s · 3 min · 2.5 h. */
export function seconds(value) {
  if (value === null || value === undefined) return NONE;
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

/** The time of day of a Unix time, and the date if it is not today. */
export function timeOfDay(unix, now = Date.now()) {
  const at = new Date(1000 * unix);
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date(now).toDateString() ? time : `${at.toLocaleDateString("en-CA")} ${time}`;
}
