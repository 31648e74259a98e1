// A box beside the thing that did not work: what is wrong, and the button that tries again when it may.

import { describeProblem } from "./clone-words.js";

export class Problem {
  constructor(box) {
    this.box = box;
    this.words = box.querySelector("p");
    this.login = box.querySelector("a");
    this.button = box.querySelector("button");
    this.button.addEventListener("click", () => {
      const { again } = this;
      this.hide();
      again?.();
    });
    this.timer = null;
  }

  /** Shows why `error` happened; `again` is what the button does; `what` is not lost and is said to be there. */
  show(error, { again = null, what = "" } = {}) {
    if (error.name === "AbortError") return;
    const { words, waitS = 0, retry = false, login = false } = describeProblem(error, what);
    if (error.status === undefined) console.error("voicepod: a fault in the page", error);
    this.tell(words, retry ? again : null);
    this.login.hidden = !login;
    if (waitS) this.#wait(waitS);
  }

  tell(words, again = null) {
    this.hide();
    this.words.textContent = words;
    this.again = again;
    this.login.hidden = true;
    this.button.hidden = !again;
    this.button.disabled = false;
    this.button.textContent = "Try again";
    this.box.hidden = false;
  }

  #wait(seconds) {
    const until = performance.now() + seconds * 1000;
    const tick = () => {
      const left = Math.ceil((until - performance.now()) / 1000);
      this.button.disabled = left > 0;
      this.button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
      if (left <= 0) clearInterval(this.timer);
    };
    tick();
    this.timer = setInterval(tick, 250);
  }

  hide() {
    clearInterval(this.timer);
    this.box.hidden = true;
  }
}
