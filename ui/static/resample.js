// Rate conversion with a windowed-sinc polyphase filter; shared by both worklets and by the exports. No DOM here.

// 24 zero crossings a side, Kaiser beta 7 and a cutoff at 0.9 of the lower Nyquist frequency put the stop band (about
// -70 dB) just below that Nyquist frequency: what would alias is gone, speech up to 6.5 kHz of a 16 kHz stream is kept.
const CROSSINGS = 24;
const KAISER_BETA = 7;
const CUTOFF = 0.9;
const MAX_PHASES = 1024;

function gcd(a, b) {
  while (b) [a, b] = [b, a % b];
  return a;
}

/** Modified Bessel function of the first kind, order 0, by its power series. */
function bessel0(x) {
  let sum = 1;
  let term = 1;
  for (let k = 1; term > 1e-12 * sum; k += 1) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

/**
 * Filter table for fromRate -> toRate (Hz). Output sample n lies at input position n * down / up; `row(phase)` begins at
 * the coefficient of input index floor(position) - half + 1.
 */
export class PolyphaseKernel {
  constructor(fromRate, toRate) {
    const divisor = gcd(Math.round(fromRate), Math.round(toRate));
    this.up = Math.round(toRate) / divisor;
    this.down = Math.round(fromRate) / divisor;
    const ratio = Math.min(1, toRate / fromRate);
    this.half = Math.ceil(CROSSINGS / ratio);
    this.taps = 2 * this.half;
    this.phases = Math.min(this.up, MAX_PHASES);
    this.table = new Float32Array(this.phases * this.taps);
    const cutoff = CUTOFF * ratio;
    const scale = 1 / bessel0(KAISER_BETA);
    for (let phase = 0; phase < this.phases; phase += 1) {
      const fraction = phase / this.phases;
      let sum = 0;
      const row = this.table.subarray(phase * this.taps, (phase + 1) * this.taps);
      for (let k = 0; k < this.taps; k += 1) {
        const x = k - this.half + 1 - fraction;
        const edge = x / this.half;
        const window = Math.abs(edge) >= 1 ? 0 : bessel0(KAISER_BETA * Math.sqrt(1 - edge * edge)) * scale;
        row[k] = cutoff * sinc(cutoff * x) * window;
        sum += row[k];
      }
      for (let k = 0; k < this.taps; k += 1) row[k] /= sum;
    }
  }

  /** First index into `table` of the coefficients for `phase` in [0, up). */
  row(phase) {
    const index = this.phases === this.up ? phase : Math.floor((phase * this.phases) / this.up);
    return index * this.taps;
  }
}

/** Converts a stream chunk by chunk; the delay is `kernel.half` input samples, which `flush()` pushes out at the end. */
export class StreamResampler {
  constructor(fromRate, toRate) {
    this.kernel = new PolyphaseKernel(fromRate, toRate);
    this.buffer = new Float32Array(this.kernel.taps * 2);
    // Zeros before the first sample, so that output 0 stands at input 0.
    this.length = this.kernel.half - 1;
    this.phase = 0;
  }

  /** Gives the output samples (Float32Array) that `input` (Float32Array) completes. */
  process(input) {
    const { kernel } = this;
    const needed = this.length + input.length;
    if (needed > this.buffer.length) {
      const grown = new Float32Array(needed * 2);
      grown.set(this.buffer.subarray(0, this.length));
      this.buffer = grown;
    }
    this.buffer.set(input, this.length);
    this.length = needed;
    const output = new Float32Array(Math.ceil((this.length * kernel.up) / kernel.down) + 1);
    let written = 0;
    let start = 0;
    while (start + kernel.taps <= this.length) {
      const row = kernel.row(this.phase);
      let sum = 0;
      for (let k = 0; k < kernel.taps; k += 1) sum += this.buffer[start + k] * kernel.table[row + k];
      output[written] = sum;
      written += 1;
      const next = this.phase + kernel.down;
      start += Math.floor(next / kernel.up);
      this.phase = next % kernel.up;
    }
    // A step is always shorter than the filter, so `start` never lies beyond what has arrived.
    this.buffer.copyWithin(0, start, this.length);
    this.length -= start;
    return output.subarray(0, written);
  }

  /** The tail that still stands in the filter. */
  flush() {
    return this.process(new Float32Array(this.kernel.half));
  }
}

/** Float samples, any range, to PCM16 with saturation. */
export function toPcm16(samples) {
  const pcm = new Int16Array(samples.length);
  for (let i = 0; i < samples.length; i += 1) {
    const value = Math.max(-1, Math.min(1, samples[i]));
    pcm[i] = Math.round(value * 32767);
  }
  return pcm;
}

/** PCM16 to float samples in [-1, 1). */
export function fromPcm16(pcm) {
  const samples = new Float32Array(pcm.length);
  for (let i = 0; i < pcm.length; i += 1) samples[i] = pcm[i] / 32768;
  return samples;
}
