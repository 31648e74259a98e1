import assert from "node:assert/strict";
import test from "node:test";

import { Captions } from "../../ui/static/captions.js";
import { Ducker } from "../../ui/static/duck.js";
import { Recording, srtTime, toJson, toSrt, toText } from "../../ui/static/exports.js";
import { languageChoices, languageHint, voiceFor, withLanguage } from "../../ui/static/languages.js";
import { preferences } from "../../ui/static/preferences.js";
import { ServerEvents } from "../../ui/static/server-events.js";
import { Startup, engineLine } from "../../ui/static/startup.js";
import { NOTICES, describeConnection, describeState, fillNotice, invitation, latencyParts } from "../../ui/static/status.js";
import { DEFAULTS, cleanSettings } from "../../ui/static/store.js";
import { Transcript } from "../../ui/static/transcript.js";

const caption = (turn, first_sample, text, item_id = `a${turn}`) => ({ turn, first_sample, text, item_id });

test("a caption appears when the voice reaches it and never before", () => {
  const captions = new Captions();
  captions.add(caption(1, 0, "One."));
  captions.add(caption(1, 24000, "Two."));
  assert.deepEqual(captions.advance(1, 0), []);
  assert.deepEqual(captions.advance(1, 480).map(({ text }) => text), ["One."]);
  assert.deepEqual(captions.advance(1, 24000), []);
  assert.deepEqual(captions.advance(1, 24001).map(({ text }) => text), ["Two."]);
});

test("a caption that comes again with its sound appears once", () => {
  const captions = new Captions();
  captions.add(caption(1, 0, "One."));
  assert.equal(captions.advance(1, 10).length, 1);
  captions.add(caption(1, 24000, "Two."));
  captions.add(caption(1, 0, "One."));
  captions.add(caption(1, 24000, "Two."));
  captions.add(caption(1, 48000, "Three."));
  assert.deepEqual(captions.advance(1, 99000).map(({ text }) => text), ["Two.", "Three."]);
});

test("captions of a flushed turn never appear, late ones neither", () => {
  const captions = new Captions();
  captions.add(caption(1, 0, "One."));
  captions.flush(1);
  captions.add(caption(1, 100, "late"));
  captions.add(caption(2, 0, "Next."));
  assert.deepEqual(captions.advance(2, 10).map(({ text }) => text), ["Next."]);
});

function transcript() {
  let clock = 0;
  const t = new Transcript({ onChange: () => {}, onRemove: () => {}, clock: () => (clock += 1) });
  return { t, texts: () => t.messages.filter(({ text }) => text).map(({ role, text }) => `${role}: ${text}`) };
}

const item = (id, role, text, status = "completed") => ({
  id,
  type: "message",
  role,
  status,
  content: [role === "user" ? { type: "input_audio", transcript: text } : { type: "output_audio", transcript: text }],
});

test("a live reply is shown by its captions, not by its generation", () => {
  const { t, texts } = transcript();
  t.itemAdded(item("u1", "user", null));
  t.userFinal("u1", " How big is the sun? ");
  t.itemAdded(item("a1", "assistant", "", "in_progress"));
  t.itemDone(item("a1", "assistant", "Very big. Huge."));
  assert.deepEqual(texts(), ["user: How big is the sun?"]);
  t.caption(caption(1, 0, "Very big."));
  assert.deepEqual(texts().at(-1), "assistant: Very big.");
  t.turnOver({ turn: 1, outcome: "completed", total_ms: 900 });
  assert.deepEqual(texts().at(-1), "assistant: Very big. Huge.");
});

test("an interrupted reply keeps only what was heard", () => {
  const { t, texts } = transcript();
  t.itemAdded(item("a1", "assistant", "", "in_progress"));
  t.caption(caption(1, 0, "Very big."));
  t.itemDone(item("a1", "assistant", "Very big. Huge."));
  t.truncated("a1", undefined);
  t.turnOver({ turn: 1, outcome: "interrupted", total_ms: 900 });
  assert.deepEqual(texts(), ["assistant: Very big."]);
  assert.equal(t.get("a1").note, "interrupted");
  t.truncated("a1", "Very");
  assert.deepEqual(texts(), ["assistant: Very"]);
});

