// The administrator's self-test, in the sidebar: starts it, shows how far it is, then the verdict with its figures.

const POLL_MS = 2000;
const ms = (spread) => (spread ? `${Math.round(spread.p50)} ms, at most ${Math.round(spread.p95)} ms` : "not measured");
const times = (seconds) => (seconds === null ? "not known" : `${seconds.toFixed(2)} s a second of audio`);

/** The figures of a report as [name, value] pairs. */
export function figures(report) {
  return [
    ["Answer after", ms(report.v2v_ms)],
    ["Silent after", ms(report.stop_ms)],
    ["Recognition", times(report.rtf.asr)],
    ["Speech", times(report.rtf.tts)],
    ["Talks at once", String(report.talks.n)],
  ];
}

/** Fills `host` for those who may start a self-test; gives the panel, or null for all others. */
export async function offerSelfTest({ base, host, ask = askServer }) {
  if (!host) return null;
  const me = await ask("GET", new URL("api/me", base)).catch(() => null);
  if (!me?.scopes?.includes("admin")) return null;
  const panel = new SelfTestPanel({ host, ask, url: new URL("api/selftest", base) });
  await panel.look();
  return panel;
}

class SelfTestPanel {
  constructor({ host, ask, url }) {
    Object.assign(this, { ask, url });
    const make = (kind, text = "") => Object.assign(document.createElement(kind), { textContent: text });
    this.make = make;
    this.button = Object.assign(make("button", "Measure this server"), { type: "button" });
    this.words = make("p");
    this.words.setAttribute("role", "status");
    this.list = make("dl");
    this.advice = make("ul");
    this.button.addEventListener("click", () => this.start());
    host.replaceChildren(make("h3", "Self-test"), this.button, this.words, this.list, this.advice);
    host.hidden = false;
  }

  /** Starts one, or goes on with the one that runs. */
  async start() {
    this.button.disabled = true;
    await this.#show(() => this.ask("POST", this.url, {}));
  }

  /** Shows the last one, and follows it to its end. */
  async look() {
    await this.#show(() => this.ask("GET", this.url));
  }

  async #show(asked) {
    try {
      const { job } = await asked();
      this.#draw(job);
      if (job && (job.status === "queued" || job.status === "running")) setTimeout(() => this.look(), POLL_MS);
    } catch (error) {
      this.words.textContent = error.message;
      this.button.disabled = false;
    }
  }

  #draw(job) {
    const runs = job?.status === "queued" || job?.status === "running";
    const report = job?.status === "done" ? job.result : null;
    this.button.disabled = runs;
    this.words.textContent = runs
      ? `It talks to itself: ${Math.round(100 * job.progress)} %`
      : (report?.verdict ?? job?.error?.message ?? "");
    const pairs = report ? figures(report) : [];
    this.list.replaceChildren(...pairs.flatMap(([name, value]) => [this.make("dt", name), this.make("dd", value)]));
    this.advice.replaceChildren(...(report?.advice ?? []).map((words) => this.make("li", words)));
  }
}

async function askServer(method, url, body) {
  const sent = body && { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  const answer = await fetch(url, { method, cache: "no-store", ...sent });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error?.message ?? `The server answered ${answer.status}.`);
  return told;
}
