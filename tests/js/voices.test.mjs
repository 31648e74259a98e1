import assert from "node:assert/strict";
import test from "node:test";

import { ApiProblem, VoicesApi } from "../../ui/static/clone-api.js";
import * as words from "../../ui/static/clone-words.js";
import { joined } from "../../ui/static/recorder.js";
import { Tabs } from "../../ui/static/tabs.js";
import { Trim, peaks } from "../../ui/static/trim.js";

const LIMITS = { minS: 3, maxS: 30 };
const ABOUT = {
  method: "match",
  min_s: 3,
  max_s: 30,
  max_voices: 20,
  n_voices: 0,
  max_upload_mb: 50,
  phrase_required: false,
  notice: null,
  watermark: true,
};

test("all of a recording is chosen, or as much of its beginning as may be used", () => {
  const whole = new Trim(12, LIMITS);
  assert.deepEqual([whole.start, whole.end, whole.seconds], [0, 12, 12]);
  const long = new Trim(100, LIMITS);
  assert.deepEqual([long.start, long.end], [0, 30]);
  const short = new Trim(2, LIMITS);
  assert.deepEqual([short.start, short.end], [0, 2]);
});

test("an end that would make the selection too short or too long takes the other end along", () => {
  const trim = new Trim(100, LIMITS);
  trim.move("end", 50);
  assert.deepEqual([trim.start, trim.end], [20, 50]);
  trim.move("start", 49);
  assert.deepEqual([trim.start, trim.end], [49, 52]);
  trim.move("start", 500);
  assert.deepEqual([trim.start, trim.end], [97, 100]);
  trim.move("end", -5);
  assert.deepEqual([trim.start, trim.end], [0, 3]);
});

test("whatever the moves, the selection stays inside the recording and within its limits", () => {
  for (const duration of [1.5, 3, 17.25, 30, 400]) {
    const trim = new Trim(duration, LIMITS);
    let seed = 7;
    for (let i = 0; i < 500; i += 1) {
      seed = (seed * 16807) % 2147483647;
      trim.move(seed % 2 ? "start" : "end", (seed % 1000) / 2 - 20);
      assert.ok(trim.start >= 0 && trim.end <= duration + 1e-9, `${trim.start} ${trim.end} of ${duration}`);
      assert.ok(trim.seconds >= Math.min(3, duration) - 1e-9 && trim.seconds <= 30 + 1e-9, `${trim.seconds}`);
    }
  }
});

test("the keys move an end by small and large steps and to its limits", () => {
  const trim = new Trim(20, LIMITS);
  assert.equal(trim.press("start", "ArrowRight"), true);
  assert.equal(trim.start.toFixed(2), "0.10");
  trim.press("start", "PageUp");
  assert.equal(trim.start.toFixed(2), "1.10");
  trim.press("start", "Home");
  assert.equal(trim.start, 0);
  trim.press("end", "Home");
  assert.equal(trim.end, 3);
  trim.press("end", "End");
  assert.equal(trim.end, 20);
  assert.equal(trim.press("end", "a"), false);
  assert.deepEqual(trim.limits("start"), [0, 17]);
  assert.deepEqual(trim.limits("end"), [3, 20]);
});

test("the drawing has the loudest sample of each part, and no part is without samples", () => {
  assert.deepEqual([...peaks(Float32Array.of(0, -0.5, 0.25, 0), 2)], [0.5, 0.25]);
  assert.deepEqual([...peaks(Float32Array.of(0.5, 0.25), 4)], [0.5, 0.5, 0.25, 0.25]);
});

test("a recording that was stopped in the middle of a frame ends there", () => {
  assert.deepEqual([...joined([Int16Array.of(1, 2), Int16Array.of(3, 4)], 3)], [1, 2, 3]);
});

