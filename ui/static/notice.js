// The box that says what is wrong and what to do.

import { fillNotice } from "./status.js";

export class Notice {
  /** onAction(id) when one of the notice's buttons is pressed. */
  constructor(box, onAction) {
    this.box = box;
    this.onAction = onAction;
    this.kind = null;
    this.timer = null;
  }

  /** Shows notice `kind`; with `retryInMs` a countdown stands beside it, which is not read out each second. */
  show(kind, { retryInMs, ...values } = {}) {
    const { title, text, actions } = fillNotice(kind, values);
    clearInterval(this.timer);
    if (kind !== this.kind) {
      this.box.querySelector("h2").textContent = title;
      this.box.querySelector("p").textContent = text;
      this.box.querySelector(".actions").replaceChildren(...actions.map(([id, label]) => this.#button(id, label)));
    }
    this.kind = kind;
    this.box.dataset.kind = kind;
    this.box.hidden = false;
    if (retryInMs) this.#countDown(performance.now() + retryInMs);
    else this.box.querySelector(".count")?.remove();
  }

  #button(id, label) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.action = id;
    button.textContent = label;
    button.addEventListener("click", () => this.onAction(id));
    return button;
  }

  #countDown(untilMs) {
    let count = this.box.querySelector(".count");
    if (!count) {
      count = document.createElement("span");
      count.className = "count";
      count.setAttribute("aria-hidden", "true");
      this.box.querySelector(".actions").append(count);
    }
    const tick = () => {
      const left = Math.max(0, Math.ceil((untilMs - performance.now()) / 1000));
      count.textContent = left ? `next try in ${left} s` : "trying…";
      if (!left) clearInterval(this.timer);
    };
    tick();
    this.timer = setInterval(tick, 500);
  }

  /** Hides the notice, or only when it is one of `kinds`. */
  hide(...kinds) {
    if (kinds.length && !kinds.includes(this.kind)) return;
    clearInterval(this.timer);
    this.kind = null;
    this.box.hidden = true;
  }
}
