// The chosen part of a recording: two ends that never cross, in seconds. No DOM here.

const STEPS = { ArrowLeft: -0.1, ArrowDown: -0.1, ArrowRight: 0.1, ArrowUp: 0.1, PageDown: -1, PageUp: 1 };

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export class Trim {
  /** Begins with all of it, or with as much of its beginning as may be used. */
  constructor(durationS, { minS, maxS }) {
    this.duration = durationS;
    this.min = Math.min(minS, durationS);
    this.max = Math.max(this.min, Math.min(maxS, durationS));
    this.start = 0;
    this.end = this.max;
  }

  get seconds() {
    return this.end - this.start;
  }

  /** Moves one end; where the part would grow too long or too short, the other end comes along. */
  move(end, toS) {
    if (end === "start") {
      this.start = clamp(toS, 0, this.duration - this.min);
      this.end = clamp(this.end, this.start + this.min, this.start + this.max);
    } else {
      this.end = clamp(toS, this.min, this.duration);
      this.start = clamp(this.start, this.end - this.max, this.end - this.min);
    }
  }

  /** How far an end can go, [low, high]: what a slider has to say of itself. */
  limits(end) {
    return end === "start" ? [0, this.duration - this.min] : [this.min, this.duration];
  }

  /** Moves one end by a key; false: the key means nothing here. */
  press(end, key) {
    const [low, high] = this.limits(end);
    if (key === "Home") this.move(end, low);
    else if (key === "End") this.move(end, high);
    else if (key in STEPS) this.move(end, this[end] + STEPS[key]);
    else return false;
    return true;
  }
}

/** The loudest sample in each of `n` equal parts, 0 to 1. */
export function peaks(samples, n) {
  const found = new Float32Array(n);
  const size = samples.length / n;
  for (let part = 0; part < n; part += 1) {
    const to = Math.min(samples.length, Math.max(Math.ceil((part + 1) * size), Math.floor(part * size) + 1));
    for (let i = Math.floor(part * size); i < to; i += 1) found[part] = Math.max(found[part], Math.abs(samples[i]));
  }
  return found;
}

/** 12.34 -> "12.3 s" */
export const asSeconds = (seconds) => `${seconds.toFixed(1)} s`;
