import assert from "node:assert/strict";
import test from "node:test";

import { RealtimeSocket, afterClose, backoffMs, readFrame } from "../../ui/static/socket.js";

/** A world without time: timers run when `tick` says so, sockets are opened and closed by the test. */
function world() {
  const w = { clock: 0, timers: new Map(), nextId: 1, sockets: [], statuses: [], events: [], frames: [], tokens: 0 };
  class FakeSocket {
    constructor(url, protocols) {
      Object.assign(this, { url, protocols, sent: [], bufferedAmount: 0, readyState: 1, closed: null });
      w.sockets.push(this);
    }

    send(data) {
      this.sent.push(data);
    }

    close(code) {
      this.closed = code;
    }
  }
  w.env = {
    WebSocket: FakeSocket,
    setTimeout: (fn, ms) => {
      const id = w.nextId++;
      w.timers.set(id, { fn, at: w.clock + ms });
      return id;
    },
    clearTimeout: (id) => w.timers.delete(id),
    now: () => w.clock,
    random: () => 0.5,
  };
  w.socket = new RealtimeSocket({
    url: "ws://page/v1/realtime",
    newToken: async () => `t${(w.tokens += 1)}`,
    onStatus: (status) => w.statuses.push(status),
    onEvent: (event) => w.events.push(event),
    onAudio: (frame) => w.frames.push(frame),
    onRoundTrip: (ms) => (w.roundTrip = ms),
    received: () => ({ turn: 3, next: 4800 }),
    env: w.env,
  });
  w.settle = () => new Promise((resolve) => setImmediate(resolve));
  w.tick = async (ms) => {
    const until = w.clock + ms;
    for (;;) {
      const due = [...w.timers].filter(([, timer]) => timer.at <= until).sort((a, b) => a[1].at - b[1].at)[0];
      if (!due) break;
      w.timers.delete(due[0]);
      w.clock = Math.max(w.clock, due[1].at);
      due[1].fn();
      await w.settle();
    }
    w.clock = until;
  };
  w.latest = () => w.sockets.at(-1);
  w.created = (extra = {}) => {
    const voicepod = { resume_token: "r1", resume_s: 300, resumed: false, ...extra };
    w.latest().onopen?.();
    w.latest().onmessage({ data: JSON.stringify({ type: "session.created", session: { voicepod } }) });
  };
  w.connect = async (token) => {
    w.socket.connect(token);
    await w.settle();
  };
  w.state = () => w.statuses.at(-1).state;
  return w;
}

test("the token travels as a subprotocol and the session opens", async () => {
  const w = world();
  await w.connect();
  assert.deepEqual(w.latest().protocols, ["voicepod.v1", "voicepod.token.t1"]);
  w.created();
  assert.equal(w.state(), "open");
  assert.equal(w.socket.resumeToken, "r1");
});

test("a lost connection comes back with the resume token and says first where the sound stopped", async () => {
  const w = world();
  await w.connect();
  w.created();
  await w.tick(6000);
  w.latest().onclose({ code: 1006 });
  assert.equal(w.state(), "waiting");
  await w.tick(1000);
  assert.deepEqual(w.latest().protocols, ["voicepod.v1", "voicepod.token.t2", "voicepod.resume.r1"]);
  w.created({ resumed: true });
  assert.deepEqual(JSON.parse(w.latest().sent[0]), { type: "voicepod.resume", token: "r1", turn: 3, sample: 4800 });
  assert.equal(w.statuses.at(-1).resumed, true);
});

test("after the session's lifetime it connects without the old token", async () => {
  const w = world();
  await w.connect();
  w.created({ resume_s: 30 });
  w.latest().onclose({ code: 1006 });
  for (let n = 0; n < 12; n += 1) {
    await w.tick(10_000);
    w.latest().onclose?.({ code: 1006 });
  }
  await w.tick(10_000);
  assert.equal(w.latest().protocols.length, 2);
});

