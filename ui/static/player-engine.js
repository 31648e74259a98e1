// PlayerCore with its messages: what the page asks, and what was played. Runs in the worklet, or on the page's own thread
// where a browser gives no worklet (a page without HTTPS).

import { PlayerCore } from "./player-core.js";
import { toPcm16 } from "./resample.js";

const REPORT_S = 0.05;

export class PlayerEngine {
  /** post(message, transfer) answers the page; contextRate and sourceRate in Hz. */
  constructor({ contextRate, sourceRate, post }) {
    this.post = post;
    this.now = 0;
    this.startedAt = 0;
    this.startedTurn = 0;
    this.pending = null;
    this.reportAt = 0;
    this.mode = "idle";
    const onPlayed = (turn, first, samples) => this.#collect(turn, first, samples);
    this.core = new PlayerCore({ contextRate, sourceRate, onPlayed });
  }

  /** Takes a message of the page: audio, flush or rate. */
  receive(data) {
    if (data.type === "audio") {
      this.core.push(data.turn, data.first, data.pcm);
    } else if (data.type === "flush") {
      this.#hand();
      this.core.flush(data.turn);
      this.mode = this.core.mode;
      this.#report("flushed");
    } else if (data.type === "rate") {
      this.core.setSourceRate(data.sourceRate);
    }
  }

  /** Fills `out` with the block that begins at `now` (s on the audio clock) and reports each 50 ms and each change. */
  render(out, now) {
    this.now = now;
    this.core.render(out);
    const changed = this.core.mode !== this.mode;
    if (changed || (this.mode === "playing" && now - this.reportAt >= REPORT_S)) {
      this.mode = this.core.mode;
      this.#hand();
      this.#report("position");
    }
  }

  #collect(turn, first, samples) {
    if (turn !== this.startedTurn) {
      this.startedTurn = turn;
      this.startedAt = this.now;
    }
    const { pending } = this;
    if (pending && (pending.turn !== turn || pending.first + pending.length !== first)) this.#hand();
    this.pending ??= { turn, first, at: this.now, length: 0, parts: [] };
    this.pending.parts.push(samples);
    this.pending.length += samples.length;
  }

  /** Sends the samples that were played since the last report; the page keeps them for the recording. */
  #hand() {
    if (!this.pending) return;
    const { turn, first, at, length, parts } = this.pending;
    this.pending = null;
    const all = new Float32Array(length);
    let offset = 0;
    for (const part of parts) {
      all.set(part, offset);
      offset += part.length;
    }
    const pcm = toPcm16(all);
    this.post({ type: "played", turn, first, at, pcm }, [pcm.buffer]);
  }

  #report(type) {
    const { turn, played, underruns, mode, buffered } = this.core;
    this.reportAt = this.now;
    this.post({ type, turn, played, underruns, mode, buffered, startedAt: this.startedAt, at: this.now });
  }
}
