// The protocol's client: connects, proves itself, reconnects by itself and goes on where the conversation stopped.
// Everything it needs from the browser can be handed in, so that Node tests drive it.

const FIRST_DELAY_MS = 250;
const MAX_DELAY_MS = 8000;
const PING_MS = 10_000;
const PING_SOON_MS = 1500;
const DOUBT_MS = 4000; // an answer to a ping takes no longer where there is reason to doubt; elsewhere until the next is due
// A network that carries less than the microphone gives, 32 bytes a millisecond, answers late; it is not dead.
const SLOW_MS = 2000;
const SLOW_PATIENCE_MS = 30_000;
const LATE_BYTES_PER_MS = 16;
const HELD_MS = 5000;
const OPEN_TIMEOUT_MS = 10_000;
const OPEN = 1; // WebSocket.OPEN
const MAX_BUFFERED_BYTES = 64 * 1024; // beyond this microphone frames are dropped, not queued

/** What a close code asks for: "stop" (done), "retry" (connect again), "busy", "taken" (another tab), "refused". */
export function afterClose(code) {
  if (code === 1000) return "stop";
  if (code === 1013) return "busy";
  if (code === 4409) return "taken";
  if (code === 1008 || code === 1009) return "refused";
  return "retry";
}

/** Wait before attempt n (0, 1, ...): doubles up to 8 s; `random` in [0, 1) spreads clients by +-25 %. */
export function backoffMs(attempt, random) {
  return Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** attempt) * (0.75 + 0.5 * random);
}

/** Splits a binary message of the server: {turn, first, pcm}. Null when it is too short or odd. */
export function readFrame(buffer) {
  if (buffer.byteLength < 8 || buffer.byteLength % 2) return null;
  const view = new DataView(buffer);
  return { turn: view.getUint32(0, true), first: view.getUint32(4, true), pcm: new Int16Array(buffer.slice(8)) };
}

const browser = {
  WebSocket: globalThis.WebSocket,
  setTimeout: (...args) => globalThis.setTimeout(...args),
  clearTimeout: (id) => globalThis.clearTimeout(id),
  now: () => performance.now(),
  random: Math.random,
};

export class RealtimeSocket {
  /**
   * newToken() gives a promise of a one-time token. Callbacks: onStatus({state, ...}) with state idle, connecting, open,
   * waiting (retryInMs, attempt), busy and loading (retryInMs), taken, refused (message); onEvent(event); onAudio({turn, first, pcm});
   * onRoundTrip(ms); received() gives {turn, next} for the resume event.
   */
  constructor({ url, newToken, onStatus, onEvent, onAudio, onRoundTrip, received, env = browser }) {
    Object.assign(this, { url, newToken, onStatus, onEvent, onAudio, onRoundTrip, received, env });
    this.socket = null;
    this.wanted = false;
    this.attempt = 0;
    this.generation = 0;
    this.resumeToken = null;
    this.resumeS = 300;
    this.lostAt = null;
    this.lastError = null;
    this.droppedFrames = 0;
    this.state = "idle";
  }

  get open() {
    return this.state === "open" && this.socket?.readyState === OPEN;
  }

  /** Connects and stays connected until `close()`; with a resume token the earlier conversation goes on. */
  connect(resumeToken = this.resumeToken) {
    this.resumeToken = resumeToken;
    this.wanted = true;
    this.attempt = 0;
    this.lostAt = null;
    this.#open();
  }

  /** Ends for good; the server frees the seat at once. */
  close() {
    this.wanted = false;
    this.#drop();
    this.#status({ state: "idle" });
  }

  /** Tries at once instead of waiting out the delay, for example when the network is back. */
  retryNow() {
    if (!this.wanted || this.open || this.state === "connecting") return;
    this.attempt = 0;
    this.#open();
  }

  /** True when answers take seconds: what is said arrives late. */
  get slow() {
    return this.roundTripMs > SLOW_MS;
  }

  /** The network or the machine has changed: a connection that does not answer within seconds is given up. */
  doubt() {
    if (this.open && !this.inDoubt && !this.slow) this.#ping(DOUBT_MS);
  }

  send(event) {
    if (!this.open) return false;
    this.socket.send(JSON.stringify(event));
    return true;
  }

  /**
   * Sends one frame of PCM16. When the network cannot keep up it is dropped, for a talk cannot wait for it; but `late` ones,
   * which a lost connection held up, and what comes behind them have their time.
   */
  sendAudio(pcm, { late = false } = {}) {
    if (!this.open) return false;
    const { bufferedAmount } = this.socket;
    if (late) {
      this.lateBytes += pcm.byteLength;
      this.lateAt = this.env.now();
    }
    if (bufferedAmount > MAX_BUFFERED_BYTES + this.lateBytes) {
      this.droppedFrames += 1;
      return false;
    }
    this.socket.send(pcm);
    return true;
  }