test("a server that drops every connection at once is asked less and less often", async () => {
  const w = world();
  await w.connect();
  for (let n = 0; n < 6; n += 1) {
    w.created();
    w.latest().onclose({ code: 1011 });
    await w.tick(w.statuses.findLast(({ state }) => state === "waiting").retryInMs);
  }
  const waits = w.statuses.filter(({ state }) => state === "waiting").map(({ retryInMs }) => retryInMs);
  assert.deepEqual(waits, [250, 500, 1000, 2000, 4000, 8000]);
});

test("a busy server is asked again after the time it names", async () => {
  const w = world();
  await w.connect();
  w.latest().onmessage({ data: JSON.stringify({ type: "error", error: { code: "server_busy", retry_after_s: 7 } }) });
  w.latest().onclose({ code: 1013 });
  assert.deepEqual(w.statuses.at(-1), { state: "busy", retryInMs: 7000 });
  await w.tick(6900);
  assert.equal(w.sockets.length, 1);
  await w.tick(200);
  assert.equal(w.sockets.length, 2);
});

test("a server that gets its models ready is not called a full one", async () => {
  const w = world();
  await w.connect();
  w.latest().onmessage({ data: JSON.stringify({ type: "error", error: { code: "engine_not_ready" } }) });
  w.latest().onclose({ code: 1013 });
  assert.deepEqual(w.statuses.at(-1), { state: "loading", retryInMs: 3000 });
});

test("another tab that took the conversation is not fought", async () => {
  const w = world();
  await w.connect();
  w.created();
  w.latest().onclose({ code: 4409 });
  assert.equal(w.state(), "taken");
  await w.tick(60_000);
  assert.equal(w.sockets.length, 1);
  assert.equal(w.socket.resumeToken, null);
});

test("a connection that says nothing is given up and made anew", async () => {
  const w = world();
  await w.connect();
  w.created();
  await w.tick(11_600);
  assert.equal(w.state(), "waiting");
});

test("after a change of the network a connection that does not answer is given up within seconds", async () => {
  const w = world();
  await w.connect();
  w.created();
  await w.tick(2000);
  w.latest().onmessage({ data: '{"type":"voicepod.pong","t":0}' });
  w.socket.doubt();
  await w.tick(3000);
  w.socket.doubt(); // the second sign of the same change asks for no more patience
  await w.tick(1100);
  assert.equal(w.state(), "waiting");
});

test("a connection that dies as soon as it stands is found as well", async () => {
  const w = world();
  await w.connect();
  w.created();
  w.socket.doubt();
  await w.tick(4100);
  assert.equal(w.state(), "waiting");
});

test("a connection that answers stays, however late the browser calls the timers of a hidden tab", async () => {
  const w = world();
  await w.connect();
  w.created();
  for (let n = 0; n < 3; n += 1) {
    w.clock += 60_000; // timers are called once a minute
    await w.tick(1);
    w.latest().onmessage({ data: '{"type":"voicepod.pong","t":0}' });
    w.socket.doubt();
    w.clock += 100;
    w.latest().onmessage({ data: '{"type":"voicepod.pong","t":0}' });
  }
  assert.equal(w.state(), "open");
  assert.equal(w.sockets.length, 1);
});

test("an answer counts also where the browser's clock is too coarse to tell it from the question", async () => {
  const w = world();
  await w.connect();
  w.created();
  await w.tick(1500);
  for (let n = 0; n < 3; n += 1) {
    w.latest().onmessage({ data: '{"type":"voicepod.pong","t":0}' }); // within the millisecond of the ping
    await w.tick(10_000);
  }
  assert.equal(w.state(), "open");
  assert.equal(w.sockets.length, 1);
});

/** Answers the newest ping after so many milliseconds, as a network does that carries less than it is given. */
async function answerLate(w, ms) {
  const { t } = JSON.parse(w.latest().sent.filter((sent) => typeof sent === "string").at(-1));
  await w.tick(t + ms - w.clock);
  w.latest().onmessage({ data: JSON.stringify({ type: "voicepod.pong", t }) });
}

