// What the page shows of its state: words, colour, and which buttons are there and can be pressed.

import { describeConnection, describeState, invitation } from "./status.js";

/** Changes only what is different: what is on screen is looked at 20 times a second, and each change is drawn anew. */
const put = (of, name, value) => {
  if (of[name] !== value) of[name] = value;
};
const press = (button, on) => {
  if (button.getAttribute("aria-pressed") !== String(on)) button.setAttribute("aria-pressed", String(on));
};

/**
 * Draws `state`: live {started, starting, muted, holding, user, agent}, connection (of the socket), open, server (of its
 * start, null before it is known), playing, answering, mic (one is open), mode, startWords, notice (the kind of the one
 * that is shown, or null), sound (it runs), silenced (by the system), chatEmpty, recordingEmpty. `$(id)` finds a part of
 * the page.
 */
export function draw({ $, root }, state) {
  const { live, mic } = state;
  const [name, words] = describeState({
    ...live,
    connection: describeConnection({ ...state, starting: live.starting }),
    server: state.server ?? "loading",
    started: live.started || live.starting,
    playing: state.playing,
    sound: state.sound,
    silenced: state.silenced,
    mode: state.mode,
    mic,
  });
  put($("page").dataset, "state", name);
  put($("state"), "textContent", words);
  const listening = live.started && mic;
  const ready = state.server === "ready";
  put($("start"), "hidden", listening || (live.started && state.notice !== null));
  put($("start").querySelector("span"), "textContent", live.started ? "Use microphone" : state.startWords);
  put($("start"), "disabled", live.starting || !ready);
  put($("live"), "hidden", !live.started);
  put($("mute"), "hidden", !listening);
  press($("mute"), live.muted);
  put($("mute").querySelector("span"), "textContent", live.muted ? "Unmute" : "Mute");
  put($("interrupt"), "disabled", !state.open || !state.answering);
  put($("hold"), "hidden", !listening || state.mode !== "hold");
  press($("hold"), live.holding);
  put($("meters"), "hidden", !live.started);
  put($("welcome"), "hidden", !state.chatEmpty);
  put($("welcome").querySelector("p"), "textContent", invitation({ ...state, started: live.started }));
  put($("new"), "hidden", state.chatEmpty);
  put($("downloads"), "hidden", state.chatEmpty);
  put(root.querySelector("[data-download=wav]"), "hidden", state.recordingEmpty);
  for (const part of [$("text"), $("send"), ...$("examples").children]) put(part, "disabled", !ready);
  if (!state.open) put($("rtt"), "hidden", true);
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
