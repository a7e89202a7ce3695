// What is known of one token, beside it: on hover, on a tap, and by keyboard, where arrows go from token to token.

import { factsOf } from "./answer.js";
import { element } from "./helios.js";

const GAP = 6; // pixels between a token and what is told of it
const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

export class Tip {
  constructor() {
    this.element = element("div", { class: "tip", role: "tooltip", id: "tip", hidden: true });
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.hide());
    document.addEventListener("scroll", () => this.of && this.#place(this.of), { capture: true, passive: true });
  }

  /** Tells of the tokens of an answer from now on. */
  follow(answer) {
    const show = (event) => {
      const span = event.target.closest(".token");
      if (span) this.#show(span, answer);
    };
    answer.body.addEventListener("pointerover", show);
    answer.body.addEventListener("focusin", show);
    answer.body.addEventListener("pointerleave", () => this.hide());
    answer.body.addEventListener("focusout", () => this.hide());
    answer.body.addEventListener("keydown", (event) => this.#walk(event, answer));
  }

  hide() {
    this.element.hidden = true;
    this.of?.removeAttribute("aria-describedby");
    this.of = null;
  }

  #walk(event, { spans }) {
    const at = Number(event.target.dataset.at);
    const next = { Home: 0, End: spans.length - 1 }[event.key] ?? at + STEPS[event.key];
    if (!spans[next]) return;
    event.preventDefault();
    spans[at].tabIndex = -1;
    spans[next].tabIndex = 0;
    spans[next].focus();
  }

  #show(span, answer) {
    this.hide();
    this.of = span;
    const token = answer.figures.tokens[span.dataset.at];
    const facts = factsOf(token, answer.model).map(([name, value]) => [
      element("dt", {}, name),
      element("dd", {}, value),
    ]);
    this.element.replaceChildren(
      element("p", { class: "mono" }, JSON.stringify(token.text)),
      element("dl", { class: "number" }, ...facts.flat()),
    );
    this.element.hidden = false;
    span.setAttribute("aria-describedby", "tip");
    this.#place(span);
  }

  #place(span) {
    const beside = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const { width, height } = this.element.getBoundingClientRect();
    const left = Math.min(beside.left, document.documentElement.clientWidth - width - GAP);
    const below = beside.bottom + GAP;
    const top = below + height < innerHeight ? below : beside.top - height - GAP;
    this.element.style.setProperty("left", `${Math.max(GAP, left)}px`);
    this.element.style.setProperty("top", `${Math.max(GAP, top)}px`);
  }
}