test("a restored conversation shows no reply without words, and says which words were not understood", () => {
  const { t } = transcript();
  t.itemAdded(item("u1", "user", "", "incomplete"));
  t.itemAdded(item("a1", "assistant", "", "incomplete"), "u1");
  t.itemDone(item("a1", "assistant", "", "incomplete"));
  t.itemAdded(item("u2", "user", "", "in_progress"), "a1");
  assert.deepEqual(
    t.messages.map(({ id, state, note }) => [id, state, note]),
    [
      ["u1", "failed", "I could not make out these words."],
      ["u2", "open", ""],
    ],
  );
});

test("a restored conversation is filled in once", () => {
  const { t, texts } = transcript();
  for (let n = 0; n < 2; n += 1) {
    t.itemAdded(item("u1", "user", "Hello"));
    t.itemAdded(item("a1", "assistant", "Hi there."));
    t.itemDone(item("a1", "assistant", "Hi there."));
  }
  assert.deepEqual(texts(), ["user: Hello", "assistant: Hi there."]);
});

test("a resumed reply that is still being heard is not filled in ahead of the voice", () => {
  const { t, texts } = transcript();
  t.itemAdded(item("a1", "assistant", "", "in_progress"));
  t.caption(caption(1, 0, "One."));
  t.itemAdded(item("a1", "assistant", "One. Two."));
  assert.deepEqual(texts(), ["assistant: One."]);
});

test("captions of a reply that was filled in do not write it twice", () => {
  const { t, texts } = transcript();
  t.itemAdded(item("a1", "assistant", "One. Two."));
  t.caption(caption(1, 0, "Two."));
  assert.deepEqual(texts(), ["assistant: One. Two."]);
});

test("partial words grow until the final ones replace them", () => {
  const { t, texts } = transcript();
  t.userPartial("u1", "How");
  t.userPartial("u1", " bug");
  assert.deepEqual(texts(), ["user: How bug"]);
  t.userFinal("u1", "How big");
  assert.deepEqual(texts(), ["user: How big"]);
});

const MESSAGES = [
  { role: "user", text: "Hello", startS: 1, endS: 1.5, note: "", metrics: null },
  { role: "assistant", text: "Hi", startS: 2.25, endS: 4, note: "interrupted", metrics: { total_ms: 900, parts_ms: { asr: 100 } } },
  { role: "assistant", text: "", startS: 5, endS: 5, note: "", metrics: null },
];

test("the transcript as text, JSON and subtitles", () => {
  assert.equal(toText(MESSAGES), "You: Hello\n\nVoicepod: Hi [interrupted]\n");
  assert.equal(srtTime(3661.5), "01:01:01,500");
  assert.equal(
    toSrt(MESSAGES),
    "1\n00:00:01,000 --> 00:00:02,000\nYou: Hello\n\n2\n00:00:02,250 --> 00:00:04,000\nVoicepod: Hi\n",
  );
  const { title, messages } = JSON.parse(toJson(MESSAGES, { title: "T" }));
  assert.equal(title, "T");
  assert.equal(messages.length, 2);
  assert.deepEqual(messages[1].latency_ms, { total: 900, asr: 100 });
});

