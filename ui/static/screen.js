// What the page shows of its state: words, colour, and which buttons are there and can be pressed.

import { describeState } from "./status.js";

/**
 * Draws `state`: live {started, starting, muted, holding, user, agent}, connection (of the socket), open, server (of its
 * start, null before it is known), playing, answering, mic (one is open), mode, startWords, noticed (a notice is shown),
 * chatEmpty, recordingEmpty. `$(id)` finds a part of the page.
 */
export function draw({ $, root }, state) {
  const { live, mic } = state;
  const [name, words] = describeState({
    ...live,
    connection: live.starting ? "connecting" : state.connection,
    server: state.server ?? "loading",
    started: live.started || live.starting,
    playing: state.playing,
    mode: state.mode,
    mic,
  });
  const page = $("page");
  if (page.dataset.state !== name) page.dataset.state = name;
  if ($("state").textContent !== words) $("state").textContent = words;
  const listening = live.started && mic;
  const ready = state.server === "ready";
  $("start").hidden = listening || (live.started && state.noticed);
  $("start").querySelector("span").textContent = live.started ? "Use microphone" : state.startWords;
  $("start").disabled = live.starting || !ready;
  $("live").hidden = !live.started;
  $("mute").hidden = !listening;
  $("mute").setAttribute("aria-pressed", String(live.muted));
  $("mute").querySelector("span").textContent = live.muted ? "Unmute" : "Mute";
  $("interrupt").disabled = !state.open || !state.answering;
  $("hold").hidden = !listening || state.mode !== "hold";
  $("hold").setAttribute("aria-pressed", String(live.holding));
  $("meters").hidden = !live.started;
  $("welcome").hidden = !state.chatEmpty;
  $("new").hidden = state.chatEmpty;
  $("downloads").hidden = state.chatEmpty;
  root.querySelector("[data-download=wav]").hidden = state.recordingEmpty;
  $("text").disabled = $("send").disabled = !ready;
  for (const button of $("examples").children) button.disabled = !ready;
  if (!live.started) $("rtt").hidden = true;
}

/** One button for each example question. */
export function drawExamples(host, examples, onChosen) {
  const buttons = examples.map((text) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => onChosen(text));
    return button;
  });
  host.replaceChildren(...buttons);
}

/** Shows round trips to the server: the least of the last few, what the network needs without pauses of a busy page. */
export class RoundTrips {
  constructor(element) {
    this.element = element;
    this.last = [];
  }

  add(ms) {
    this.last = [...this.last, ms].slice(-4);
    this.element.hidden = false;
    this.element.textContent = `${Math.round(Math.min(...this.last))} ms`;
    this.element.title = "Round trip to the server";
  }
}
