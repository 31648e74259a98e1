import assert from "node:assert/strict";
import test from "node:test";

import { KEPT, PREROLL_FRAMES, Uplink } from "../../ui/static/uplink.js";

function setUp({ mode, open = true } = {}) {
  const sent = [];
  const socket = {
    open,
    sendAudio: (pcm) => sent.push(pcm[0]) > 0,
    send: ({ type }) => socket.open && sent.push(type.split(".").pop()) > 0,
  };
  const live = { muted: false, holding: false };
  const kept = [];
  let clock = 0;
  let changed;
  const over = new Promise((resolve) => (changed = resolve));
  const uplink = new Uplink({
    socket,
    settings: { mode },
    live,
    onSent: (frame) => kept.push(frame.at),
    onChange: changed,
    now: () => clock,
  });
  const say = (...numbers) => numbers.forEach((n) => uplink.take({ pcm: Int16Array.of(n), at: n }));
  return { uplink, socket, live, sent, kept, say, over, wait: (ms) => (clock += ms) };
}

test("hands-free everything is sent, but nothing while muted or without a connection", () => {
  const { say, sent, kept, live, socket } = setUp({ mode: "hands-free" });
  say(1, 2);
  live.muted = true;
  say(3);
  live.muted = false;
  socket.open = false;
  say(4);
  assert.deepEqual(sent, [1, 2]);
  assert.deepEqual(kept, [1, 2]);
});

test("what a dead connection swallowed and what was said without one goes with the next, once and in order", () => {
  const { uplink, say, sent, kept, socket } = setUp({ mode: "hands-free" });
  say(1, 2, 3, 4);
  socket.open = false;
  say(5, 6);
  socket.open = true;
  uplink.goOn(2); // one sample a frame: the server has the first two
  say(7);
  assert.deepEqual(sent, [1, 2, 3, 4, 3, 4, 5, 6, 7]);
  assert.deepEqual(kept, [1, 2, 3, 4, 5, 6, 7]);
  uplink.goOn(7); // it has everything: the count went on where it had stood
  assert.deepEqual(sent.slice(9), []);
});

test("what a dead connection had no room for goes with the next, what a slow one had none for is left out", () => {
  const { uplink, say, sent, socket } = setUp({ mode: "hands-free" });
  const { sendAudio } = socket;
  say(1, 2);
  socket.sendAudio = () => false;
  say(3);
  socket.sendAudio = sendAudio;
  say(4);
  socket.sendAudio = () => false;
  say(5, 6);
  socket.sendAudio = sendAudio;
  uplink.goOn(2); // the server has 1 and 2
  assert.deepEqual(sent.slice(3), [3, 4, 5, 6]);
  socket.sendAudio = () => false;
  say(7);
  socket.sendAudio = sendAudio;
  say(8);
  uplink.goOn(7); // 8 arrived, so that 7 is too late
  assert.deepEqual(sent.slice(7), [8]);
});

test("another talk, or one that was long away, is not told what was said before", () => {
  const { uplink, say, sent, socket } = setUp({ mode: "hands-free" });
  socket.open = false;
  say(1, 2);
  socket.open = true;
  uplink.goOn(null);
  assert.deepEqual(sent, []);
  socket.open = false;
  say(...Array.from({ length: KEPT + 10 }, (_, n) => n));
  socket.open = true;
  uplink.goOn(0);
  assert.equal(sent.length, KEPT);
  assert.equal(sent[0], 10);
});

test("what a talk that was ended did not get any more is not said when it is continued", () => {
  const { uplink, say, sent, socket } = setUp({ mode: "hands-free" });
  say(1, 2);
  socket.open = false;
  say(3);
  uplink.clear();
  say(4); // continued: the microphone is open before the connection
  socket.open = true;
  uplink.goOn(2);
  assert.deepEqual(sent, [1, 2, 4]);
});

test("a question that was ended while there was no connection is asked with the next one", async () => {
  const { uplink, say, sent, socket, wait, over } = setUp({ mode: "hold" });
  uplink.hold();
  say(1);
  socket.open = false;
  say(2);
  wait(300);
  uplink.release();
  await over;
  socket.open = true;
  uplink.goOn(0);
  assert.deepEqual(sent, [1, 1, 2, "commit", "create"]);
  uplink.goOn(2); // whoever has all of the sound has what came behind it
  assert.deepEqual(sent.slice(5), []);
});

test("a question whose end had no room is not begun anew with it", async () => {
  const { uplink, say, sent, socket, wait, over } = setUp({ mode: "hold" });
  uplink.hold();
  say(1);
  socket.sendAudio = () => false;
  say(2);
  wait(300);
  uplink.release();
  await over;
  uplink.goOn(1);
  assert.deepEqual(sent, [1, "commit", "create"]);
});

test("the button sends what was said just before it, what is said while it is held, and asks for an answer", async () => {
  const { uplink, say, sent, live, wait, over } = setUp({ mode: "hold" });
  const before = Array.from({ length: PREROLL_FRAMES + 5 }, (_, n) => n);
  say(...before);
  assert.deepEqual(sent, []);
  uplink.hold();
  say(100);
  wait(300);
  uplink.release();
  uplink.release(); // a lost pointer comes after the finger was lifted
  say(101); // the tail
  assert.equal(live.holding, true);
  await over;
  say(102);
  assert.deepEqual(sent, [...before.slice(-PREROLL_FRAMES), 100, 101, "commit", "create"]);
  assert.equal(live.holding, false);
});

test("a button that was only touched asks for nothing", async () => {
  const { uplink, sent, wait, over } = setUp({ mode: "hold" });
  uplink.hold();
  wait(100);
  uplink.release();
  await over;
  assert.deepEqual(sent, ["clear"]);
});
