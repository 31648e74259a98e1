// Records a voice as it is: no echo canceller and no noise suppressor between, which would become part of the voice.

import { wavFile } from "./exports.js";
import { Microphone } from "./mic.js";

export class Recorder {
  /**
   * onLevel({rms, peak, seconds}) for each 20 ms; onDone(blob) with a WAV file when it was stopped, was long enough or
   * the device went away.
   */
  constructor(sounds, { onLevel, onDone }) {
    Object.assign(this, { sounds, onLevel, onDone });
    this.mic = null;
    this.wanted = null; // the recording that was asked for last
  }

  get recording() {
    return this.mic !== null;
  }

  /** Records up to `maxS` seconds. Raises MicError. */
  async start({ deviceId, maxS }) {
    const { context } = this.sounds;
    const wanted = (this.wanted = {});
    this.ready ??= context.audioWorklet?.addModule(new URL("mic-worklet.js", import.meta.url));
    await this.ready;
    const rate = context.sampleRate;
    const frames = [];
    let n = 0;
    const mic = new Microphone(context, {
      rate,
      processing: false,
      onFrame: ({ pcm, rms }) => {
        if (this.mic !== mic) return;
        frames.push(pcm);
        n += pcm.length;
        this.onLevel({ rms, peak: peakOf(pcm), seconds: n / rate });
        if (n >= maxS * rate) this.stop();
      },
      onLost: () => this.stop(),
    });
    await mic.start(deviceId);
    if (this.wanted !== wanted) {
      mic.stop(); // given up while the browser asked for permission
      return;
    }
    this.mic = mic;
    this.file = () => new Blob([wavFile(joined(frames, Math.min(n, Math.floor(maxS * rate))), 1, rate)], { type: "audio/wav" });
  }

  stop() {
    this.wanted = null;
    if (!this.mic) return;
    this.mic.stop();
    this.mic = null;
    this.onDone(this.file());
  }

  /** Stops and forgets what was said. */
  drop() {
    this.wanted = null;
    this.mic?.stop();
    this.mic = null;
  }
}

function peakOf(pcm) {
  let peak = 0;
  for (const value of pcm) peak = Math.max(peak, Math.abs(value));
  return peak / 32768;
}

/** The frames in one piece, or their first `n` samples. */
export function joined(frames, n = frames.reduce((sum, frame) => sum + frame.length, 0)) {
  const whole = new Int16Array(n);
  let at = 0;
  for (const frame of frames) {
    const part = frame.subarray(0, n - at);
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
