// The loading screen: asks the server which models are ready until all are.

const POLL_MS = 1000;
const KINDS = { vad: "Speech detection", asr: "Speech recognition", llm: "Language model", tts: "Voice", turn: "First turn" };
const WORDS = { waiting: "waiting", loading: "loading…", ready: "ready", failed: "failed" };

/** One line an engine: {label, words, state}. */
export function engineLine({ kind, name, state, seconds }) {
  const time = state === "ready" && seconds > 0 ? ` in ${seconds.toFixed(1)} s` : "";
  return { label: `${KINDS[kind] ?? kind} (${name})`, words: `${WORDS[state] ?? state}${time}`, state };
}

export class Startup {
  /** onState(state): loading, ready, failed or unreachable. */
  constructor({ url, $, onState }) {
    Object.assign(this, { url, $, onState });
    this.state = "loading";
    this.stopped = false;
  }

  /** Polls until the server is ready, failed, or `stop()` was called. */
  async run() {
    while (!this.stopped) {
      const answer = await this.#ask();
      if (this.stopped) return;
      this.state = answer.state;
      this.#draw(answer);
      this.onState(answer.state);
      if (answer.state === "ready" || answer.state === "failed") return;
      await new Promise((resolve) => {
        setTimeout(resolve, POLL_MS);
      });
    }
  }

  stop() {
    this.stopped = true;
  }

  async #ask() {
    try {
      const answer = await fetch(this.url, { cache: "no-store" });
      const told = await answer.json();
      if (told.state) return told;
      // Refused to those who may not talk; what stands before a server that is away answers with 5xx, in JSON at times.
      return { state: answer.status < 500 ? "ready" : "unreachable", engines: [] };
    } catch {
      return { state: "unreachable", engines: [] };
    }
  }

  #draw({ state, engines = [] }) {
    this.$("loading").hidden = state !== "loading";
    const lines = engines.map(engineLine);
    const ready = lines.filter((line) => line.state === "ready").length;
    this.$("loading-text").textContent = lines.length
      ? `${ready} of ${lines.length} are ready. The first start takes longest.`
      : "The server is starting.";
    const progress = this.$("loading").querySelector(".progress");
    progress.setAttribute("aria-valuemax", String(Math.max(1, lines.length)));
    progress.setAttribute("aria-valuenow", String(ready));
    progress.style.setProperty("--level", lines.length ? ready / lines.length : 0);
    this.$("engines").replaceChildren(
      ...lines.map((line) => {
        const item = document.createElement("li");
        item.dataset.state = line.state;
        const words = document.createElement("span");
        words.textContent = line.words;
        item.append(line.label, words);
        return item;
      }),
    );
  }
}
