// The talk without a socket, for servers and networks that allow none: each question is one POST /api/converse, its answer
// a stream of events. Has the face of RealtimeSocket, so that the page need not know; the talk button ends a question.
// Everything it needs from the browser can be handed in, so that Node tests drive it.

import { wavFile } from "./exports.js";
import { MIC_RATE } from "./mic.js";
import { joined } from "./recorder.js";

const MAX_QUESTION_S = 60;
const TRANSCRIPTION = "conversation.item.input_audio_transcription";

/** The events of a text/event-stream in its pieces of text, each the JSON behind "data: ". */
export async function* eventsOf(pieces) {
  let rest = "";
  for await (const piece of pieces) {
    const lines = (rest + piece).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
  }
}

/** PCM16 in base64 as samples; the bytes come in any portions, so an odd one is kept for the next call. */
export class Samples {
  constructor() {
    this.rest = [];
  }

  take(base64) {
    const bytes = [...this.rest, ...Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))];
    this.rest = bytes.length % 2 ? [bytes.pop()] : [];
    return new Int16Array(Uint8Array.from(bytes).buffer);
  }
}

async function* textOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}

export class HttpTalk {
  /** `base` is the page's URL; the callbacks are those of RealtimeSocket. `fetch` as the browser's. */
  constructor({ base, onStatus, onEvent, onAudio, fetch = (...args) => globalThis.fetch(...args) }) {
    Object.assign(this, { base, onStatus, onEvent, onAudio, fetch });
    this.state = "idle";
    this.talk = null; // the id of the session that goes on
    this.resumeS = 0;
    this.droppedFrames = 0;
    this.frames = [];
    this.typed = null;
    this.turn = 0;
    this.asked = { voice: null, language: null, speed: null, instructions: null };
    this.answering = null;
  }

  get open() {
    return this.state === "open";
  }

  /** A talk that another page began cannot be shown here, so none is taken up; null ends this page's own. */
  get resumeToken() {
    return null;
  }

  set resumeToken(_) {
    this.talk = null;
  }

  /** Asks the server what it offers. */
  async connect() {
    this.#status({ state: "connecting", attempt: 0 });
    let voices = [];
    try {
      const answer = await this.fetch(new URL("api/voices", this.base));
      if (answer.ok) voices = (await answer.json()).data.filter((voice) => voice.usable !== false);
    } catch {
      if (this.state === "connecting") this.#status({ state: "refused", message: "The server cannot be reached." });
      return;
    }
    if (this.state !== "connecting") return;
    this.#status({ state: "open", resumed: false });
    this.onEvent({ type: "session.created", session: this.#session(voices) });
  }

  close() {
    this.answering?.abort();
    this.#status({ state: "idle" });
  }

  retryNow() {} // each question connects anew

  doubt() {}

  send(event) {
    if (!this.open) return false;
    switch (event.type) {
      case "session.update":
        this.#update(event.session);
        break;
      case "input_audio_buffer.clear":
        this.frames = [];
        break;
      case "conversation.item.create":
        this.typed = event.item;
        break;
      case "conversation.item.delete":
        this.talk = null; // the page forgets all of it or nothing: the next question begins a new talk
        break;
      case "response.cancel":
        if (this.current?.isDone) this.#failed(this.current, null);
        else this.answering?.abort();
        break;
      case "response.create":
        this.#ask();
        break;
      case "voicepod.playback":
        this.#played(event);
        break;
      default: // a commit says nothing more than the response.create behind it
    }
    return true;
  }

  sendAudio(pcm) {
    if (!this.open || this.frames.length * pcm.length > MAX_QUESTION_S * MIC_RATE) return false;
    this.frames.push(pcm.slice());
    return true;
  }

  #status(status) {
    this.state = status.state;
    this.onStatus(status);
  }

  #session(voices) {
    const [first] = voices;
    return {
      id: this.talk ?? "",
      instructions: "",
      audio: { output: { format: { rate: 24_000 }, voice: first?.id ?? "" } },
      voicepod: {
        resumed: false,
        hold_only: true,
        resume_s: this.resumeS,
        resume_token: null,
        voices: voices.map(({ id, name, language, languages }) => ({ id, name, language, languages })),
        languages: ["auto", ...new Set(voices.flatMap(({ language, languages }) => [language, ...(languages ?? [])]))],
      },
    };
  }

