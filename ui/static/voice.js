// The conversation page: wires microphone, player, socket and the parts on screen. `boot` is called by the Gradio widget.

import { Captions } from "./captions.js";
import { Chat } from "./chat.js";
import { Controls } from "./controls.js";
import { Ducker } from "./duck.js";
import { Recording, download, toJson, toSrt, toText } from "./exports.js";
import { HttpTalk } from "./http-talk.js";
import { listenToKeys } from "./keyboard.js";
import { Levels } from "./levels.js";
import { MIC_RATE, MicError, isThere, microphoneDenied } from "./mic.js";
import { Notice } from "./notice.js";
import { preferences } from "./preferences.js";
import { RoundTrips, draw, drawExamples } from "./screen.js";
import { offerSelfTest } from "./selftest.js";
import { ServerEvents } from "./server-events.js";
import { openSidebarOnWideScreens } from "./sidebar.js";
import { RealtimeSocket } from "./socket.js";
import { Sound } from "./sound.js";
import { Startup } from "./startup.js";
import { WAITING } from "./status.js";
import { loadResume, loadSettings, saveResume } from "./store.js";
import { Tabs } from "./tabs.js";
import { Transcript } from "./transcript.js";
import { Typed } from "./typed.js";
import { Uplink } from "./uplink.js";
import { buildView } from "./view.js";
import { VoicesTab } from "./voices-tab.js";

const ASKING_MS = 1500; // a device that may be used is open by then: the browser asks, or another program holds it

let current = null;

/** Starts the page inside `element`, once: Gradio runs the widget's script again when it shows the widget anew. */
export async function boot({ element, config, newToken, onSession }) {
  current?.dispose();
  const page = new VoicePage({ config, newToken, onSession });
  current = page;
  const host = element.querySelector(".voicepod-host");
  host.voicepod = page; // for tests and for looking into a live page
  const view = await buildView(host, ...["voice.css", "clone.css"].map((name) => new URL(name, import.meta.url)));
  if (current !== page) return;
  page.mount(view);
  element.dataset.ready = "true";
}

class VoicePage {
  constructor({ config, newToken, onSession }) {
    Object.assign(this, { config, newToken, onSession });
    this.base = new URL(".", document.baseURI);
    this.abort = new AbortController();
    this.settings = loadSettings();
    this.captions = new Captions();
    this.recording = new Recording();
    this.ducker = new Ducker();
    this.live = { user: "silent", agent: "idle", started: false, starting: false, muted: false, holding: false };
  }

  get player() {
    return this.sound?.player ?? null;
  }

  get mic() {
    return this.sound?.mic ?? null;
  }

