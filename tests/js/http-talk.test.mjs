import assert from "node:assert/strict";
import { test } from "node:test";
import { wavFile } from "../../ui/static/exports.js";
import { HttpTalk, Samples, eventsOf } from "../../ui/static/http-talk.js";
import { joined } from "../../ui/static/recorder.js";

const base64 = (bytes) => Buffer.from(bytes).toString("base64");
const lines = (...events) => events.map((event) => `data: ${JSON.stringify(event)}\n\n`).join("");
const streamed = (text) => new Response(text, { headers: { "Content-Type": "text/event-stream" } });
const VOICES = { data: [{ id: "anna", name: "Anna", language: "en", languages: [], usable: true }, { id: "gone", usable: false }] };

/** Lets everything run that waits until the condition is true; a test that waits in vain is ended by its runner. */
async function until(isSo) {
  while (!isSo()) await new Promise((resolve) => setImmediate(resolve));
}

/** A talk with a server that gives these answers to the questions; `asked` has what it was sent. */
async function talk(...answers) {
  const seen = { events: [], audio: [], statuses: [], asked: [] };
  const fetch = async (url, options) => {
    if (url.pathname.endsWith("/api/voices")) return Response.json(VOICES);
    seen.asked.push({ url, ...options });
    const answer = answers.shift();
    return typeof answer === "function" ? answer(options) : answer;
  };
  const connection = new HttpTalk({
    base: new URL("http://pod.test/x/"),
    onStatus: (status) => seen.statuses.push(status.state),
    onEvent: (event) => seen.events.push(event),
    onAudio: ({ turn, first, pcm }) => {
      seen.audio.push({ turn, first, pcm: pcm.slice() });
      structuredClone(pcm.buffer, { transfer: [pcm.buffer] }); // the player gives it away to its thread
    },
    fetch,
  });
  await connection.connect();
  return { connection, ...seen, kinds: () => seen.events.map(({ type }) => type), last: (type) => seen.events.findLast((e) => e.type === type) };
}

const ANSWER = lines(
  { type: "session", session: "sess_1", sample_rate: 22050 },
  { type: "transcript", text: "hello", language: "en" },
  { type: "reply.text", delta: "Hi.", first_sample: 0 },
  { type: "audio", audio: base64([1, 0, 2]) },
  { type: "audio", audio: base64([0, 3, 0]) },
  { type: "done", transcript: "hello", reply: "Hi." },
);

test("a recording becomes a WAV file of all its frames", () => {
  const view = new DataView(wavFile(joined([Int16Array.of(1, -2), Int16Array.of(3)]), 1, 16000));
  assert.equal(Buffer.from(view.buffer, 0, 4).toString(), "RIFF");
  assert.equal(view.getUint32(24, true), 16000);
  assert.equal(view.getUint32(40, true), 6);
  assert.deepEqual([44, 46, 48].map((at) => view.getInt16(at, true)), [1, -2, 3]);
});

test("events are whole however the network cuts them", async () => {
  const text = lines({ type: "a", words: "ä\n" }, { type: "b" });
  const pieces = [...text].map((letter) => letter);
  const events = [];
  for await (const event of eventsOf(pieces)) events.push(event);
  assert.deepEqual(events, [{ type: "a", words: "ä\n" }, { type: "b" }]);
});

test("a sample that is cut in two bytes is put together", () => {
  const samples = new Samples();
  assert.deepEqual([...samples.take(base64([1, 0, 2])), ...samples.take(base64([1]))], [1, 258]);
});