  #update({ instructions, audio }) {
    if (instructions !== undefined) this.asked.instructions = instructions;
    if (audio?.input?.transcription) this.asked.language = audio.input.transcription.language;
    if (audio?.output?.voice) this.asked.voice = audio.output.voice;
    if (audio?.output?.speed) this.asked.speed = audio.output.speed;
  }

  async #ask() {
    this.answering?.abort();
    const abort = (this.answering = new AbortController());
    const { typed } = this;
    const isTyped = typed !== null;
    const question = isTyped ? typed.content[0].text : wavFile(joined(this.frames), 1, MIC_RATE);
    this.typed = null;
    this.frames = [];
    const turn = { number: (this.turn += 1), samples: 0, played: 0, isDone: false, beganAt: performance.now(), firstAt: null };
    turn.user = typed?.id ?? `http_user_${turn.number}`;
    turn.reply = `http_reply_${turn.number}`;
    turn.isHeard = isTyped;
    this.current = turn;
    const content = [isTyped ? { type: "input_text", text: question } : { type: "input_audio", transcript: null }];
    this.#item({ id: turn.user, role: "user", status: isTyped ? "completed" : "in_progress", content });
    this.onEvent({ type: "voicepod.state", user: "silent", agent: "thinking" });
    try {
      await this.#answer(turn, question, isTyped, abort.signal);
    } catch (error) {
      this.#failed(turn, abort.signal.aborted ? null : error);
    }
  }

  async #answer(turn, question, isTyped, signal) {
    const url = new URL("api/converse", this.base);
    const wanted = { ...this.asked, session: this.talk, format: "pcm", stream_format: "sse" };
    for (const [name, value] of Object.entries(wanted)) if (value) url.searchParams.set(name, value);
    const headers = { "Content-Type": isTyped ? "text/plain" : "audio/wav" };
    const answer = await this.fetch(url, { method: "POST", body: question, headers, signal });
    if (!answer.ok) throw await refusal(answer);
    const sound = new Samples();
    for await (const event of eventsOf(textOf(answer.body))) this.#told(turn, event, sound);
  }

  #told(turn, event, sound) {
    const { number, reply: itemId } = turn;
    if (event.type === "session") {
      this.talk = event.session;
      this.onEvent({ type: "voicepod.rate", rate: event.sample_rate });
    } else if (event.type === "transcript") {
      turn.isHeard = true;
      this.onEvent({ type: `${TRANSCRIPTION}.completed`, item_id: turn.user, transcript: event.text });
    } else if (event.type === "reply.text") {
      const { delta: text, first_sample } = event;
      this.onEvent({ type: "voicepod.caption", turn: number, item_id: itemId, text, first_sample });
    } else if (event.type === "audio") {
      const pcm = sound.take(event.audio);
      if (turn.firstAt === null) {
        turn.firstAt = performance.now();
        this.onEvent({ type: "voicepod.state", user: "silent", agent: "speaking" });
      }
      const first = turn.samples;
      turn.samples += pcm.length; // before the player takes the samples away
      this.onAudio({ turn: number, first, pcm });
    } else if (event.type === "error") {
      throw event.error;
    } else if (event.type === "done") {
      const content = [{ type: "output_audio", transcript: event.reply }];
      this.onEvent({ type: "conversation.item.done", item: { id: itemId, role: "assistant", status: "completed", content } });
      turn.isDone = true;
      this.#maybeOver(turn);
    }
  }

  #item(item) {
    this.onEvent({ type: "conversation.item.added", item: { type: "message", ...item }, previous_item_id: null });
  }

  /** The page has heard so much; the turn is over when all was heard. */
  #played({ turn, played_samples }) {
    if (this.current?.number !== turn) return;
    this.current.played = played_samples;
    this.#maybeOver(this.current);
  }

  #maybeOver(turn) {
    if (turn.isDone && turn.played >= turn.samples) this.#over(turn, "completed");
  }

  #over(turn, outcome) {
    if (this.current !== turn) return;
    this.current = this.answering = null;
    const total = Math.round((turn.firstAt ?? performance.now()) - turn.beganAt);
    this.onEvent({ type: "voicepod.turn_metrics", turn: turn.number, outcome, total_ms: total, parts_ms: { answer: total } });
    this.onEvent({ type: "voicepod.state", user: "silent", agent: "idle" });
  }

  /** Without an error the user has cut it. A talk that the server has forgotten begins anew with the next question. */
  #failed(turn, error) {
    if (this.current !== turn) return;
    if (error?.code === "session_not_found") this.talk = null;
    if (!turn.isHeard) this.onEvent({ type: `${TRANSCRIPTION}.failed`, item_id: turn.user });
    this.onEvent({ type: "voicepod.flush", turn: turn.number });
    if (error) this.onEvent({ type: "error", error: { code: error.code, message: error.message ?? "The server cannot be reached." } });
    this.#over(turn, error ? "failed" : "interrupted");
  }
}

async function refusal(answer) {
  const said = await answer.json().catch(() => ({}));
  return said.error ?? { message: `The server answered with ${answer.status}.` };
}
