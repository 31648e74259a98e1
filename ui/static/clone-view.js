// The markup of the tab "My voices", inside the page's shadow root.

import { icon } from "./icons.js";

const TO_READ =
  "“The rain had stopped by the time we reached the harbour. Small boats rocked beside the wall, and somewhere a bell " +
  "rang twice. I bought two warm rolls, gave you one, and we watched the ferry turn slowly towards the sea.”";

const problem = (id) =>
  `<div class="problem" id="${id}" role="alert" hidden><p></p><div class="actions"><a href="login" target="_blank" ` +
  `rel="noopener">Log in</a><button type="button">Try again</button></div></div>`;

const step = (id, number, title, body) =>
  `<section class="step" id="${id}" aria-labelledby="${id}-title"><h3 id="${id}-title"><b aria-hidden="true">${number}</b>` +
  `<span>${title}</span></h3><div class="step-body">${body}</div></section>`;

const RECORDING = `
  <div class="drop" id="drop">
    <p id="recording-hint"></p>
    <div class="choices">
      <button type="button" class="filled" id="record" aria-describedby="recording-hint">${icon("mic")}<span>Record</span></button>
      <button type="button" id="choose" aria-describedby="recording-hint">${icon("file")}<span>Choose a file</span></button>
      <input type="file" id="file" accept="audio/*" aria-label="Recording" hidden>
    </div>
    <p class="hint">or drop a sound file here</p>
  </div>
  <div class="recording" id="recording" hidden>
    <p class="hint">Speak as you usually do. If you need something to say, read this aloud:</p>
    <p class="to-read" lang="en">${TO_READ}</p>
    <div class="level"><div class="bar" id="record-level" role="meter" aria-label="Recording level" aria-valuemin="0"
      aria-valuemax="100" aria-valuenow="0"><i></i></div><p><span id="record-words" role="status"></span>
      <span id="record-time"></span></p></div>
    <div class="choices"><button type="button" class="filled" id="record-stop">${icon("stop")}<span>Stop</span></button>
      <button type="button" id="record-drop">Discard</button></div>
  </div>
  <div class="clip" id="clip" hidden>
    <p class="clip-name"><b id="clip-name"></b> <span id="clip-length"></span></p>
    <div class="wave" id="wave"><canvas id="wave-canvas" aria-hidden="true"></canvas>
      <div class="grip start" id="trim-start" role="slider" tabindex="0" aria-label="Start of the selection"></div>
      <div class="grip end" id="trim-end" role="slider" tabindex="0" aria-label="End of the selection"></div></div>
    <p class="hint" id="clip-hint"></p>
    <div class="choices">
      <button type="button" class="filled" id="check">${icon("check")}<span>Check this recording</span></button>
      <button type="button" id="play-clip">${icon("play")}<span>Play the selection</span></button>
      <button type="button" class="quiet" id="clear">Use another</button>
    </div>
  </div>
  <p class="working" id="check-working" role="status" hidden></p>
  ${problem("recording-problem")}`;

const VERDICT = `
  <p class="grade" id="grade" tabindex="-1"></p>
  <ul class="findings" id="findings"></ul>
  <p class="hint" id="measures"></p>
  <div class="usable-only">
    <div class="field"><label for="transcript">What is said in it</label>
      <textarea id="transcript" rows="3" maxlength="2000" aria-describedby="transcript-hint" spellcheck="true"></textarea>
      <p class="hint" id="transcript-hint">Correct it where the server misheard you: the words must match the recording.</p></div>
    <div class="field" id="clone-language-field"><label for="clone-language">Language of the recording</label>
      <select id="clone-language"></select></div>
  </div>`;

const CONSENT = `
  <blockquote id="statement"></blockquote>
  <label class="tick"><input type="checkbox" id="agreed"><span>I have read this and agree</span></label>
  <div class="field"><label for="signer">Your full name, as a signature</label>
    <input type="text" id="signer" autocomplete="name" maxlength="100"></div>
  <div class="phrase" id="phrase">
    <h4 id="phrase-title"></h4>
    <p class="hint" id="phrase-why"></p>
    <p class="to-read" id="phrase-text" hidden></p>
    <div class="choices"><button type="button" id="phrase-record">${icon("mic")}<span>Read a phrase</span></button></div>
    <p class="grade" id="phrase-result" role="status" hidden></p>
    ${problem("phrase-problem")}
  </div>`;

const CREATE = `
  <div class="field"><label for="clone-name">Name of the voice</label>
    <input type="text" id="clone-name" autocomplete="off" maxlength="60"></div>
  <div class="choices"><button type="button" class="filled" id="create" aria-describedby="create-missing">Make the voice</button></div>
  <p class="hint" id="create-missing"></p>
  <p class="working" id="create-working" role="status" hidden></p>
  ${problem("create-problem")}`;

const MADE = `
  <section class="made" id="made" hidden>
    <h3 id="made-title" tabindex="-1"></h3><p id="made-text"></p>
    <div class="choices"><button type="button" class="filled" id="made-use">Use it in the conversation</button>
      <button type="button" id="made-listen"><span>Listen</span></button>
      <button type="button" class="quiet" id="made-again">Make another</button></div>
  </section>`;

const MAKER = `
<section class="card maker" aria-labelledby="maker-title">
  <h2 id="maker-title">Make a voice</h2>
  <p id="maker-text"></p>
  <ul class="fate" id="fate"></ul>
  <p class="why-not" id="why-not" hidden></p>
  ${MADE}
  <div id="steps" hidden>
    ${step("step-recording", 1, "Recording", RECORDING)}
    ${step("step-verdict", 2, "What the server hears", VERDICT)}
    ${step("step-consent", 3, "Your consent", CONSENT)}
    ${step("step-create", 4, "Name", CREATE)}
  </div>
</section>`;

const LIST = `
<section class="card voices" aria-labelledby="voices-title">
  <h2 id="voices-title" tabindex="-1">Voices</h2>
  <div class="field"><label for="sentence">Sentence to hear</label>
    <input type="text" id="sentence" maxlength="300" autocomplete="off" placeholder="Hello, this is how I sound…" aria-describedby="sentence-hint">
    <p class="hint" id="sentence-hint">Left empty, each voice greets you in its own language.</p></div>
  ${problem("list-problem")}
  <h3 id="own-title">Your own</h3>
  <p class="hint" id="own-none">None yet. What you make stands here, for you alone.</p>
  <ul class="rows" id="own-voices" aria-labelledby="own-title"></ul>
  <details class="stock" id="stock"><summary><span id="stock-title">Voices of this server</span></summary>
    <ul class="rows" id="stock-voices" aria-labelledby="stock-title"></ul></details>
</section>`;

export const VOICES = `
<div class="my-voices" id="panel-voices" role="tabpanel" aria-labelledby="tab-voices" hidden>
  <p class="working" id="voices-loading" role="status">Asking the server…</p>
  ${problem("load-problem")}
  <div class="halves" id="voices-content" hidden>${MAKER}${LIST}</div>
</div>`;
