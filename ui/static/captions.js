// Words appear when the voice reaches them, not when they were generated.

export class Captions {
  constructor() {
    this.waiting = [];
    this.flushedTurn = 0;
  }

  /** Takes a caption {turn, item_id, text, first_sample}; one of a flushed turn is dropped. */
  add(caption) {
    if (caption.turn > this.flushedTurn) this.waiting.push(caption);
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
    this.waiting = [];
    this.flushedTurn = 0;
  }
}