test("the recording has the user left and the reply right, each at its time", () => {
  const recording = new Recording();
  assert.equal(recording.empty, true);
  for (let n = 0; n < 10; n += 1) {
    recording.add("user", { at: 5 + n * 0.02, pcm: new Int16Array(320).fill(4000), rate: 16000 });
  }
  recording.add("assistant", { at: 6, pcm: new Int16Array(24000).fill(-9000), rate: 24000, turn: 1, first: 0 });
  const wav = recording.toWav();
  const view = new DataView(wav);
  assert.equal(String.fromCharCode(...new Uint8Array(wav, 0, 4)), "RIFF");
  assert.equal(view.getUint16(22, true), 2);
  assert.equal(view.getUint32(24, true), 24000);
  const samples = new Int16Array(wav, 44);
  const [left, right] = [0, 1].map((channel) => samples.filter((_, i) => i % 2 === channel));
  assert.equal(left.length, 48000);
  assert.ok(Math.abs(left[2400] - 4000) < 20);
  assert.equal(left[10000], 0);
  assert.equal(right[23999], 0);
  assert.equal(right[24000], -9000);
});

test("pieces that overlap on the clock are all kept", () => {
  const recording = new Recording();
  recording.add("assistant", { at: 1, pcm: new Int16Array(24000).fill(1), rate: 24000 });
  recording.add("assistant", { at: 1.5, pcm: new Int16Array(2400).fill(2), rate: 24000 });
  const right = new Int16Array(recording.toWav(), 44).filter((_, i) => i % 2 === 1);
  assert.equal(right.length, 26400);
  assert.equal(right[24000], 2);
});

function levels(ducker, rms, n, state) {
  let ducked = false;
  for (let i = 0; i < n; i += 1) ducked = ducker.feed(rms, state);
  return ducked;
}

test("the reply is lowered within 100 ms of speech and restored when nothing follows", () => {
  const ducker = new Ducker();
  levels(ducker, 0.001, 100, { speaking: true });
  assert.equal(levels(ducker, 0.05, 5, { speaking: true }), true);
  assert.equal(levels(ducker, 0.001, 25, { speaking: true }), false);
});

test("a single click does not lower the reply, nor does speech while nobody answers", () => {
  const ducker = new Ducker();
  levels(ducker, 0.001, 100, { speaking: true });
  assert.equal(levels(ducker, 0.2, 1, { speaking: true }), false);
  assert.equal(levels(ducker, 0.001, 10, { speaking: true }), false);
  assert.equal(levels(ducker, 0.1, 50, { speaking: false }), false);
});

test("a noise that the server does not take for speech is given up", () => {
  const ducker = new Ducker();
  levels(ducker, 0.001, 100, { speaking: true });
  assert.equal(levels(ducker, 0.05, 10, { speaking: true }), true);
  assert.equal(levels(ducker, 0.05, 60, { speaking: true }), false);
  const confirmed = new Ducker();
  levels(confirmed, 0.001, 100, { speaking: true });
  assert.equal(levels(confirmed, 0.05, 70, { speaking: true, confirmed: true }), true);
});

const VOICES = [
  { id: "af_heart", name: "Heart", language: "en" },
  { id: "bf_emma", name: "Emma", language: "en-GB" },
  { id: "ff_siwis", name: "Siwis", language: "fr" },
];

test("a language takes a voice that speaks it, and says so when none does", () => {
  assert.equal(voiceFor("fr", VOICES, "af_heart").id, "ff_siwis");
  assert.equal(voiceFor("en", VOICES, "bf_emma").id, "bf_emma");
  assert.equal(voiceFor("de", VOICES, "bf_emma").id, "bf_emma");
  assert.equal(voiceFor("auto", VOICES, "ff_siwis").id, "ff_siwis");
  const labels = languageChoices(["auto", "fr", "de"], VOICES).map(({ label }) => label);
  assert.deepEqual(labels, ["Automatic", "French", "German (understood, answered in English)"]);
  assert.match(languageHint("auto", VOICES), /English, French/);
  assert.equal(withLanguage("Be kind.", "fr", VOICES), "Be kind. Always answer in French.");
  assert.equal(withLanguage("Be kind.", "de", VOICES), "Be kind. Always answer in English.");
  assert.equal(withLanguage("Be kind.", "auto", VOICES), "Be kind.");
});

