// Plays one sound at a time: a selection of a recording, or a voice's sentence.

export class Sounds {
  /** onChange() when what plays has changed; volume() in [0, 1]. */
  constructor({ onChange, volume }) {
    Object.assign(this, { onChange, volume });
    this.playing = null;
    this.source = null;
    this.opened = null;
  }

  /** Made with the first sound: browsers want a click before it. */
  get context() {
    this.opened ??= new AudioContext();
    if (this.opened.state !== "running") this.opened.resume().catch(() => {});
    return this.opened;
  }

  /** An AudioBuffer, or null for what this browser cannot read. */
  async decode(bytes) {
    return this.context.decodeAudioData(bytes).catch(() => null);
  }

  /** key: what `playing` says meanwhile; onPosition(seconds) as it goes on, and onPosition(null) at its end. */
  play(key, buffer, { startS = 0, endS = buffer.duration, onPosition = () => {} } = {}) {
    this.stop();
    const { context } = this;
    const source = new AudioBufferSourceNode(context, { buffer });
    source.connect(new GainNode(context, { gain: this.volume() })).connect(context.destination);
    const beganAt = context.currentTime;
    source.onended = () => {
      if (this.source === source) this.#over();
    };
    source.start(0, startS, endS - startS);
    Object.assign(this, { source, onPosition, playing: key });
    const follow = () => {
      if (this.source !== source) return;
      onPosition(startS + context.currentTime - beganAt);
      requestAnimationFrame(follow);
    };
    follow();
    this.onChange();
  }

  stop() {
    if (!this.source) return;
    this.source.onended = null;
    this.source.stop();
    this.#over();
  }

  #over() {
    const { onPosition } = this;
    Object.assign(this, { source: null, playing: null });
    onPosition(null);
    this.onChange();
  }

  close() {
    this.stop();
    this.opened?.close();
  }
}
