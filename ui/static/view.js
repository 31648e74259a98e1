// The page's markup. It lives in a shadow root: Gradio's own styles and its DOM patching stop there.

import { VOICES } from "./clone-view.js";
import { icon } from "./icons.js";

const field = (id, label, control, hint = "") =>
  `<div class="field"><label for="${id}">${label}</label>${control}` +
  `${hint && `<p class="hint" id="${id}-hint">${hint}</p>`}</div>`;

const range = (id, label, low, high, step) =>
  `<div class="field"><label for="${id}">${label} <output for="${id}" id="${id}-value"></output></label>` +
  `<input type="range" id="${id}" min="${low}" max="${high}" step="${step}"></div>`;

const meter = (id, label) =>
  `<div class="meter"><span>${label}</span><div class="bar" id="${id}" role="meter" aria-label="${label} level" ` +
  `aria-valuemin="0" aria-valuemax="100" aria-valuenow="0"><i></i></div></div>`;

const SETTINGS = `
<details class="settings" id="settings">
  <summary>${icon("sliders")}<span>Settings</span></summary>
  <div class="grid">
    <fieldset class="field"><legend>Talking</legend><div class="segments">
      <label><input type="radio" name="mode" value="hands-free"><span>Hands-free</span></label>
      <label><input type="radio" name="mode" value="hold"><span>Hold to talk</span></label>
    </div></fieldset>
    ${field("device", "Microphone", '<select id="device"></select>')}
    ${field("persona", "Persona", '<select id="persona"></select>')}
    ${field("voice", "Voice", '<select id="voice"></select>')}
    ${field("language", "Language", '<select id="language" aria-describedby="language-hint"></select>', " ")}
    ${range("patience", "Wait after your last word", 300, 1500, 50)}
    ${range("speed", "Speaking rate", 0.5, 2, 0.05)}
    ${range("volume", "Volume", 0, 1, 0.01)}
    <div class="field"><label class="switch"><input type="checkbox" role="switch" id="headphones"
      aria-describedby="headphones-hint"><i></i><span>I use headphones</span></label>
      <p class="hint" id="headphones-hint">Then nothing guards against echo, and a short word interrupts at once.</p></div>
  </div>
</details>`;

const TEMPLATE = `
<div class="page" id="page" data-state="idle">
  <header class="head">
    <div class="brand"><span class="mark" aria-hidden="true"><i></i><i></i><i></i></span><div><h1>Voicepod</h1>
      <p>Talk freely. Nothing leaves this server.</p></div></div>
    <div class="tabs" role="tablist" aria-label="Parts of the page">
      <button type="button" role="tab" id="tab-talk" aria-controls="panel-talk" aria-selected="true"><span>Talk</span></button>
      <button type="button" role="tab" id="tab-voices" aria-controls="panel-voices" aria-selected="false" tabindex="-1">My voices</button>
    </div>
    <p class="rtt" id="rtt" hidden></p>
  </header>
  <section class="notice" id="notice" role="alert" hidden><div><h2></h2><p></p></div><div class="actions"></div></section>
  <section class="loading" id="loading" aria-label="Starting" hidden>
    <h2>Getting the models ready</h2><p id="loading-text" role="status"></p><div class="progress" role="progressbar"
    aria-label="Models ready" aria-valuemin="0"><i></i></div><ul id="engines"></ul></section>
  <div class="columns" id="panel-talk" role="tabpanel" aria-labelledby="tab-talk">
    <section class="stage" aria-label="Voice">
      <div class="orb" id="orb" aria-hidden="true"><i class="halo outer"></i><i class="halo"></i><i class="core"></i></div>
      <p class="state" id="state" role="status" aria-live="polite">Ready when you are</p>
      <p class="partial" id="partial" dir="auto" aria-hidden="true"></p>
      <div class="buttons">
        <button type="button" class="primary" id="start">${icon("mic")}<span>Start</span></button>
        <button type="button" class="hold" id="hold" hidden>${icon("mic")}<span>Hold to talk</span></button>
        <div class="row" id="live" hidden>
          <button type="button" id="interrupt" title="Esc" aria-keyshortcuts="Escape">${icon("stop")}<span>Interrupt</span></button>
          <button type="button" id="mute" aria-pressed="false">${icon("mic")}<span>Mute</span></button>
          <button type="button" class="danger" id="end">${icon("end")}<span>End</span></button>
        </div>
      </div>
      <div class="meters" id="meters" hidden>${meter("mic-level", "Microphone")}${meter("out-level", "Voice")}</div>
      <p class="ai">You are talking to an AI; its voice is synthetic.</p>
      ${SETTINGS}
    </section>
    <section class="talk" aria-label="Conversation">
      <div class="bar-top"><h2>Conversation</h2>
        <button type="button" class="quiet" id="new" hidden>${icon("plus")}<span>New</span></button>
        <details class="menu" id="downloads" hidden><summary>${icon("download")}<span>Download</span></summary><div>
          <button type="button" data-download="txt">Transcript, text</button>
          <button type="button" data-download="json">Transcript, JSON</button>
          <button type="button" data-download="srt">Transcript, subtitles</button>
          <button type="button" data-download="wav">Sound, WAV<small>you left, answers right</small></button>
        </div></details>
      </div>
      <div class="chat" id="chat" role="log" aria-label="Messages" aria-live="off" tabindex="0"></div>
      <div class="welcome" id="welcome"><p></p><div class="examples" id="examples"></div></div>
      <form class="composer" id="composer">
        <label class="hidden" for="text">Message</label>
        <input id="text" type="text" dir="auto" autocomplete="off" maxlength="2000" placeholder="Or type a message…" enterkeyhint="send">
        <button type="submit" class="send" id="send" aria-label="Send">${icon("send")}</button>
      </form>
    </section>
  </div>
  ${VOICES}
  <p class="hidden" id="announce" role="status" aria-live="polite"></p>
</div>`;

/** Builds the page below `host` and gives `$(id)`, which finds its parts, and the root. */
export async function buildView(host, ...cssUrls) {
  const root = host.shadowRoot ?? host.attachShadow({ mode: "open" });
  root.innerHTML = cssUrls.map((url) => `<link rel="stylesheet" href="${url}">`).join("") + TEMPLATE;
  const loaded = [...root.querySelectorAll("link")].map(
    (link) =>
      new Promise((resolve) => {
        link.onload = link.onerror = resolve;
      }),
  );
  await Promise.all(loaded);
  return { root, $: (id) => root.getElementById(id) };
}