function answering(status, body, headers = {}) {
  const requests = [];
  const fetch = async (url, init) => {
    requests.push({ url: url.pathname, ...init });
    return new Response(body === null ? null : JSON.stringify(body), { status, headers });
  };
  return { requests, api: new VoicesApi(new URL("http://localhost/pod/"), { fetch }) };
}

test("a recording is sent with what was selected of it, and without the name of its file", async () => {
  const { requests, api } = answering(201, { id: "smp_1" });
  await api.check(new Blob(["x"]), { trim: { start: 1.23456, end: null }, phraseId: "phr_1" });
  await api.check(new Blob(["x"]), { trim: null });
  const [selected, whole] = requests.map(({ body }) => [...body.keys()]);
  assert.deepEqual(selected, ["start_s", "phrase_id", "file"]);
  assert.deepEqual(whole, ["file"]);
  assert.equal(requests[0].body.get("start_s"), "1.235");
  assert.equal(requests[0].body.get("file").name, "recording");
  assert.deepEqual([requests[0].url, requests[0].method], ["/pod/api/clone/samples", "POST"]);
});

test("a refusal carries its code, its words and the time to wait", async () => {
  const error = { code: "rate_limited", message: "too much", retry_after_s: 12.5 };
  await assert.rejects(answering(429, { error }).api.voices(), { status: 429, code: "rate_limited", retryAfterS: 12.5 });
  await assert.rejects(answering(429, null, { "Retry-After": "7" }).api.about(), { status: 429, retryAfterS: 7 });
});

test("a phrase is asked for in the language of the recording", async () => {
  const { requests, api } = answering(201, { id: "phr_1" });
  await api.phrase("fr");
  await api.phrase("");
  assert.deepEqual(requests.map(({ body }) => body), ['{"language":"fr"}', "{}"]);
});

test("no answer is a problem of its own, and a request that was given up is not one", async () => {
  const failing = (error) => new VoicesApi(new URL("http://localhost"), { fetch: () => Promise.reject(error) });
  await assert.rejects(failing(new TypeError("Failed to fetch")).about(), { status: 0 });
  await assert.rejects(failing(new DOMException("", "AbortError")).about(), { name: "AbortError" });
});

const said = (facts, what) => words.describeProblem(new ApiProblem(facts), what);

test("every way to fail is told in words, and what was entered is said to be there", () => {
  assert.match(said({ status: 0 }, "Your recording").words, /cannot be reached.*Your recording is still here/);
  const login = said({ status: 401 }, "Your recording");
  assert.match(login.words, /login has ended.*still here/);
  assert.ok(login.login && login.retry);
  assert.match(said({ status: 403, message: "it lacks the scope speech" }).words, /scope “speech”/);
  assert.deepEqual(said({ status: 429, retryAfterS: 11.2 }).waitS, 12);
  assert.match(said({ status: 503, message: "the voice is busy", retryAfterS: 3 }).words, /^The voice is busy\./);
  assert.match(said({ status: 404, code: "sample_not_found" }, "Your recording").words, /Your recording is still here/);
  assert.equal(said({ status: 400, message: "nobody speaks in it" }).words, "Nobody speaks in it.");
  assert.ok(!said({ status: 400, message: "no" }).retry);
  assert.ok(said({ status: 500 }).retry);
  assert.match(words.describeProblem(new TypeError("x is undefined")).words, /in this page/);
});

test("files that are not worth sending are refused before they are sent", () => {
  assert.match(words.refuseFile({ size: 0, type: "audio/wav" }, ABOUT), /empty/);
  assert.match(words.refuseFile({ size: 80 * 1024 * 1024, type: "audio/wav" }, ABOUT), /has 80 MB; up to 50 MB/);
  assert.match(words.refuseFile({ size: 10, type: "image/png" }, ABOUT), /not a sound file/);
  assert.equal(words.refuseFile({ size: 50 * 1024 * 1024, type: "" }, ABOUT), null);
  assert.equal(words.refuseFile({ size: 10, type: "video/mp4" }, ABOUT), null);
});

