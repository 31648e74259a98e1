// What the page hears and plays with: the audio context, the player of answers and the microphone.

import { MIC_RATE, Microphone } from "./mic.js";
import { Player } from "./player.js";

const FIRST_RATE = 24000; // until the server says at which rate it speaks

export class Sound {
  /**
   * `live.muted` and `settings.deviceId` hold when a microphone opens, `settings.volume` when a player does. Callbacks:
   * onFrame({pcm, rms, at}) of the microphone, onMicrophone() when one was opened or the system mutes it, onLost() when it
   * is gone; onPosition and onReport of the player; onContext() when the browser holds or frees the sound.
   */
  constructor({ settings, live, recording, levels, onFrame, onMicrophone, onLost, onPosition, onReport, onContext }) {
    Object.assign(this, { settings, live, recording, levels, onFrame, onMicrophone, onLost, onPosition, onReport, onContext });
    this.context = null;
    this.player = null;
    this.mic = null;
  }

  /** Makes context, worklets and player, once. */
  async open() {
    if (!this.context) {
      if (navigator.audioSession) navigator.audioSession.type = "play-and-record";
      this.context = new AudioContext({ latencyHint: "interactive" });
      this.context.onstatechange = () => this.onContext();
      for (const name of this.context.audioWorklet ? ["player-worklet.js", "mic-worklet.js"] : []) {
        await this.context.audioWorklet.addModule(new URL(name, import.meta.url));
      }
      this.newPlayer(FIRST_RATE);
    }
    this.resume();
  }

  /** A player that knows nothing of earlier turns. */
  newPlayer(sourceRate) {
    this.player?.close();
    this.player = new Player(this.context, {
      sourceRate,
      onPosition: this.onPosition,
      onReport: this.onReport,
      onPlayed: ({ turn, first, at, pcm }) => {
        this.recording.add("assistant", { at, pcm, rate: this.player.sourceRate, turn, first });
      },
    });
    this.player.setVolume(this.settings.volume);
    if (this.levels.running) this.levels.start(this.player.analyser);
  }

  /** Opens the chosen microphone, in place of the one before. Raises MicError. */
  async openMic() {
    const { onFrame, onLost, onMicrophone } = this;
    this.mic ??= new Microphone(this.context, { onFrame, onLost, onSilenced: onMicrophone });
    await this.mic.start(this.settings.deviceId);
    this.mic.setMuted(this.live.muted);
    this.onMicrophone();
  }

  /** Notes in the recording what was sent to the server. */
  sent({ pcm, at }) {
    this.recording.add("user", { at, pcm, rate: MIC_RATE });
  }

  /** False while the browser holds the sound: then nothing is played, and nothing heard. */
  get runs() {
    return this.context?.state === "running";
  }

  resume() {
    if (this.context && !this.runs) this.context.resume().catch(() => {});
  }

  /** Microphone and meters off; what the player holds is its caller's. */
  stop() {
    this.mic?.stop();
    this.levels.stop();
  }

  close() {
    this.stop();
    this.context?.close();
  }
}
