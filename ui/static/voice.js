// The conversation page: wires microphone, player, socket and the parts on screen. `boot` is called by the Gradio widget.

import { Captions } from "./captions.js";
import { Chat } from "./chat.js";
import { Controls } from "./controls.js";
import { Ducker } from "./duck.js";
import { Recording, download, toJson, toSrt, toText } from "./exports.js";
import { HttpTalk } from "./http-talk.js";
import { listenToKeys } from "./keyboard.js";
import { withLanguage } from "./languages.js";
import { Levels } from "./levels.js";
import { MIC_RATE, Microphone, MicError } from "./mic.js";
import { Notice } from "./notice.js";
import { Player } from "./player.js";
import { offerSelfTest } from "./selftest.js";
import { openSidebarOnWideScreens } from "./sidebar.js";
import { RealtimeSocket } from "./socket.js";
import { Startup } from "./startup.js";
import { describeState } from "./status.js";
import { loadResume, loadSettings, saveResume } from "./store.js";
import { Tabs } from "./tabs.js";
import { Transcript } from "./transcript.js";
import { Uplink } from "./uplink.js";
import { buildView } from "./view.js";
import { VoicesTab } from "./voices-tab.js";

const QUIET_ERRORS = new Set(["session_not_found", "response_cancel_not_active", "input_audio_buffer_commit_empty", "server_busy"]);

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
    this.pendingTexts = [];
    this.context = null;
    this.player = null;
    this.mic = null;
  }

  /** Binds the view's parts and asks whether the server is ready. */
  mount({ root, $ }) {
    this.$ = $;
    this.root = root;
    this.notice = new Notice($("notice"), (id) => this.#act(id));
    this.chat = new Chat({ list: $("chat"), partial: $("partial"), announce: $("announce") });
    this.levels = new Levels({ orb: $("orb"), micBar: $("mic-level"), outBar: $("out-level") });
    this.transcript = new Transcript({
      onChange: (message) => this.#drawMessage(message),
      onRemove: (id) => this.chat.remove(id),
      clock: () => this.context?.currentTime ?? 0,
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
      onEvent: (event) => this.#event(event),
      onAudio: ({ turn, first, pcm }) => this.player?.play(turn, first, pcm),
      onRoundTrip: (ms) => this.#roundTrip(ms),
      received: () => this.player?.received ?? { turn: 0, next: 0 },
    });
    this.uplink = new Uplink({
      socket: this.socket,
      settings: this.settings,
      live: this.live,
      onSent: ({ pcm, at }) => this.recording.add("user", { at, pcm, rate: MIC_RATE }),
      onChange: () => this.#render(),
    });
    this.voicesTab = new VoicesTab({ $, base: this.base, talk: this });
    const tabs = { talk: [$("tab-talk"), $("panel-talk")], voices: [$("tab-voices"), $("panel-voices")] };
    this.tabs = new Tabs(tabs, (name) => {
      this.uplink.release();
      this.voicesTab.shown(name === "voices");
    });
    this.#bind();
    this.#examples();
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
    window.addEventListener("online", () => this.socket.retryNow(), { signal });
    window.addEventListener("pagehide", () => this.#remember(), { signal });
    document.addEventListener("visibilitychange", () => this.#keepAwake(), { signal });
    document.addEventListener("pointerdown", () => this.#resumeAudio(), { signal, capture: true });
    navigator.mediaDevices?.addEventListener?.("devicechange", () => this.controls.refreshDevices(), { signal });
  }

  #examples() {
    const buttons = this.config.examples.map((text) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.addEventListener("click", () => this.sendText(text));
      return button;
    });
    this.$("examples").replaceChildren(...buttons);
  }

  // ---- start and end

  /** Opens microphone (unless `withMic` is false) and connection. A click must be the cause: browsers ask for one. */
  async start({ withMic = true } = {}) {
    const { live } = this;
    if (live.starting || (live.started && this.mic?.open) || this.startup.state === "failed") return;
    live.starting = true;
    const attempt = (this.attempt = (this.attempt ?? 0) + 1);
    this.notice.hide();
    this.#render();
    try {
      await this.#openAudio();
      if (withMic) await this.#openMic();
      if (attempt !== this.attempt) {
        // ended while the browser asked for permission: a microphone that nobody wants any more is closed again
        this.mic?.stop();
        return;
      }
      live.started = true;
      this.levels.start(this.player.analyser);
      if (this.socket.state === "idle" || this.socket.state === "taken" || this.socket.state === "refused") {
        this.socket.connect(this.socket.resumeToken ?? loadResume());
      }
      this.#keepAwake();
    } catch (error) {
      this.notice.show(error instanceof MicError ? error.kind : "broken");
    } finally {
      live.starting = false;
      this.#render();
    }
  }

  async #openAudio() {
    if (!this.context) {
      if (navigator.audioSession) navigator.audioSession.type = "play-and-record";
      this.context = new AudioContext({ latencyHint: "interactive" });
      this.context.onstatechange = () => this.#audioState();
      for (const name of this.context.audioWorklet ? ["player-worklet.js", "mic-worklet.js"] : []) {
        await this.context.audioWorklet.addModule(new URL(name, import.meta.url));
      }
      this.#newPlayer(24000);
    }
    this.#resumeAudio();
  }

  #newPlayer(sourceRate) {
    this.player?.close();
    this.player = new Player(this.context, {
      sourceRate,
      onPosition: (position) => this.#position(position),
      onReport: (report) => this.socket.send({ type: "voicepod.playback", ...report }),
      onPlayed: ({ turn, first, at, pcm }) => {
        this.recording.add("assistant", { at, pcm, rate: this.player.sourceRate, turn, first });
      },
    });
    this.player.setVolume(this.settings.volume);
    if (this.levels.running) this.levels.start(this.player.analyser);
  }

  async #openMic() {
    this.mic ??= new Microphone(this.context, {
      onFrame: (frame) => this.#frame(frame),
      onLost: () => {
        this.notice.show("lost");
        this.#render();
      },
    });
    await this.mic.start(this.settings.deviceId);
    this.mic.setMuted(this.live.muted);
    this.controls.refreshDevices();
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
    Object.assign(live, { started: false, user: "silent", agent: "idle", holding: false, muted: false });
    this.pendingTexts = [];
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

  #resumeAudio() {
    if (this.context && this.context.state !== "running") this.context.resume().catch(() => {});
  }

  #audioState() {
    if (this.context.state === "running") this.notice.hide("audio");
    else if (this.live.started) this.notice.show("audio");
  }

  // ---- connection and session

  #connection(status) {
    const { live } = this;
    if (status.state === "open") {
      this.notice.hide("unreachable", "server_busy", "taken", "refused");
      this.opened = status;
    } else if (status.state === "waiting" && (status.wasOpen || status.attempt > 1)) {
      this.notice.show("unreachable", status);
    } else if (status.state === "busy") {
      this.notice.show("server_busy", status);
    } else if (status.state === "taken" || status.state === "refused") {
      const { message = "" } = status;
      this.#stopped();
      if (status.state === "taken") saveResume(null);
      this.notice.show(status.state, { message });
    } else if (status.state === "idle" && live.started) {
      this.#stopped();
    }
    if (status.state !== "open") Object.assign(live, { user: "silent", agent: "idle", holding: false });
    this.#render();
  }

  /** The server ended it: microphone off, sound off. */
  #stopped() {
    this.live.started = false;
    this.mic?.stop();
    this.player?.flush(this.player.received.turn);
    this.levels.stop();
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
      this.#newPlayer(session.audio.output.format.rate);
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
    this.#update(this.#preferences());
    this.onSession(session.id);
    const texts = this.pendingTexts;
    this.pendingTexts = [];
    for (const text of texts) this.#say(text);
  }

  #update(session) {
    this.socket.send({ type: "session.update", session: { type: "realtime", ...session } });
  }

  #preferences() {
    const { settings, controls } = this;
    const persona = controls.instructions || this.baseInstructions || "";
    const turnDetection = { type: "server_vad", silence_duration_ms: settings.patienceMs };
    return {
      ...(persona && { instructions: withLanguage(persona, settings.language, controls.voices) }),
      audio: {
        input: {
          transcription: { language: settings.language === "auto" ? null : settings.language },
          turn_detection: settings.mode === "hold" ? null : turnDetection,
        },
        output: { ...(settings.voice && { voice: settings.voice }), speed: settings.speed },
      },
      voicepod: { headphones: settings.headphones },
    };
  }

  #settingChanged(name) {
    if (name === "volume") this.player?.setVolume(this.settings.volume);
    else if (name === "deviceId") this.#switchMic();
    else this.#update(this.#preferences());
    if (name === "mode") this.uplink.release();
    this.#render();
  }

  async #switchMic() {
    if (!this.mic?.open) return;
    try {
      await this.#openMic();
      this.notice.hide("lost", "missing", "busy", "failed");
    } catch (error) {
      this.notice.show(error.kind ?? "failed");
    }
    this.#render();
  }

  // ---- events of the server

  #event(event) {
    const { transcript, captions, live } = this;
    switch (event.type) {
      case "session.created":
        this.#session(event.session);
        break;
      case "voicepod.state":
        live.user = event.user ?? live.user;
        live.agent = event.agent ?? live.agent;
        break;
      case "input_audio_buffer.speech_started":
        live.user = "speaking";
        break;
      case "input_audio_buffer.speech_stopped":
        live.user = "silent";
        break;
      case "voicepod.notice":
        this.#failed(event.message);
        break;
      case "voicepod.rate":
        this.player?.setSourceRate(event.rate);
        break;
      case "voicepod.flush":
        this.player?.flush(event.turn);
        captions.flush(event.turn);
        break;
      case "voicepod.caption":
        captions.add(event);
        break;
      case "conversation.item.added":
        transcript.itemAdded(event.item, event.previous_item_id);
        break;
      case "conversation.item.done":
        transcript.itemDone(event.item);
        break;
      case "conversation.item.truncated":
        transcript.truncated(event.item_id, event.voicepod?.text);
        break;
      case "conversation.item.deleted":
        transcript.remove(event.item_id);
        break;
      case "voicepod.utterance_dropped":
        transcript.remove(event.item_id);
        this.$("partial").textContent = "";
        break;
      case "conversation.item.input_audio_transcription.delta":
        transcript.userPartial(event.item_id, event.delta ?? "");
        break;
      case "conversation.item.input_audio_transcription.completed":
        transcript.userFinal(event.item_id, event.transcript ?? "");
        break;
      case "conversation.item.input_audio_transcription.failed":
        transcript.userFailed(event.item_id);
        break;
      case "voicepod.turn_metrics":
        this.#turnOver(event);
        break;
      case "response.done":
        if (event.response?.status === "failed") this.#failed(event.response.status_details?.error?.message);
        break;
      case "error":
        if (!QUIET_ERRORS.has(event.error?.code)) this.#failed(event.error?.message);
        break;
      default: // the other events of the protocol say nothing that the page shows
    }
    this.#render();
  }

  #turnOver(metrics) {
    if (metrics.outcome === "completed") {
      for (const caption of this.captions.advance(metrics.turn, Infinity)) this.transcript.caption(caption);
    } else {
      this.captions.flush(metrics.turn);
    }
    this.transcript.turnOver(metrics);
  }

  /** A failed turn is told twice, by `error` and by `response.done`; people read it once. */
  #failed(message) {
    const words = message || "Something went wrong with this answer. Please ask again.";
    if (this.chat.lastLine === words) return;
    this.chat.divide(words);
    this.$("announce").textContent = words;
  }

  #position({ turn, played }) {
    for (const caption of this.captions.advance(turn, played)) this.transcript.caption(caption);
    this.#render();
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
    if (this.socket.open) {
      this.#say(words);
      return;
    }
    this.pendingTexts.push(words);
    this.start({ withMic: false });
  }

  async #say(text) {
    this.#resumeAudio();
    await this.interrupt();
    const content = [{ type: "input_text", text }];
    this.socket.send({ type: "conversation.item.create", item: { type: "message", role: "user", content } });
    this.socket.send({ type: "response.create" });
  }

  async #newConversation() {
    await this.interrupt();
    for (const { id } of this.transcript.messages) this.socket.send({ type: "conversation.item.delete", item_id: id });
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
    else if (id === "resume-audio") this.#resumeAudio();
  }

  #startupState(state) {
    if (state === "loading" && !this.announced) {
      this.announced = true; // a server that does not load at start waits for a page that asks for a token
      this.newToken().catch(() => {});
    }
    if (state === "unreachable") this.notice.show("unreachable");
    else if (state === "failed") this.notice.show("start_failed");
    else this.notice.hide("unreachable");
    this.#render();
  }

  #roundTrip(ms) {
    // The least of the last few: what the network needs, without the pauses of a busy page.
    this.roundTrips = [...(this.roundTrips ?? []), ms].slice(-4);
    this.$("rtt").hidden = false;
    this.$("rtt").textContent = `${Math.round(Math.min(...this.roundTrips))} ms`;
    this.$("rtt").title = "Round trip to the server";
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
    const { $, live, settings } = this;
    const [state, words] = describeState({
      ...live,
      connection: live.starting ? "connecting" : this.socket.state,
      server: this.startup?.state ?? "loading",
      started: live.started || live.starting,
      playing: Boolean(this.player?.playing),
      mode: settings.mode,
      mic: Boolean(this.mic?.open),
    });
    const page = $("page");
    if (page.dataset.state !== state) page.dataset.state = state;
    if ($("state").textContent !== words) $("state").textContent = words;
    const listening = live.started && Boolean(this.mic?.open);
    const ready = this.startup ? this.startup.state === "ready" : false;
    $("start").hidden = listening || (live.started && this.notice.kind !== null);
    $("start").querySelector("span").textContent = live.started ? "Use microphone" : this.startWords;
    $("start").disabled = live.starting || !ready;
    $("live").hidden = !live.started;
    $("mute").hidden = !listening;
    $("mute").setAttribute("aria-pressed", String(live.muted));
    $("mute").querySelector("span").textContent = live.muted ? "Unmute" : "Mute";
    $("interrupt").disabled = !this.socket.open || !this.#answering;
    $("hold").hidden = !listening || settings.mode !== "hold";
    $("hold").setAttribute("aria-pressed", String(live.holding));
    $("meters").hidden = !live.started;
    $("welcome").hidden = !this.chat.empty;
    $("new").hidden = this.chat.empty;
    $("downloads").hidden = this.chat.empty;
    this.root.querySelector("[data-download=wav]").hidden = this.recording.empty;
    $("text").disabled = $("send").disabled = !ready;
    for (const button of $("examples").children) button.disabled = !ready;
    if (!live.started) $("rtt").hidden = true;
  }

  dispose() {
    this.abort.abort();
    this.voicesTab?.close();
    this.startup?.stop();
    this.socket?.close();
    this.mic?.stop();
    this.levels?.stop();
    this.context?.close();
  }
}