  /** Binds the view's parts and asks whether the server is ready. */
  mount({ root, $ }) {
    this.$ = $;
    this.root = root;
    this.notice = new Notice($("notice"), (id) => this.#act(id));
    this.chat = new Chat({ list: $("chat"), partial: $("partial"), announce: $("announce") });
    this.levels = new Levels({ orb: $("orb"), micBar: $("mic-level"), outBar: $("out-level") });
    this.roundTrips = new RoundTrips($("rtt"));
    this.sound = new Sound({
      settings: this.settings,
      live: this.live,
      recording: this.recording,
      levels: this.levels,
      onFrame: (frame) => this.#frame(frame),
      onMicrophone: () => {
        this.controls.refreshDevices();
        this.#render();
      },
      onLost: () => this.#microphoneLost(),
      onPosition: (position) => this.#position(position),
      onReport: (report) => this.socket.send({ type: "voicepod.playback", ...report }),
      onContext: () => this.#audioState(),
    });
    this.transcript = new Transcript({
      onChange: (message) => this.#drawMessage(message),
      onRemove: (id) => this.chat.remove(id),
      clock: () => this.sound.context?.currentTime ?? 0,
    });
    this.events = new ServerEvents({
      transcript: this.transcript,
      captions: this.captions,
      live: this.live,
      sound: this.sound,
      onSession: (session) => this.#session(session),
      onDropped: () => {
        $("partial").textContent = "";
      },
      say: (words) => this.#line(words),
    });
    this.controls = new Controls({
      $,
      root,
      settings: this.settings,
      personas: this.config.personas,
      onChange: (name) => this.#settingChanged(name),
    });
    const url = new URL("v1/realtime?model=voicepod", this.base);
    url.protocol = url.protocol.replace("http", "ws");
    const Connection = this.config.socket === false ? HttpTalk : RealtimeSocket;
    this.socket = new Connection({
      base: this.base,
      url: url.href,
      newToken: this.newToken,
      onStatus: (status) => this.#connection(status),
      onEvent: (event) => {
        this.events.take(event);
        this.typed.take(event);
        this.#render();
      },
      onAudio: ({ turn, first, pcm }) => this.player?.play(turn, first, pcm),
      onRoundTrip: (ms) => this.#answered(ms),
      received: () => this.player?.received ?? { turn: 0, next: 0 },
    });
    this.typed = new Typed({ socket: this.socket, say: (typed) => this.#say(typed) });
    this.uplink = new Uplink({
      socket: this.socket,
      settings: this.settings,
      live: this.live,
      onSent: (frame) => this.sound.sent(frame),
      onChange: () => this.#render(),
    });
    this.voicesTab = new VoicesTab({ $, base: this.base, talk: this });
    const tabs = { talk: [$("tab-talk"), $("panel-talk")], voices: [$("tab-voices"), $("panel-voices")] };
    this.tabs = new Tabs(tabs, (name) => {
      this.uplink.release();
      this.voicesTab.shown(name === "voices");
    });
    this.#bind();
    drawExamples($("examples"), this.config.examples, (text) => this.sendText(text));
    this.#startLabel();
    this.startup = new Startup({
      url: new URL("api/startup", this.base),
      $,
      onState: (state) => this.#startupState(state),
    });
    this.startup.run();
    openSidebarOnWideScreens();
    offerSelfTest({ base: this.base, host: document.querySelector("#vp-selftest") });
    this.#render();
  }

  #bind() {
    const { $ } = this;
    const { signal } = this.abort;
    const click = (id, handler) => $(id).addEventListener("click", handler);
    click("start", () => this.start());
    click("end", () => this.end());
    click("mute", () => this.#mute(!this.live.muted));
    click("interrupt", () => this.interrupt());
    click("new", () => this.#newConversation());
    $("hold").addEventListener("pointerdown", (event) => {
      event.preventDefault();
      $("hold").setPointerCapture(event.pointerId);
      this.#hold();
    });
    for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) {
      $("hold").addEventListener(type, () => this.uplink.release());
    }
    $("hold").addEventListener("contextmenu", (event) => event.preventDefault());
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.sendText($("text").value);
      $("text").value = "";
    });
    $("downloads").addEventListener("click", ({ target }) => this.#download(target.closest("[data-download]")));
    listenToKeys({
      signal,
      onInterrupt: () => this.interrupt(),
      canHold: () => this.live.started && this.settings.mode === "hold" && this.tabs.shown === "talk",
      onHold: () => this.#hold(),
      onRelease: () => this.uplink.release(),
    });
    const changed = () => {
      this.socket.retryNow();
      this.socket.doubt();
    };
    for (const name of ["online", "offline"]) window.addEventListener(name, changed, { signal });
    navigator.connection?.addEventListener?.("change", changed, { signal });
    document.addEventListener("resume", changed, { signal });
    window.addEventListener("pagehide", () => this.#remember(), { signal });
    document.addEventListener("visibilitychange", () => this.#shown(), { signal });
    document.addEventListener("pointerdown", () => this.sound.resume(), { signal, capture: true });
    navigator.mediaDevices?.addEventListener?.("devicechange", () => this.#devicesChanged(), { signal });
  }

  // ---- start and end

  /** Opens microphone (unless `withMic` is false) and connection. A click must be the cause: browsers ask for one. */
  async start({ withMic = true } = {}) {
    const { live } = this;
    if (live.started && (this.mic?.open || !withMic)) return;
    if ((live.starting && withMic) || this.startup.state === "failed") return;
    live.starting = true;
    const attempt = (this.attempt = (this.attempt ?? 0) + 1);
    this.mic?.stop(); // who types while the browser asks for the microphone waits for it no longer
    this.notice.hide();
    this.#render();
    const asking = withMic && setTimeout(() => this.#asking(), ASKING_MS);
    try {
      await this.sound.open();
      if (withMic) await this.sound.openMic();
      if (attempt !== this.attempt) return; // ended, or typed, meanwhile
      this.notice.hide("asking");
      live.started = true;
      this.levels.start(this.player.analyser);
      if (this.socket.state === "idle" || this.socket.state === "taken" || this.socket.state === "refused") {
        this.socket.connect(this.socket.resumeToken ?? loadResume());
      }
      this.#keepAwake();
    } catch (error) {
      if (attempt === this.attempt) this.notice.show(error instanceof MicError ? error.kind : "broken");
    } finally {
      clearTimeout(asking);
      if (attempt === this.attempt) live.starting = false;
      this.#render();
    }
  }

  /** Ends the connection and closes the microphone; the conversation can be continued for some minutes. */
  async end() {
    const { live } = this;
    this.attempt = (this.attempt ?? 0) + 1;
    this.#remember();
    this.mic?.stop();
    // What plays is cut, and the server told how far it was heard, or it would count the rest as heard too.
    await Promise.race([this.interrupt(), new Promise((done) => setTimeout(done, 300))]);
    this.socket.close();
    this.levels.stop();
    this.notice.hide();
    Object.assign(live, { started: false, starting: false, user: "silent", agent: "idle", holding: false, muted: false });
    this.typed.clear();
    this.uplink.clear();
    this.#keepAwake();
    this.#startLabel();
    this.#render();
    this.$("start").focus();
  }

  #remember() {
    if (this.socket.resumeToken) saveResume(this.socket.resumeToken, this.socket.resumeS);
  }

  #startLabel() {
    const again = this.socket.resumeToken ?? loadResume();
    this.startWords = again ? "Continue" : "Start";
  }

  async #keepAwake() {
    if (!this.live.started) {
      this.wakeLock?.release();
      this.wakeLock = null;
    } else if (document.visibilityState === "visible" && navigator.wakeLock) {
      this.wakeLock = await navigator.wakeLock.request("screen").catch(() => null);
    }
  }

  #answered(roundTripMs) {
    this.roundTrips.add(roundTripMs);
    if (!this.socket.slow) this.notice.hide("slow");
    else if (this.notice.kind === null && this.mic?.open) this.notice.show("slow");
  }

  /** Hidden or seen again: a machine that has slept wakes into this. */
  #shown() {
    this.#keepAwake();
    if (document.visibilityState === "visible") this.socket.doubt();
  }

  #audioState() {
    if (this.sound.runs) this.notice.hide("audio");
    else if (this.live.started) this.notice.show("audio");
    this.#render();
  }

