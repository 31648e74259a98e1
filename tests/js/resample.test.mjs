import assert from "node:assert/strict";
import test from "node:test";

import { StreamResampler, fromPcm16, toPcm16 } from "../../ui/static/resample.js";

const tone = (hz, rate, seconds) => Float32Array.from({ length: rate * seconds }, (_, i) => Math.sin((2 * Math.PI * hz * i) / rate));
const rms = (samples) => Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / samples.length);
const db = (samples) => 20 * Math.log10(rms(samples) * Math.SQRT2);
const middle = (samples) => samples.subarray(200, samples.length - 200);

for (const from of [44100, 48000, 96000]) {
  test(`a tone above 8 kHz does not come back as another tone from ${from} Hz`, () => {
    for (const hz of [8100, 9000, 11000, 15000, 20000]) {
      const out = new StreamResampler(from, 16000).process(tone(hz, from, 1));
      assert.ok(db(middle(out)) < -60, `${hz} Hz: ${db(middle(out)).toFixed(1)} dB`);
    }
  });

  test(`speech frequencies keep their level from ${from} Hz`, () => {
    for (const hz of [100, 1000, 4000, 6400]) {
      const out = new StreamResampler(from, 16000).process(tone(hz, from, 1));
      assert.ok(Math.abs(db(middle(out))) < 0.2, `${hz} Hz: ${db(middle(out)).toFixed(2)} dB`);
    }
  });

  test(`the output of ${from} Hz stands where the input stood`, () => {
    const resampler = new StreamResampler(from, 16000);
    const out = resampler.process(tone(1000, from, 0.5));
    const expected = tone(1000, 16000, 0.5);
    for (let i = 300; i < out.length; i += 1) assert.ok(Math.abs(out[i] - expected[i]) < 0.02, `sample ${i}`);
    const all = out.length + resampler.flush().length;
    assert.ok(Math.abs(all - 8000) <= 1, `${all} samples`);
  });
}

test("raising the rate for playback leaves no image of the tone", () => {
  for (const to of [44100, 48000]) {
    const out = new StreamResampler(24000, to).process(tone(3000, 24000, 1));
    const image = 21000;
    let re = 0;
    let im = 0;
    middle(out).forEach((value, i) => {
      re += value * Math.cos((2 * Math.PI * image * i) / to);
      im += value * Math.sin((2 * Math.PI * image * i) / to);
    });
    assert.ok(20 * Math.log10((2 * Math.hypot(re, im)) / out.length) < -60);
    assert.ok(Math.abs(db(middle(out))) < 0.1);
  }
});

test("the size of the chunks does not change the output", () => {
  const input = tone(440, 44100, 0.3);
  const whole = new StreamResampler(44100, 16000).process(input);
  for (const size of [1, 7, 128, 1000]) {
    const resampler = new StreamResampler(44100, 16000);
    const parts = [];
    for (let at = 0; at < input.length; at += size) parts.push(...resampler.process(input.subarray(at, at + size)));
    assert.deepEqual(Float32Array.from(parts), whole);
  }
});

test("PCM16 saturates and comes back", () => {
  assert.deepEqual([...toPcm16(Float32Array.from([2, -2, 0, 0.5]))], [32767, -32767, 0, 16384]);
  assert.ok(Math.abs(fromPcm16(Int16Array.from([16384]))[0] - 0.5) < 1e-6);
});
