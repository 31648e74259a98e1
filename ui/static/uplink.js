// What of the microphone goes to the server: all of it hands-free, else what is said while the talk button is held. The
// newest of it is kept: what a lost connection swallowed, or was said while there was none, goes with the next one.

export const PREROLL_FRAMES = 15; // 300 ms before the talk button went down
const RELEASE_TAIL_MS = 120; // the last sound is still on its way through the microphone
const SHORTEST_HOLD_MS = 250;
export const KEPT = 750; // 15 s: longer ago is another talk

export class Uplink {
  /**
   * live: what the page knows of the talk; `muted` is read, `holding` is set here. onSent(frame) for each frame that went
   * out; onChange() when the button was let go for good.
   */
  constructor({ socket, settings, live, onSent, onChange, now = () => performance.now() }) {
    Object.assign(this, { socket, settings, live, onSent, onChange, now });
    this.preroll = [];
    this.releasing = false;
    this.kept = []; // {first, frame} or {first, event, sent}: `first` counts the samples of this talk before it
    this.position = 0;
  }

  /** Takes the newest 20 ms: {pcm, at}. */
  take(frame) {
    const { live, preroll } = this;
    if (live.muted) return;
    if (this.settings.mode === "hold" && !live.holding) {
      if (!this.socket.open) return;
      preroll.push(frame);
      if (preroll.length > PREROLL_FRAMES) preroll.shift();
      return;
    }
    this.#send(frame);
  }

  /** A frame that the connection has no room for has no place of its own: it is sent again if nothing behind it arrives. */
  #send(frame, late = false) {
    const { open } = this.socket;
    const goes = !open || this.socket.sendAudio(frame.pcm, { late });
    if (open && goes) {
      if (!frame.sent) this.onSent(frame);
      frame.sent = true;
    }
    this.#keep({ first: this.position, frame });
    if (goes) this.position += frame.pcm.length;
  }

  #tell(event) {
    this.#keep({ first: this.position, event, sent: this.socket.send(event) });
  }

  #keep(entry) {
    this.kept.push(entry);
    if (this.kept.length > KEPT) this.kept.shift();
  }

  /** The server has `received` so many samples of this talk: what is behind them is sent again. Null: it is another talk. */
  goOn(received) {
    const has = ({ first, frame, sent }) => (frame ? first + frame.pcm.length <= received : sent && first <= received);
    const lost = received === null ? [] : this.kept.slice(this.kept.findLastIndex(has) + 1);
    this.kept = [];
    this.position = received ?? 0;
    for (const { frame, event } of lost) {
      if (frame) this.#send(frame, true);
      else this.#tell(event);
    }
  }

  /** The talk was ended: what it lacks is not said any more when it is continued. */
  clear() {
    this.kept = [];
  }

  /** The button is down: what was said just before belongs to it. */
  hold() {
    this.live.holding = true;
    this.heldAt = this.now();
    for (const frame of this.preroll) this.#send(frame);
    this.preroll = [];
  }

  /** The button is up: the server answers, unless it was only touched. */
  release() {
    const { live } = this;
    if (!live.holding || this.releasing) return;
    this.releasing = true;
    const long = this.now() - this.heldAt >= SHORTEST_HOLD_MS;
    setTimeout(() => {
      live.holding = this.releasing = false;
      if (long) {
        this.#tell({ type: "input_audio_buffer.commit" });
        this.#tell({ type: "response.create" });
      } else {
        this.#tell({ type: "input_audio_buffer.clear" });
      }
      this.onChange();
    }, RELEASE_TAIL_MS);
  }
}