  // ---- the microphone comes and goes

  #asking() {
    this.notice.show("asking");
    this.#render();
  }

  async #microphoneLost() {
    this.#render();
    const denied = await microphoneDenied();
    if (this.mic.open) return;
    this.notice.show(denied ? "denied" : "lost");
    this.#render();
  }

  /** A device that was pulled out and is back is used again; another one only if the user says so. */
  async #devicesChanged() {
    this.controls.refreshDevices();
    if (this.notice.kind === "lost" && (await isThere(this.mic.device))) this.start();
  }

  // ---- connection and session

  #connection(status) {
    const { live } = this;
    if (status.state === "open") {
      this.notice.hide(...Object.keys(WAITING), "taken", "refused", "slow");
      if (!this.sound.runs) this.notice.show("audio");
    } else if (status.state === "waiting" && (status.wasOpen || status.attempt > 1)) {
      this.notice.show("unreachable", status);
    } else if (status.state === "busy" || status.state === "loading") {
      this.notice.show(`server_${status.state}`, status);
    } else if (status.state === "taken" || status.state === "refused") {
      const { message = "" } = status;
      if (status.state === "taken") saveResume(null);
      this.#stopped();
      this.notice.show(status.state, { message });
    } else if (status.state === "idle" && live.started) {
      this.#stopped();
    }
    if (status.state !== "open") Object.assign(live, { user: "silent", agent: "idle" });
    this.#render();
  }

  /** The server ended it: microphone off, sound off. */
  #stopped() {
    Object.assign(this.live, { started: false, holding: false });
    this.sound.stop();
    this.player?.flush(this.player.received.turn);
    this.#keepAwake();
    this.#startLabel();
  }

  #session(session) {
    const extra = session.voicepod ?? {};
    if (!extra.resumed) {
      if (!this.chat.empty) this.chat.divide("The earlier conversation has ended. This is a new one.");
      this.captions.reset();
      this.transcript.turns.clear();
      this.baseInstructions = session.instructions ?? "";
      this.sound.newPlayer(session.audio.output.format.rate);
    }
    if (extra.hold_only) this.controls.holdOnly();
    this.player.setSourceRate(session.audio.output.format.rate);
    if (extra.resumed) this.player.reportAgain();
    saveResume(extra.resume_token, this.socket.resumeS);
    this.controls.offer({
      voices: extra.voices ?? [],
      languages: extra.languages ?? ["auto"],
      voice: session.audio.output.voice,
    });
    // The rate goes alone, so that no refused preference can leave the server with another idea of the audio.
    this.#update({ audio: { input: { format: { type: "audio/pcm", rate: MIC_RATE } } } });
    this.#update(preferences(this.settings, this.controls, this.baseInstructions));
    this.uplink.goOn(extra.resumed ? (extra.received_samples ?? null) : null);
    this.onSession(session.id);
  }

  #update(session) {
    this.socket.send({ type: "session.update", session: { type: "realtime", ...session } });
  }

  #settingChanged(name) {
    if (name === "volume") this.player?.setVolume(this.settings.volume);
    else if (name === "deviceId") this.#switchMic();
    else this.#update(preferences(this.settings, this.controls, this.baseInstructions));
    if (name === "mode") this.uplink.release();
    this.#render();
  }

  async #switchMic() {
    if (!this.mic?.open) return;
    try {
      await this.sound.openMic();
      this.notice.hide("lost", "missing", "busy", "failed");
    } catch (error) {
      this.notice.show(error.kind ?? "failed");
    }
    this.#render();
  }

  #position({ turn, played }) {
    this.events.heard(turn, played);
    this.#render();
  }

  /** A line of the page's own in the chat, read aloud to those who cannot see it; once in a row. */
  #line(words) {
    if (this.chat.lastLine === words) return;
    this.chat.divide(words);
    this.$("announce").textContent = words;
  }

  #drawMessage(message) {
    this.chat.show(message, this.transcript.messages.indexOf(message));
    this.#render();
  }

  // ---- talking

  #frame({ pcm, rms, at }) {
    const { live, settings } = this;
    this.levels.setMic(live.muted ? 0 : rms);
    const guard = !settings.headphones && !live.muted && settings.mode === "hands-free";
    const speaking = guard && this.player.playing;
    this.player.duck(this.ducker.feed(rms, { speaking, confirmed: live.user === "speaking" }));
    this.uplink.take({ pcm, at });
  }

  #hold() {
    const { live } = this;
    if (live.holding || !this.socket.open || !this.mic?.open) return;
    this.interrupt();
    if (live.muted) this.#mute(false);
    this.uplink.hold();
    this.#render();
  }

  #mute(muted) {
    this.live.muted = muted;
    this.mic?.setMuted(muted);
    this.#render();
  }

  /** Mutes the talk while the other tab records or plays something, unless the user has; `on` false ends it. */
  hush(on) {
    if (on ? this.live.muted || !this.mic?.open : !this.hushed) return;
    this.hushed = on;
    this.#mute(on);
  }

  get #answering() {
    return this.live.agent !== "idle" || Boolean(this.player?.playing);
  }

  /** Silence here at once, then the server is told what was heard and that it must stop. */
  async interrupt() {
    if (!this.socket.open || !this.#answering) return;
    const { turn } = this.player.received;
    this.captions.flush(turn);
    await this.player.flush(turn);
    this.socket.send({ type: "response.cancel" });
  }

  /** Says `text` in place of speech; connects without a microphone if there is no connection yet. */
  sendText(text) {
    const words = text.trim();
    if (!words) return;
    this.typed.add(words);
    if (this.notice.kind in WAITING) this.#line("Your message waits here, and is sent as soon as the talk goes on.");
    this.start({ withMic: false });
  }

  async #say({ id, text }) {
    this.sound.resume();
    await this.interrupt();
    const item = { id, type: "message", role: "user", content: [{ type: "input_text", text }] };
    this.socket.send({ type: "conversation.item.create", event_id: id, item });
    this.socket.send({ type: "response.create" });
    this.socket.doubt();
  }

  async #newConversation() {
    await this.interrupt();
    for (const { id } of this.transcript.messages) this.socket.send({ type: "conversation.item.delete", item_id: id });
    this.typed.clear();
    if (!this.socket.open) {
      this.socket.resumeToken = null;
      saveResume(null);
    }
    this.transcript.clear();
    this.chat.clear();
    this.recording.clear();
    this.#startLabel();
    this.#render();
  }

  // ---- what is on screen

  #act(id) {
    if (id === "retry-mic" || id === "start") this.start();
    else if (id === "text-only") {
      this.notice.hide();
      this.start({ withMic: false });
      this.$("text").focus();
    } else if (id === "retry-now") this.socket.retryNow();
    else if (id === "give-up") this.end();
    else if (id === "resume-audio") this.sound.resume();
  }

  #startupState(state) {
    if (state === "loading" && !this.announced) {
      this.announced = true; // a server that does not load at start waits for a page that asks for a token
      this.newToken().catch(() => {});
    }
    if (state === "unreachable") this.notice.show("away");
    else if (state === "failed") this.notice.show("start_failed");
    else this.notice.hide("away");
    this.#render();
  }

  #download(button) {
    if (!button) return;
    const stamp = new Date().toISOString().slice(0, 16).replaceAll(":", "-");
    const name = `voicepod-${stamp}.${button.dataset.download}`;
    const { messages } = this.transcript;
    const about = { title: "Voicepod conversation", saved_at: new Date().toISOString() };
    if (button.dataset.download === "txt") download(name, toText(messages), "text/plain");
    if (button.dataset.download === "json") download(name, toJson(messages, about), "application/json");
    if (button.dataset.download === "srt") download(name, toSrt(messages), "application/x-subrip");
    if (button.dataset.download === "wav") download(name, this.recording.toWav(), "audio/wav");
    this.$("downloads").open = false;
  }

  #render() {
    draw(this, {
      live: this.live,
      connection: this.socket.state,
      open: this.socket.open,
      server: this.startup?.state ?? null,
      playing: Boolean(this.player?.playing),
      answering: this.#answering,
      mic: Boolean(this.mic?.open),
      silenced: Boolean(this.mic?.silenced),
      mode: this.settings.mode,
      startWords: this.startWords,
      notice: this.notice.kind,
      sound: Boolean(this.sound?.runs),
      chatEmpty: this.chat.empty,
      recordingEmpty: this.recording.empty,
    });
  }

  dispose() {
    this.abort.abort();
    this.voicesTab?.close();
    this.startup?.stop();
    this.socket?.close();
    this.sound?.close();
  }
}