test("a network that answers late is called slow and is not given up", async () => {
  const w = world();
  await w.connect();
  w.created();
  await answerLate(w, 3000); // it shares the wire with the start
  assert.equal(w.socket.slow, false);
  for (const ms of [3000, 15_000, 25_000]) {
    await answerLate(w, ms);
    assert.equal(w.socket.slow, true);
    w.socket.doubt(); // who types there does not lose the connection
    await w.tick(10_000);
  }
  assert.equal(w.sockets.length, 1);
  await answerLate(w, 50);
  assert.equal(w.socket.slow, false);
  await w.tick(20_100);
  assert.equal(w.state(), "waiting");
});

test("what is sent late, after a lost connection, has its time on a slow network", async () => {
  const w = world();
  await w.connect();
  w.created();
  for (let n = 0; n < 750; n += 1) w.socket.sendAudio(new Int16Array(320), { late: true }); // 15 s
  await w.tick(2000);
  await answerLate(w, 20_000);
  assert.equal(w.sockets.length, 1);
  await w.tick(45_000); // and no longer than that
  assert.ok(w.sockets.length > 1);
});

test("a server that accepts and never speaks does not hold the page", async () => {
  const w = world();
  await w.connect();
  await w.tick(12_000);
  assert.equal(w.sockets.length, 2);
});

test("a token that cannot be had is asked for again", async () => {
  const w = world();
  w.socket.newToken = async () => {
    throw new Error("offline");
  };
  await w.connect();
  assert.equal(w.state(), "waiting");
});

test("pings are answered and measured", async () => {
  const w = world();
  await w.connect();
  w.created();
  const ping = JSON.parse(w.latest().sent.at(-1));
  assert.equal(ping.type, "voicepod.ping");
  w.clock += 42;
  w.latest().onmessage({ data: JSON.stringify({ type: "voicepod.pong", t: ping.t }) });
  assert.equal(w.roundTrip, 42);
  w.latest().onmessage({ data: '{"type":"voicepod.ping","t":7}' });
  assert.deepEqual(JSON.parse(w.latest().sent.at(-1)), { type: "voicepod.pong", t: 7 });
});

test("microphone frames are dropped when the network does not keep up", async () => {
  const w = world();
  await w.connect();
  w.created();
  assert.equal(w.socket.sendAudio(new Int16Array(320)), true);
  w.latest().bufferedAmount = 100_000;
  assert.equal(w.socket.sendAudio(new Int16Array(320)), false);
  assert.equal(w.socket.droppedFrames, 1);
});

test("closing ends everything: no retry, no late message", async () => {
  const w = world();
  await w.connect();
  w.created();
  w.socket.close();
  assert.equal(w.latest().closed, 1000);
  assert.equal(w.latest().onmessage, null);
  await w.tick(100_000);
  assert.equal(w.sockets.length, 1);
});

test("binary frames are read, broken ones are ignored", () => {
  const buffer = new ArrayBuffer(12);
  const view = new DataView(buffer);
  view.setUint32(0, 5, true);
  view.setUint32(4, 960, true);
  view.setInt16(8, -3, true);
  const frame = readFrame(buffer);
  assert.equal(frame.turn, 5);
  assert.equal(frame.first, 960);
  assert.deepEqual([...frame.pcm], [-3, 0]);
  assert.equal(readFrame(new ArrayBuffer(7)), null);
  assert.equal(readFrame(new ArrayBuffer(11)), null);
});

test("each close code has its answer", () => {
  const answers = { 1000: "stop", 1001: "retry", 1006: "retry", 1008: "refused", 1011: "retry", 1013: "busy", 4408: "retry", 4409: "taken" };
  for (const [code, answer] of Object.entries(answers)) assert.equal(afterClose(Number(code)), answer);
  assert.equal(backoffMs(0, 0), 187.5);
  assert.ok(backoffMs(30, 1) <= 10_000);
});