test("a match is called a match, and a clone says what may be done with it", () => {
  assert.match(words.promise({ method: "match" }).text, /cannot clone.*a match, not a clone/);
  assert.match(words.promise({ method: "clone" }).text, /sounds like the recording/);
  assert.equal(words.fate({ watermark: true, notice: "for research only" }).at(-1), "For research only.");
  const match = { voice: "am_adam", name: "Adam", similarity: 0.71 };
  const voice = { kind: "match", language: "en", match, watermarked: false, usable: true };
  assert.equal(words.aboutVoice(voice), "Match: the stock voice Adam, alike (0.71) · English");
  const clone = { kind: "clone", language: "de", match: null, watermarked: true, usable: false, reason: "made by F5" };
  assert.match(words.aboutVoice(clone), /^Clone of a recording · German · marked as synthetic · cannot be used now: made by F5$/);
});

test("where no voice can be made, a sentence says why", () => {
  assert.equal(words.whyNot(ABOUT), null);
  assert.match(words.whyNot({ ...ABOUT, method: "none" }), /cannot make new ones/);
  assert.match(words.whyNot({ ...ABOUT, n_voices: 20 }), /20 of 20 voices/);
  assert.match(words.whyNot({ ...ABOUT, max_voices: 0 }), /no voices of its users/);
});

test("what is missing before a voice can be made is listed", () => {
  const entered = { sample: null, transcript: "", agreed: false, signer: " ", phraseMatches: false, name: "" };
  assert.equal(words.missing(entered, ABOUT).length, 4);
  const sample = { verdict: { usable: true } };
  const all = { sample, transcript: "", agreed: true, signer: "Anna", phraseMatches: false, name: "Me" };
  assert.deepEqual(words.missing(all, ABOUT), []);
  assert.deepEqual(words.missing(all, { ...ABOUT, method: "clone" }), ["what is said in the recording"]);
  assert.deepEqual(words.missing(all, { ...ABOUT, phrase_required: true }), ["the phrase, read aloud"]);
  assert.equal(words.listed(["a", "b", "c"]), "a, b and c");
});

test("a voice greets in its own language", () => {
  assert.match(words.greeting("fr"), /^Bonjour/);
  assert.match(words.greeting("en-GB"), /^Hello/);
  assert.match(words.greeting("xx"), /^Hello/);
});

test("the level tells who speaks too loud or too low", () => {
  assert.match(words.levelWords(1, 1), /Too loud/);
  assert.match(words.levelWords(0.01, 3), /come closer/);
  assert.equal(words.levelWords(0.01, 1), "Recording");
});

function fakeTab() {
  const listeners = {};
  const attributes = {};
  return {
    attributes,
    focused: 0,
    addEventListener: (type, listener) => (listeners[type] = listener),
    setAttribute: (name, value) => (attributes[name] = value),
    focus() {
      this.focused += 1;
    },
    fire: (type, event = {}) => listeners[type]({ preventDefault() {}, ...event }),
  };
}

test("the arrow keys go round the tabs, and only the shown one is reached by Tab", () => {
  const [talk, voices] = [fakeTab(), fakeTab()];
  const panels = [{ hidden: false }, { hidden: true }];
  const shown = [];
  const tabs = new Tabs({ talk: [talk, panels[0]], voices: [voices, panels[1]] }, (name) => shown.push(name));
  talk.fire("keydown", { key: "ArrowRight" });
  assert.deepEqual([tabs.shown, voices.focused, voices.tabIndex, talk.tabIndex], ["voices", 1, 0, -1]);
  assert.deepEqual(panels.map(({ hidden }) => hidden), [true, false]);
  assert.equal(voices.attributes["aria-selected"], "true");
  voices.fire("keydown", { key: "ArrowRight" });
  talk.fire("click");
  talk.fire("keydown", { key: "End" });
  assert.deepEqual(shown, ["voices", "talk", "voices"]);
});
