import assert from "node:assert/strict";
import { test } from "node:test";

import { figures, offerSelfTest } from "../../ui/static/selftest.js";

const REPORT = {
  v2v_ms: { p50: 612.4, p95: 934, n: 8 },
  stop_ms: null,
  rtf: { asr: 0.08, tts: null },
  talks: { n: 3, limit: "seats" },
  verdict: "Not measured: interruption.",
  advice: ["Use a smaller model."],
};

class Element {
  constructor(kind) {
    Object.assign(this, { kind, children: [], textContent: "", hidden: true, disabled: false, listeners: {} });
  }
  setAttribute() {}
  addEventListener(name, listener) {
    this.listeners[name] = listener;
  }
  replaceChildren(...children) {
    this.children = children;
  }
}

globalThis.document = { createElement: (kind) => new Element(kind) };

function server(scopes, ...jobs) {
  const asked = [];
  const ask = async (method, url, body) => {
    asked.push([method, url.pathname, body]);
    if (url.pathname === "/api/me") return { scopes };
    const job = jobs.shift();
    if (job instanceof Error) throw job;
    return { job };
  };
  return { ask, asked };
}

const base = new URL("http://pod.example/");

test("the figures of a report are told, and what was not measured as well", () => {
  assert.deepEqual(figures(REPORT), [
    ["Answer after", "612 ms, at most 934 ms"],
    ["Silent after", "not measured"],
    ["Recognition", "0.08 s a second of audio"],
    ["Speech", "not known"],
    ["Talks at once", "3"],
  ]);
});

test("who is no administrator is shown nothing and asks nothing more", async () => {
  const host = new Element("div");
  const { ask, asked } = server(["talk", "speech"]);
  assert.equal(await offerSelfTest({ base, host, ask }), null);
  assert.equal(host.hidden, true);
  assert.deepEqual(asked, [["GET", "/api/me", undefined]]);
  assert.equal(await offerSelfTest({ base, host: null, ask }), null);
});

test("an administrator starts it, sees how far it is, then the verdict", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const host = new Element("div");
  const running = { status: "running", progress: 0.4 };
  const { ask, asked } = server(["admin"], null, running, { status: "done", progress: 1, result: REPORT });
  const panel = await offerSelfTest({ base, host, ask });
  assert.equal(host.hidden, false);
  assert.equal(panel.button.disabled, false);
  await panel.start();
  assert.match(panel.words.textContent, /40 %/);
  assert.equal(panel.button.disabled, true);
  t.mock.timers.tick(2000);
  await new Promise(setImmediate);
  assert.equal(panel.words.textContent, REPORT.verdict);
  assert.equal(panel.list.children.length, 10);
  assert.deepEqual(panel.advice.children.map((item) => item.textContent), REPORT.advice);
  assert.equal(panel.button.disabled, false);
  assert.deepEqual(asked.slice(1), [
    ["GET", "/api/selftest", undefined],
    ["POST", "/api/selftest", {}],
    ["GET", "/api/selftest", undefined],
  ]);
});

test("a refusal is told, and it can be tried again", async () => {
  const { ask } = server(["admin"], null, new Error("people are talking"));
  const panel = await offerSelfTest({ base, host: new Element("div"), ask });
  await panel.start();
  assert.equal(panel.words.textContent, "people are talking");
  assert.equal(panel.button.disabled, false);
});

test("a self-test that failed says why", async () => {
  const job = { status: "failed", progress: 0, error: { message: "all talks are taken" } };
  const { ask } = server(["admin"], job);
  const panel = await offerSelfTest({ base, host: new Element("div"), ask });
  assert.equal(panel.words.textContent, "all talks are taken");
});
