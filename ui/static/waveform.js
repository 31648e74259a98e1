// A recording drawn on a canvas, with a handle at each end of the part that is used.

import { asSeconds, peaks } from "./trim.js";

const BAR_PX = 3;
const GAP_PX = 2;
const GRIP_PX = 22; // room beside the drawing, where the handles stand when all is chosen

export class Waveform {
  /** onChange() after each move of a handle by the user. */
  constructor({ box, canvas, handles, onChange }) {
    Object.assign(this, { box, canvas, handles, onChange });
    this.buffer = null;
    this.trim = null;
    this.playedS = null;
    for (const [end, handle] of Object.entries(handles)) this.#bind(end, handle);
    new ResizeObserver(() => this.draw()).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** buffer: AudioBuffer; trim: the Trim that the handles move. */
  show(buffer, trim) {
    Object.assign(this, { buffer, trim, playedS: null });
    this.draw();
  }

  /** Marks what is heard at the moment; null: nothing. */
  setPlayed(seconds) {
    this.playedS = seconds;
    this.draw();
  }

  #bind(end, handle) {
    handle.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      handle.setPointerCapture(event.pointerId);
      handle.focus();
      this.grabbedAt = event.clientX - this.#xOf(this.trim[end]);
    });
    handle.addEventListener("pointermove", (event) => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      this.trim.move(end, this.#secondsAt(event.clientX - this.grabbedAt));
      this.#moved();
    });
    handle.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || !this.trim.press(end, event.key)) return;
      event.preventDefault();
      this.#moved();
    });
  }

  #moved() {
    this.draw();
    this.onChange();
  }

  get #width() {
    return this.box.clientWidth - 2 * GRIP_PX;
  }

  #xOf(seconds) {
    return (seconds / this.trim.duration) * this.#width;
  }

  #secondsAt(x) {
    return (x / this.#width) * this.trim.duration;
  }

  draw() {
    if (!this.buffer || !this.box.clientWidth) return;
    this.#place();
    const ratio = globalThis.devicePixelRatio || 1;
    const [width, height] = [this.#width, this.canvas.clientHeight];
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(this.canvas);
    const n = Math.max(1, Math.floor(width / (BAR_PX + GAP_PX)));
    this.#peaks(n).forEach((peak, index) => {
      const at = ((index + 0.5) / n) * this.trim.duration;
      const chosen = at >= this.trim.start && at <= this.trim.end;
      const heard = this.playedS !== null && at <= this.playedS;
      context.fillStyle = style.getPropertyValue(!chosen ? "--wave-rest" : heard ? "--wave-heard" : "--wave");
      const tall = Math.max(BAR_PX, peak * height);
      context.beginPath();
      context.roundRect((index + 0.5) * (width / n) - BAR_PX / 2, (height - tall) / 2, BAR_PX, tall, BAR_PX / 2);
      context.fill();
    });
  }

  #peaks(n) {
    if (this.peaksOf !== this.buffer || this.peaks.length !== n) {
      this.peaksOf = this.buffer;
      this.peaks = peaks(this.buffer.getChannelData(0), n);
      const loudest = Math.max(...this.peaks, 0.05); // a whisper is shown as such, and not as a flat line
      this.peaks = this.peaks.map((peak) => Math.sqrt(peak / Math.max(loudest, 0.25)) ** 1.3);
    }
    return this.peaks;
  }

  #place() {
    for (const [end, handle] of Object.entries(this.handles)) {
      const [low, high] = this.trim.limits(end);
      handle.style.left = `${GRIP_PX + this.#xOf(this.trim[end])}px`;
      handle.setAttribute("aria-valuemin", low.toFixed(1));
      handle.setAttribute("aria-valuemax", high.toFixed(1));
      handle.setAttribute("aria-valuenow", this.trim[end].toFixed(1));
      handle.setAttribute("aria-valuetext", asSeconds(this.trim[end]));
    }
  }
}
