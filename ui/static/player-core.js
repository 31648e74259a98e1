// What plays, sample by sample: a ring of the reply's audio that can be emptied at once. Runs inside the player worklet
// and, for its tests, in Node. All positions are in samples of the source rate unless a name says otherwise.

import { PolyphaseKernel } from "./resample.js";

const RING_S = 30;
const PREBUFFER_STEP_MS = 60;
const PREBUFFER_MAX_MS = 400;
const PATIENCE_MS = 40; // a reply shorter than the prebuffer starts this long after the prebuffer would have been full
const FADE_FRAMES = 128; // about 3 ms: enough to hide the click of a cut

export class PlayerCore {
  /** contextRate and sourceRate in Hz; `onPlayed(turn, first, samples)` gets each run of source samples as it is played. */
  constructor({ contextRate, sourceRate, prebufferMs = 70, onPlayed = () => {} }) {
    this.contextRate = contextRate;
    this.onPlayed = onPlayed;
    this.prebufferMs = prebufferMs;
    this.flushedTurn = 0;
    this.underruns = 0;
    this.setSourceRate(sourceRate);
  }

  /** Starts anew at another rate; what was waiting is dropped. */
  setSourceRate(sourceRate) {
    this.sourceRate = sourceRate;
    this.kernel = new PolyphaseKernel(sourceRate, this.contextRate);
    this.ring = new Float32Array(RING_S * sourceRate);
    this.write = 0; // absolute count of samples ever written
    this.read = 0; // absolute position of the next output, plus phase / up
    this.phase = 0;
    this.floor = 0; // samples before this belong to a flushed or finished stretch and are silence to the filter
    this.runs = []; // {turn, first, start, length}: which turn's samples lie where, oldest first
    this.turn = 0; // the turn that was heard last
    this.played = 0; // how far into that turn
    this.mode = "idle"; // idle | filling | playing | drained
    this.filledFrames = 0;
    this.lastValue = 0;
    this.fadeOut = 0;
    this.fadeIn = 0;
  }

  get buffered() {
    return this.write - this.read;
  }

  /** Takes PCM16 of a turn, beginning at its sample `first`. False: stale, already there, or no room. */
  push(turn, first, pcm) {
    if (turn <= this.flushedTurn) return false;
    const last = this.runs[this.runs.length - 1];
    let skip = 0;
    const expected = this.#expected(turn, last);
    if (expected !== null && first < expected) skip = expected - first;
    if (skip >= pcm.length) return false;
    const length = pcm.length - skip;
    if (this.buffered + length > this.ring.length - this.kernel.taps) return false;
    const sameTurn = last ? last.turn === turn : this.turn === turn;
    if (this.mode === "drained" && sameTurn) {
      this.underruns += 1;
      this.prebufferMs = Math.min(PREBUFFER_MAX_MS, this.prebufferMs + PREBUFFER_STEP_MS);
    }
    if (this.mode === "drained" || this.mode === "idle") {
      this.mode = "filling";
      this.filledFrames = 0;
      this.floor = this.read = this.write;
      this.phase = 0;
    }
    if (last && last.turn === turn && last.first + last.length === first + skip) last.length += length;
    else this.runs.push({ turn, first: first + skip, start: this.write, length });
    for (let i = skip; i < pcm.length; i += 1) {
      this.ring[this.write % this.ring.length] = pcm[i] / 32768;
      this.write += 1;
    }
    return true;
  }

  #expected(turn, last) {
    if (last) return last.turn === turn ? last.first + last.length : null;
    return this.turn === turn ? this.played : null;
  }

  /** Empties what waits of `turn` and of earlier ones; nothing of them is rendered again. Gives the heard position. */
  flush(turn) {
    this.flushedTurn = Math.max(this.flushedTurn, turn);
    const kept = this.runs.filter((run) => run.turn > turn);
    if (kept.length === this.runs.length) return { turn: this.turn, played: this.played };
    if (this.mode === "playing") this.fadeOut = FADE_FRAMES;
    this.runs = kept;
    this.read = kept.length ? kept[0].start : this.write;
    this.phase = 0;
    this.floor = this.read;
    this.mode = kept.length ? "filling" : "idle";
    this.filledFrames = 0;
    return { turn: this.turn, played: this.played };
  }

  /** Writes the next block at the context's rate into `out` (Float32Array); silence where there is nothing. */
  render(out) {
    if (this.mode === "filling" && this.#ripe(out.length)) {
      this.mode = "playing";
      this.fadeIn = FADE_FRAMES;
    }
    const { kernel, ring } = this;
    const from = this.read;
    for (let i = 0; i < out.length; i += 1) {
      if (this.mode !== "playing") {
        // The cut decays from the last value: a smooth end that plays no stale sample.
        out[i] = this.fadeOut > 0 ? (this.lastValue * this.fadeOut) / FADE_FRAMES : 0;
        if (this.fadeOut > 0) this.fadeOut -= 1;
        continue;
      }
      const row = kernel.row(this.phase);
      let sum = 0;
      let index = this.read - kernel.half + 1;
      for (let k = 0; k < kernel.taps; k += 1, index += 1) {
        if (index >= this.floor && index < this.write) sum += ring[index % ring.length] * kernel.table[row + k];
      }
      if (this.fadeIn > 0) {
        sum *= 1 - this.fadeIn / FADE_FRAMES;
        this.fadeIn -= 1;
      }
      out[i] = sum;
      this.lastValue = sum;
      const next = this.phase + kernel.down;
      this.read += Math.floor(next / kernel.up);
      this.phase = next % kernel.up;
      if (this.read >= this.write) {
        this.read = this.write;
        this.mode = "drained";
        this.fadeOut = FADE_FRAMES;
      }
    }
    if (this.read > from) this.#account(from, this.read);
  }

  #ripe(frames) {
    this.filledFrames += frames;
    const waitedMs = (this.filledFrames / this.contextRate) * 1000;
    const bufferedMs = (this.buffered / this.sourceRate) * 1000;
    return bufferedMs >= this.prebufferMs || waitedMs >= this.prebufferMs + PATIENCE_MS;
  }

  #account(from, to) {
    while (this.runs.length && this.runs[0].start < to) {
      const run = this.runs[0];
      const start = Math.max(from, run.start);
      const end = Math.min(to, run.start + run.length);
      const samples = new Float32Array(end - start);
      for (let i = 0; i < samples.length; i += 1) samples[i] = this.ring[(start + i) % this.ring.length];
      const first = run.first + (start - run.start);
      this.turn = run.turn;
      this.played = first + samples.length;
      this.onPlayed(run.turn, first, samples);
      if (run.start + run.length > to) break;
      this.runs.shift();
    }
  }
}