  #status(status) {
    this.state = status.state;
    this.onStatus(status);
  }

  #drop() {
    this.generation += 1;
    this.env.clearTimeout(this.timer);
    this.env.clearTimeout(this.pingTimer);
    const { socket } = this;
    this.socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(1000);
  }

  async #open() {
    this.#drop();
    const { generation } = this;
    this.#status({ state: "connecting", attempt: this.attempt });
    // A server that accepts and then says nothing must not hold the page in "connecting".
    this.timer = this.env.setTimeout(() => this.#lost(1006), OPEN_TIMEOUT_MS);
    let token;
    try {
      token = await this.newToken();
    } catch {
      if (generation === this.generation) this.#lost(1006);
      return;
    }
    if (generation !== this.generation) return;
    const protocols = ["voicepod.v1", `voicepod.token.${token}`];
    this.lastError = null;
    this.sentResume = this.resumeToken;
    if (this.sentResume) protocols.push(`voicepod.resume.${this.sentResume}`);
    const socket = new this.env.WebSocket(this.url, protocols);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => {
      if (!this.sentResume) return;
      const { turn, next } = this.received();
      socket.send(JSON.stringify({ type: "voicepod.resume", token: this.sentResume, turn, sample: next }));
    };
    socket.onmessage = ({ data }) => this.#message(data);
    socket.onclose = ({ code }) => this.#lost(code);
  }

  #message(data) {
    this.heard = true;
    if (typeof data !== "string") {
      const frame = readFrame(data);
      if (frame) this.onAudio(frame);
      return;
    }
    let event;
    try {
      event = JSON.parse(data);
    } catch {
      return;
    }
    if (event.type === "session.created") this.#created(event.session);
    else if (event.type === "error") this.lastError = event.error ?? event;
    else if (event.type === "voicepod.pong") {
      this.#answered(event.t);
      return;
    } else if (event.type === "voicepod.ping") {
      this.send({ type: "voicepod.pong", t: event.t });
      return;
    }
    this.onEvent(event);
  }

  #created(session) {
    this.env.clearTimeout(this.timer);
    this.lostAt = null;
    this.openedAt = this.env.now();
    this.roundTripMs = this.lateBytes = this.lateAt = 0;
    this.resumeToken = session.voicepod?.resume_token ?? null;
    this.resumeS = session.voicepod?.resume_s ?? this.resumeS;
    this.#status({ state: "open", resumed: Boolean(session.voicepod?.resumed) });
    this.#ping();
  }

  #ping(patienceMs = PING_MS) {
    this.inDoubt = patienceMs === DOUBT_MS;
    this.askedAt = this.env.now();
    this.heard = false;
    this.send({ type: "voicepod.ping", t: this.askedAt });
    // The first one shares the wire with the whole start; a second soon after gives a fair figure.
    const soon = !this.inDoubt && this.askedAt - this.openedAt < PING_SOON_MS;
    this.env.clearTimeout(this.pingTimer);
    this.pingTimer = this.env.setTimeout(() => (soon ? this.#ping() : this.#lookFor(patienceMs)), soon ? PING_SOON_MS : patienceMs);
  }

  /** The last ping again when it was answered. Silence counts from it on: in a hidden tab timers are called once a minute. */
  #lookFor(patienceMs) {
    if (this.heard) {
      this.#ping();
      return;
    }
    const allowed = (this.slow ? SLOW_PATIENCE_MS : patienceMs) + this.lateBytes / LATE_BYTES_PER_MS;
    const left = this.askedAt + allowed - this.env.now();
    if (left > 0) this.pingTimer = this.env.setTimeout(() => this.#lookFor(patienceMs), Math.min(left, PING_MS));
    else this.#lost(1006);
  }

  #answered(askedAt) {
    const ms = this.env.now() - askedAt;
    if (askedAt >= this.openedAt + PING_SOON_MS) this.roundTripMs = ms;
    if (askedAt > this.lateAt) this.lateBytes = 0;
    this.onRoundTrip(ms);
  }

  #lost(code) {
    const wasOpen = this.state === "open";
    this.#drop();
    if (!this.wanted) return;
    const action = afterClose(code);
    if (action === "busy") {
      const loads = this.lastError?.code === "engine_not_ready";
      const retryInMs = Math.max(1, this.lastError?.retry_after_s ?? (loads ? 3 : 10)) * 1000;
      this.#wait({ state: loads ? "loading" : "busy", retryInMs });
      return;
    }
    if (action !== "retry") {
      this.wanted = false;
      if (action === "taken") this.resumeToken = null;
      const state = action === "stop" ? "idle" : action;
      this.#status({ state, message: this.lastError?.message });
      return;
    }
    if (wasOpen) {
      this.lostAt = this.env.now();
      // A server that takes the socket and drops it at once is not hammered: only a connection that held starts anew.
      if (this.lostAt - this.openedAt > HELD_MS) this.attempt = 0;
    }
    if (this.lostAt !== null && this.env.now() - this.lostAt > this.resumeS * 1000) this.resumeToken = null;
    const retryInMs = backoffMs(this.attempt, this.env.random());
    this.attempt += 1;
    this.#wait({ state: "waiting", retryInMs, attempt: this.attempt, wasOpen });
  }

  #wait(status) {
    this.#status(status);
    this.timer = this.env.setTimeout(() => this.#open(), status.retryInMs);
  }
}