test("stored settings of the wrong form fall back", () => {
  assert.deepEqual(cleanSettings(null), { ...DEFAULTS });
  const settings = cleanSettings({ speed: 9, patienceMs: 500, mode: "shout", voice: "af_heart", evil: 1, headphones: "yes" });
  assert.deepEqual(settings, { ...DEFAULTS, patienceMs: 500, voice: "af_heart" });
});

test("the state in words", () => {
  const on = { server: "ready", started: true, connection: "open", sound: true, mic: true, mode: "hands-free", user: "silent", agent: "idle" };
  const key = (changes) => describeState({ ...on, ...changes })[0];
  assert.equal(key({ started: false }), "idle");
  assert.equal(key({ started: false, server: "loading" }), "thinking");
  assert.equal(key({}), "listening");
  assert.equal(key({ agent: "thinking" }), "thinking");
  assert.equal(key({ agent: "speaking" }), "speaking");
  assert.equal(key({ agent: "speaking", user: "speaking" }), "hearing");
  assert.equal(key({ muted: true }), "muted");
  assert.equal(key({ silenced: true }), "muted");
  assert.equal(key({ silenced: true, agent: "speaking" }), "speaking");
  assert.equal(key({ mic: false }), "typing");
  assert.equal(key({ connection: "waiting" }), "reconnecting");
  assert.equal(key({ connection: "busy" }), "busy");
  assert.equal(key({ connection: "loading" }), "busy");
  assert.equal(key({ connection: "waiting", sound: false }), "reconnecting");
  assert.equal(key({ sound: false }), "paused");
});

test("a connection that is tried again and again is called lost all the while", () => {
  assert.equal(describeConnection({ connection: "connecting", notice: null }), "connecting");
  assert.equal(describeConnection({ connection: "connecting", notice: "unreachable" }), "waiting");
  assert.equal(describeConnection({ connection: "connecting", notice: "server_loading" }), "loading");
  assert.equal(describeConnection({ connection: "open", notice: "lost" }), "open");
  assert.equal(describeConnection({ starting: true, connection: "idle", notice: "asking" }), "asking");
});

test("an empty page says how to begin from where one is", () => {
  assert.match(invitation({ started: false, startWords: "Continue" }), /^Press Continue and speak, or/);
  assert.match(invitation({ started: true, mic: false, startWords: "Start" }), /^Type a message, or/);
  assert.match(invitation({ started: true, mic: true, mode: "hold" }), /^Hold the button and speak, or/);
  assert.match(invitation({ started: true, mic: true, mode: "hands-free" }), /^Just speak, or/);
});

test("every notice says what to do, the one about HTTPS names the options", () => {
  for (const kind of Object.keys(NOTICES)) assert.ok(fillNotice(kind).text.length > 20, kind);
  assert.match(fillNotice("insecure").text, /--tls-cert.*--tls-key/);
  assert.match(fillNotice("refused", { message: "Too long." }).text, /^Too long\. /);
});

test("latency parts come in their order and leave out what took no time", () => {
  const parts = latencyParts({ parts_ms: { playout: 70.4, asr: 120, endpointing: 600, prompt: 0, other_part: 5 } });
  assert.deepEqual(parts.map(({ label, ms }) => `${label} ${ms}`), ["end of speech 600", "recognition 120", "playback 70", "other part 5"]);
});

test("a proxy that answers for a server that is away is not taken for a server that is ready", async (t) => {
  const part = { style: { setProperty() {} }, setAttribute() {}, replaceChildren() {}, querySelector: () => part };
  const shown = async (body, status) => {
    t.mock.method(globalThis, "fetch", async () => new Response(body, { status }));
    const states = [];
    const startup = new Startup({ url: "http://pod.test/api/startup", $: () => part });
    startup.onState = (state) => {
      states.push(state);
      startup.stop();
    };
    void startup.run();
    while (!states.length) await new Promise((resolve) => setImmediate(resolve));
    return states[0];
  };
  assert.equal(await shown("<html>Bad gateway</html>", 502), "unreachable");
  assert.equal(await shown('{"error": "the pod does not answer"}', 524), "unreachable");
  assert.equal(await shown('{"error": {"code": "forbidden"}}', 403), "ready");
  assert.equal(await shown('{"state": "loading"}', 200), "loading");
});

