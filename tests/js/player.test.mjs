import assert from "node:assert/strict";
import test from "node:test";

import { PlayerCore } from "../../ui/static/player-core.js";
import { PlayerEngine } from "../../ui/static/player-engine.js";

const BLOCK = 128;
const pcm = (ms, value = 8000) => new Int16Array(24 * ms).fill(value);

function player({ contextRate = 48000, ...options } = {}) {
  const heard = [];
  const onPlayed = (turn, first, samples) => heard.push({ turn, first, n: samples.length });
  const core = new PlayerCore({ contextRate, sourceRate: 24000, onPlayed, ...options });
  const run = (ms) => {
    const out = [];
    for (let done = 0; done < (ms * contextRate) / 1000; done += BLOCK) {
      const block = new Float32Array(BLOCK);
      core.render(block);
      out.push(...block);
    }
    return out;
  };
  return { core, heard, run };
}

const peak = (samples) => samples.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

test("nothing is heard before the prebuffer is full, then everything in order", () => {
  const { core, heard, run } = player();
  core.push(1, 0, pcm(40));
  assert.equal(peak(run(20)), 0);
  core.push(1, 24 * 40, pcm(60));
  assert.ok(peak(run(60)) > 0.2);
  run(100);
  assert.equal(core.played, 2400);
  assert.equal(core.mode, "drained");
  let next = 0;
  for (const run of heard) {
    assert.equal(run.first, next);
    next += run.n;
  }
  assert.equal(next, 2400);
});

test("a reply shorter than the prebuffer is still heard", () => {
  const { core, run } = player();
  core.push(1, 0, pcm(30));
  run(200);
  assert.equal(core.played, 24 * 30);
});

test("after a flush no sample of that turn is played, and the heard position stays", () => {
  const { core, heard, run } = player();
  core.push(1, 0, pcm(1000));
  run(200);
  const answer = core.flush(1);
  const runs = heard.length;
  const after = run(300);
  assert.equal(heard.length, runs);
  assert.deepEqual(answer, { turn: 1, played: core.played });
  assert.ok(core.played >= 24 * 190 && core.played <= 24 * 210, `${core.played}`);
  assert.equal(peak(after.slice(BLOCK)), 0);
});

test("frames of a flushed turn that are still on the way are refused", () => {
  const { core, run } = player();
  core.push(1, 0, pcm(100));
  core.flush(2);
  assert.equal(core.push(1, 2400, pcm(100)), false);
  assert.equal(core.push(2, 0, pcm(100)), false);
  assert.equal(peak(run(200)), 0);
  assert.equal(core.push(3, 0, pcm(100)), true);
  assert.ok(peak(run(100)) > 0.2);
});

test("a flush of an older turn leaves the newer one alone", () => {
  const { core, heard, run } = player();
  core.push(1, 0, pcm(100));
  core.push(2, 0, pcm(100));
  core.flush(1);
  run(250);
  assert.deepEqual([...new Set(heard.map(({ turn }) => turn))], [2]);
  assert.equal(core.played, 2400);
});

test("the cut is a short fade and no jump", () => {
  const { core, run } = player();
  core.push(1, 0, pcm(1000, 20000));
  const before = run(200);
  core.flush(1);
  const all = [...before, ...run(20)].slice(-4000);
  const jump = all.slice(1).reduce((most, value, i) => Math.max(most, Math.abs(value - all[i])), 0);
  assert.ok(jump < 0.05, `${jump}`);
});

test("an underrun is counted and makes the next wait longer, up to 400 ms", () => {
  const { core, run } = player();
  let first = 0;
  for (let n = 0; n < 12; n += 1) {
    core.push(1, first, pcm(100));
    first += 2400;
    run(700);
  }
  assert.equal(core.underruns, 11);
  assert.equal(core.prebufferMs, 400);
  assert.equal(core.played, first);
});

test("the next turn after silence is no underrun", () => {
  const { core, run } = player();
  core.push(1, 0, pcm(100));
  run(300);
  core.push(2, 0, pcm(100));
  run(300);
  assert.equal(core.underruns, 0);
  assert.equal(core.turn, 2);
});

test("audio that comes twice after a resume is played once", () => {
  const { core, heard, run } = player();
  core.push(1, 0, pcm(200));
  run(100);
  assert.equal(core.push(1, 0, pcm(100)), false);
  core.push(1, 24 * 100, pcm(200));
  run(500);
  assert.equal(core.played, 24 * 300);
  assert.equal(heard.reduce((sum, { n }) => sum + n, 0), 24 * 300);
});

test("a full ring refuses instead of overwriting what waits", () => {
  const { core } = player();
  let first = 0;
  let taken = 0;
  for (let n = 0; n < 40; n += 1, first += 24000) taken += core.push(1, first, pcm(1000)) ? 1 : 0;
  assert.equal(taken, 29);
});

test("the tone keeps its pitch at 44.1 kHz", () => {
  const { core, run } = player({ contextRate: 44100 });
  const tone = Int16Array.from({ length: 24000 }, (_, i) => 12000 * Math.sin((2 * Math.PI * 1000 * i) / 24000));
  core.push(1, 0, tone);
  const out = run(800).slice(2000, 2000 + 22050);
  let crossings = 0;
  for (let i = 1; i < out.length; i += 1) if (out[i - 1] < 0 && out[i] >= 0) crossings += 1;
  assert.ok(Math.abs(crossings - 500) <= 1, `${crossings}`);
});

test("the engine reports a flush at once, after what was played before it", () => {
  const posted = [];
  const engine = new PlayerEngine({ contextRate: 48000, sourceRate: 24000, post: (message) => posted.push(message) });
  engine.receive({ type: "audio", turn: 4, first: 0, pcm: pcm(1000) });
  let now = 0;
  for (; now < 0.2; now += BLOCK / 48000) engine.render(new Float32Array(BLOCK), now);
  engine.receive({ type: "flush", turn: 4 });
  const [played, flushed] = posted.slice(-2);
  assert.equal(played.type, "played");
  assert.equal(flushed.type, "flushed");
  assert.equal(flushed.played, played.first + played.pcm.length);
  const n = posted.length;
  for (; now < 0.5; now += BLOCK / 48000) engine.render(new Float32Array(BLOCK), now);
  assert.ok(posted.slice(n).every(({ type }) => type !== "played"));
});