test("a spoken question gives the page the events of a turn, and the next one goes on with the talk", async () => {
  const { connection, asked, audio, kinds, last, events } = await talk(streamed(ANSWER), streamed(ANSWER));
  assert.equal(last("session.created").session.voicepod.hold_only, true);
  assert.deepEqual(last("session.created").session.voicepod.voices.map(({ id }) => id), ["anna"]);
  connection.send({ type: "session.update", session: { audio: { output: { voice: "anna", speed: 1.5 } } } });
  connection.sendAudio(Int16Array.of(7, 8));
  connection.send({ type: "input_audio_buffer.commit" });
  connection.send({ type: "response.create" });
  await until(() => kinds().includes("conversation.item.done"));
  assert.equal(new DataView(asked[0].body).getInt16(44, true), 7);
  assert.equal(asked[0].url.searchParams.get("speed"), "1.5");
  assert.equal(asked[0].url.searchParams.get("session"), null);
  assert.deepEqual(audio.map(({ turn, first, pcm }) => [turn, first, [...pcm]]), [[1, 0, [1]], [1, 1, [2, 3]]]);
  assert.equal(last("voicepod.rate").rate, 22050);
  assert.ok(!kinds().includes("voicepod.turn_metrics"), "not all was heard yet");
  connection.send({ type: "voicepod.playback", turn: 1, played_samples: 3 });
  assert.equal(last("voicepod.turn_metrics").outcome, "completed");
  assert.deepEqual(events.at(-1), { type: "voicepod.state", user: "silent", agent: "idle" });
  connection.send({ type: "conversation.item.create", item: { content: [{ text: "And you?" }] } });
  connection.send({ type: "response.create" });
  await until(() => asked.length === 2);
  assert.equal(asked[1].body, "And you?");
  assert.equal(asked[1].headers["Content-Type"], "text/plain");
  assert.equal(asked[1].url.searchParams.get("session"), "sess_1");
});

test("an interruption stops the request and says that the answer was cut", async () => {
  const hangs = ({ signal }) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  const { connection, last, kinds } = await talk(hangs);
  connection.send({ type: "conversation.item.create", item: { content: [{ text: "Tell me a story" }] } });
  connection.send({ type: "response.create" });
  connection.send({ type: "response.cancel" });
  await until(() => kinds().includes("voicepod.turn_metrics"));
  assert.equal(last("voicepod.turn_metrics").outcome, "interrupted");
  assert.ok(!kinds().includes("error"));
});

test("an answer that has arrived and is still heard can be interrupted", async () => {
  const { connection, kinds, last } = await talk(streamed(ANSWER));
  connection.sendAudio(Int16Array.of(7));
  connection.send({ type: "response.create" });
  await until(() => kinds().includes("conversation.item.done"));
  connection.send({ type: "response.cancel" });
  assert.equal(last("voicepod.turn_metrics").outcome, "interrupted");
  assert.equal(last("voicepod.state").agent, "idle");
});

test("a refusal is told in the server's words, and a talk that is over begins anew", async () => {
  const error = { code: "session_not_found", message: "there is no such session of yours" };
  const { connection, asked, kinds, last } = await talk(streamed(ANSWER), Response.json({ error }, { status: 404 }), streamed(ANSWER));
  for (const [number, text] of ["one", "two", "three"].entries()) {
    connection.send({ type: "conversation.item.create", item: { content: [{ text }] } });
    connection.send({ type: "response.create" });
    await until(() => kinds().filter((type) => type === (number === 1 ? "error" : "conversation.item.done")).length > number / 2);
    connection.send({ type: "voicepod.playback", turn: number + 1, played_samples: 3 });
  }
  assert.equal(last("error").error.message, error.message);
  assert.deepEqual(asked.map(({ url }) => url.searchParams.get("session")), [null, "sess_1", null]);
});

test("words that nobody understood are marked in the talk", async () => {
  const events = lines({ type: "session", session: "s", sample_rate: 24000 }, { type: "error", error: { code: "no_speech", message: "no words" } });
  const { connection, kinds, last } = await talk(streamed(events));
  connection.sendAudio(Int16Array.of(0));
  connection.send({ type: "response.create" });
  await until(() => kinds().includes("error"));
  assert.equal(last("conversation.item.input_audio_transcription.failed").item_id, "http_user_1");
  assert.equal(last("error").error.code, "no_speech");
});