test("the loading screen names each model", () => {
  assert.deepEqual(engineLine({ kind: "asr", name: "faster_whisper", state: "ready", seconds: 3.14 }), {
    label: "Speech recognition (faster_whisper)",
    words: "ready in 3.1 s",
    state: "ready",
  });
});

/** A talk's parts behind ServerEvents: what the transcript was asked for, and what was said in words. */
function told() {
  const calls = [];
  const transcript = new Proxy({}, { get: (_, name) => (...given) => calls.push([name, ...given]) });
  const captions = new Captions();
  const live = { user: "silent", agent: "idle" };
  const flushed = [];
  const player = { flush: (turn) => flushed.push(turn), setSourceRate: () => {} };
  const lines = [];
  const events = new ServerEvents({
    transcript,
    captions,
    live,
    sound: { player },
    onSession: (session) => lines.push(`session ${session.id}`),
    onDropped: () => lines.push("dropped"),
    say: (words) => lines.push(words),
  });
  return { events, calls, live, flushed, lines };
}

test("a flush silences the player, and the captions of what nobody hears any more", () => {
  const { events, calls, flushed } = told();
  events.take({ type: "voicepod.caption", ...caption(1, 0, "One.") });
  events.take({ type: "voicepod.flush", turn: 1 });
  events.heard(1, 48000);
  assert.deepEqual(flushed, [1]);
  assert.deepEqual(calls, []);
});

test("a turn that was heard whole shows all its captions, an interrupted one no more of them", () => {
  const { events, calls } = told();
  for (const [turn, outcome] of [[1, "completed"], [2, "interrupted"]]) {
    events.take({ type: "voicepod.caption", ...caption(turn, 24000, "Words.") });
    events.take({ type: "voicepod.turn_metrics", turn, outcome });
  }
  assert.deepEqual(calls.map(([name, what]) => [name, what.turn]), [["caption", 1], ["turnOver", 1], ["turnOver", 2]]);
});

test("errors and failed answers are told in words, those that the page's own doing brings are not", () => {
  const { events, lines } = told();
  events.take({ type: "error", error: { code: "response_cancel_not_active", message: "no" } });
  events.take({ type: "error", error: { code: "engine_failed", message: "The voice failed." } });
  events.take({ type: "response.done", response: { status: "failed" } });
  events.take({ type: "response.done", response: { status: "completed" } });
  assert.deepEqual(lines, ["The voice failed.", "Something went wrong with this answer. Please ask again."]);
});

test("states change what they name alone, unknown events nothing", () => {
  const { events, live, calls, lines } = told();
  events.take({ type: "voicepod.state", agent: "thinking" });
  events.take({ type: "input_audio_buffer.speech_started" });
  events.take({ type: "something.new", user: "loud" });
  assert.deepEqual(live, { user: "speaking", agent: "thinking" });
  assert.deepEqual([calls, lines], [[], []]);
});

test("what the user chose, as the server is told it", () => {
  const controls = { instructions: "", voices: [] };
  const chosen = preferences({ ...DEFAULTS, mode: "hold", language: "auto", voice: "" }, controls, "Be kind.");
  assert.equal(chosen.instructions, "Be kind.");
  assert.deepEqual(chosen.audio.input, { transcription: { language: null }, turn_detection: null });
  assert.equal("voice" in chosen.audio.output, false);
  const other = preferences({ ...DEFAULTS, mode: "hands-free", language: "en", voice: "af_heart", patienceMs: 900 }, controls);
  assert.equal("instructions" in other, false);
  assert.deepEqual(other.audio.input.turn_detection, { type: "server_vad", silence_duration_ms: 900 });
  assert.equal(other.audio.output.voice, "af_heart");
});
