// The page's markup. It lives in a shadow root: Gradio's own styles and its DOM patching stop there.

const ICONS = {
  mic: '<path d="M12 3a3 3 0 0 0-3 3v6a3 3 0 0 0 6 0V6a3 3 0 0 0-3-3Z"/><path d="M5 11a7 7 0 0 0 14 0M12 18v3"/>',
  stop: '<rect x="6" y="6" width="12" height="12" rx="2.5" fill="currentColor" stroke="none"/>',
  end: '<path d="M7 7l10 10M17 7 7 17"/>',
  send: '<path d="m5 12 14-7-5 14-3-6-6-1Z"/>',
  plus: '<path d="M12 5v14M5 12h14"/>',
  download: '<path d="M12 4v11m-4.5-4.5L12 15l4.5-4.5M5 20h14"/>',
  sliders: '<path d="M4 8h9m5 0h2M4 16h2m5 0h9"/><circle cx="15.5" cy="8" r="2.2"/><circle cx="8.5" cy="16" r="2.2"/>',
};

const icon = (name) =>
  `<svg viewBox="0 0 24 24" width="20" height="20" fill="none" stroke="currentColor" stroke-width="1.8" ` +
  `stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">${ICONS[name]}</svg>`;

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
    <p class="rtt" id="rtt" hidden></p>
  </header>
  <section class="notice" id="notice" role="alert" hidden><div><h2></h2><p></p></div><div class="actions"></div></section>
  <section class="loading" id="loading" aria-label="Starting" hidden>
    <h2>Getting the models ready</h2><p id="loading-text" role="status"></p><div class="progress" role="progressbar"
    aria-label="Models ready" aria-valuemin="0"><i></i></div><ul id="engines"></ul></section>
  <div class="columns">
    <section class="stage" aria-label="Voice">
      <div class="orb" id="orb" aria-hidden="true"><i class="halo outer"></i><i class="halo"></i><i class="core"></i></div>
      <p class="state" id="state" role="status" aria-live="polite">Ready when you are</p>
      <p class="partial" id="partial" aria-hidden="true"></p>
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
      <div class="welcome" id="welcome"><p>Press Start and speak, or try one of these:</p><div class="examples" id="examples"></div></div>
      <form class="composer" id="composer">
        <label class="hidden" for="text">Message</label>
        <input id="text" type="text" autocomplete="off" maxlength="2000" placeholder="Or type a message…" enterkeyhint="send">
        <button type="submit" class="send" id="send" aria-label="Send">${icon("send")}</button>
      </form>
    </section>
  </div>
  <p class="hidden" id="announce" role="status" aria-live="polite"></p>
</div>`;

/** Builds the page below `host` and gives `$(id)`, which finds its parts, and the root. */
export async function buildView(host, cssUrl) {
  const root = host.shadowRoot ?? host.attachShadow({ mode: "open" });
  root.innerHTML = `<link rel="stylesheet" href="${cssUrl}">${TEMPLATE}`;
  const link = root.querySelector("link");
  await new Promise((resolve) => {
    link.onload = link.onerror = resolve;
  });
  return { root, $: (id) => root.getElementById(id) };
}
