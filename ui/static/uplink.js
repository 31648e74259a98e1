// What of the microphone goes to the server: all of it hands-free, else what is said while the talk button is held.

export const PREROLL_FRAMES = 15; // 300 ms before the talk button went down
const RELEASE_TAIL_MS = 120; // the last sound is still on its way through the microphone
const SHORTEST_HOLD_MS = 250;

export class Uplink {
  /**
   * live: what the page knows of the talk; `muted` is read, `holding` is set here. onSent(frame) for each frame that went
   * out; onChange() when the button was let go for good.
   */
  constructor({ socket, settings, live, onSent, onChange, now = () => performance.now() }) {
    Object.assign(this, { socket, settings, live, onSent, onChange, now });
    this.preroll = [];
    this.releasing = false;
  }

  /** Takes the newest 20 ms: {pcm, at}. */
  take(frame) {
    const { live, preroll } = this;
    if (live.muted || !this.socket.open) return;
    if (this.settings.mode === "hold" && !live.holding) {
      preroll.push(frame);
      if (preroll.length > PREROLL_FRAMES) preroll.shift();
      return;
    }
    this.#send(frame);
  }

  #send(frame) {
    if (this.socket.sendAudio(frame.pcm)) this.onSent(frame);
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
    const { live, socket } = this;
    if (!live.holding || this.releasing) return;
    this.releasing = true;
    const long = this.now() - this.heldAt >= SHORTEST_HOLD_MS;
    setTimeout(() => {
      live.holding = this.releasing = false;
      if (long) {
        socket.send({ type: "input_audio_buffer.commit" });
        socket.send({ type: "response.create" });
      } else {
        socket.send({ type: "input_audio_buffer.clear" });
      }
      this.onChange();
    }, RELEASE_TAIL_MS);
  }
}
