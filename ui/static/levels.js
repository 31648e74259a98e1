// Level meters and the orb: plain CSS variables, set at most once a frame and only while there is something to show.

const FALL = 0.82;
const CALM_FALL = 0.3;
const CALM_MS = 100; // between two drawings for people who want less motion: the bars only

/** RMS in [0, 1] to a bar between 0 and 1: -60 dB is empty, -6 dB is full. */
export function barOf(rms) {
  return Math.max(0, Math.min(1, (20 * Math.log10(Math.max(rms, 1e-6)) + 60) / 54));
}

export class Levels {
  constructor({ orb, micBar, outBar }) {
    Object.assign(this, { orb, micBar, outBar });
    this.mic = 0;
    this.out = 0;
    this.micPeak = 0;
    this.running = false;
    this.run = 0;
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.samples = new Float32Array(512);
    this.analyser = null;
    this.spokenAt = 0;
    this.shown = new Map();
  }

  /** The level of the newest 20 ms from the microphone. */
  setMic(rms) {
    this.micPeak = Math.max(this.micPeak, barOf(rms));
  }

  start(analyser) {
    this.analyser = analyser;
    if (this.running) return;
    this.running = true;
    this.run += 1;
    this.#next(this.run);
  }

  stop() {
    this.running = false;
    this.#show(0, 0);
  }

  #next(run) {
    const draw = () => requestAnimationFrame(() => this.#frame(run));
    if (this.calm.matches) setTimeout(draw, CALM_MS);
    else draw();
  }

  #frame(run) {
    if (!this.running || run !== this.run) return;
    let out = 0;
    if (this.analyser) {
      this.analyser.getFloatTimeDomainData(this.samples);
      let energy = 0;
      for (const value of this.samples) energy += value * value;
      out = barOf(Math.sqrt(energy / this.samples.length));
    }
    const fall = this.calm.matches ? CALM_FALL : FALL;
    this.mic = Math.max(this.micPeak, this.mic * fall);
    this.out = Math.max(out, this.out * fall);
    this.micPeak = 0;
    this.#show(this.mic, this.out);
    this.#next(run);
  }

  /** Draws a level only when it looks different: silence, too, comes 60 times a second. */
  #set(name, level, orb, bar) {
    const value = level.toFixed(2);
    if (this.shown.get(name) === value) return;
    this.shown.set(name, value);
    orb.style.setProperty(name, this.calm.matches ? 0 : value);
    bar.style.setProperty("--level", value);
  }

  #show(mic, out) {
    this.#set("--mic", mic, this.orb, this.micBar);
    this.#set("--out", out, this.orb, this.outBar);
    const now = performance.now();
    if (now - this.spokenAt < 500) return; // assistive technology needs no 60 updates a second
    this.spokenAt = now;
    this.micBar.setAttribute("aria-valuenow", Math.round(mic * 100));
    this.outBar.setAttribute("aria-valuenow", Math.round(out * 100));
  }
}
