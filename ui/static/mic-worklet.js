// Audio thread of the microphone: 20 ms frames of PCM16 at the rate the server was told, with their level.

import { StreamResampler, toPcm16 } from "./resample.js";

const FRAME_S = 0.02;

class MicProcessor extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    const { targetRate } = processorOptions;
    this.resampler = sampleRate === targetRate ? null : new StreamResampler(sampleRate, targetRate);
    this.frame = new Float32Array(Math.round(targetRate * FRAME_S));
    this.filled = 0;
  }

  process(inputs) {
    const input = inputs[0][0];
    if (!input) return true; // no track is connected at this moment
    const samples = this.resampler ? this.resampler.process(input) : input;
    let taken = 0;
    while (taken < samples.length) {
      const n = Math.min(samples.length - taken, this.frame.length - this.filled);
      this.frame.set(samples.subarray(taken, taken + n), this.filled);
      this.filled += n;
      taken += n;
      if (this.filled === this.frame.length) this.#send();
    }
    return true;
  }

  #send() {
    let energy = 0;
    for (const value of this.frame) energy += value * value;
    const pcm = toPcm16(this.frame);
    this.filled = 0;
    const rms = Math.sqrt(energy / this.frame.length);
    this.port.postMessage({ pcm, rms, at: currentTime - FRAME_S }, [pcm.buffer]);
  }
}

registerProcessor("voicepod-mic", MicProcessor);
