// Words appear when the voice reaches them, not when they were generated.

export class Captions {
  constructor() {
    this.reset();
  }

  /** Takes a caption {turn, item_id, text, first_sample}; one of a flushed turn, or that came before, is dropped. */
  add(caption) {
    const { turn, first_sample, text } = caption;
    const name = `${turn} ${first_sample} ${text}`;
    if (turn <= this.flushedTurn || this.known.has(name)) return;
    this.known.add(name); // sound that is sent again on a new connection has its captions with it
    this.waiting.push(caption);
  }

  /** Gives, in order, the captions that the player has reached: sample `played` of `turn` has been heard. */
  advance(turn, played) {
    const due = [];
    this.waiting = this.waiting.filter((caption) => {
      const reached = caption.turn < turn || (caption.turn === turn && caption.first_sample < played);
      if (reached) due.push(caption);
      return !reached;
    });
    return due;
  }

  /** Drops what was never heard of `turn` and of earlier ones. */
  flush(turn) {
    this.flushedTurn = Math.max(this.flushedTurn, turn);
    this.waiting = this.waiting.filter((caption) => caption.turn > turn);
  }

  reset() {
    this.known = new Set();
    this.waiting = [];
    this.flushedTurn = 0;
  }
}
