// Lowers the reply at the first suspicion that the user speaks, before any network hop; the server decides if it stops.

const ONSET_FRAMES = 3; // 60 ms above the floor
const ABOVE_FLOOR_DB = 12;
const QUIET_DB = -50; // nothing below this is speech to a close microphone
const HOLD_FRAMES = 20; // 400 ms of quiet restore the volume
const UNCONFIRMED_FRAMES = 60; // 1.2 s without a word from the server: it was the reply's own echo or a noise
const COOLDOWN_FRAMES = 75;

/** Decides from the level of each 20 ms frame; `feed()` gives true while the reply should be low. */
export class Ducker {
  constructor() {
    this.floorDb = -60;
    this.reset();
    this.cooldown = 0;
  }

  reset() {
    this.ducked = false;
    this.loud = 0;
    this.quiet = 0;
    this.age = 0;
  }

  /** rms in [0, 1]; speaking: the reply is audible; confirmed: the server has said that the user speaks. */
  feed(rms, { speaking, confirmed = false }) {
    const db = 20 * Math.log10(Math.max(rms, 1e-6));
    // The floor falls at once and rises slowly, so that speech does not lift it.
    this.floorDb = db < this.floorDb ? this.floorDb + 0.3 * (db - this.floorDb) : Math.min(db, this.floorDb + 0.05);
    if (this.cooldown > 0) this.cooldown -= 1;
    if (!speaking) {
      this.reset();
      return false;
    }
    const loud = db > Math.max(QUIET_DB, this.floorDb + ABOVE_FLOOR_DB);
    this.loud = loud ? this.loud + 1 : 0;
    this.quiet = loud ? 0 : this.quiet + 1;
    if (!this.ducked && this.loud >= ONSET_FRAMES && this.cooldown === 0) {
      this.ducked = true;
      this.age = 0;
    } else if (this.ducked) {
      this.age += 1;
      const unconfirmed = !confirmed && this.age >= UNCONFIRMED_FRAMES;
      if (unconfirmed) this.cooldown = COOLDOWN_FRAMES;
      if (unconfirmed || this.quiet >= HOLD_FRAMES) this.reset();
    }
    return this.ducked;
  }
}
