// The tab "My voices": asks the server what it can do when it is first shown, and joins its parts to the conversation.

import { VoicesApi } from "./clone-api.js";
import { VoiceMaker } from "./clone.js";
import { Problem } from "./problem.js";
import { Sounds } from "./sounds.js";
import { VoiceList } from "./voices.js";

export class VoicesTab {
  /** talk: the conversation's page; its settings, controls, interrupt() and hush(on) are used. */
  constructor({ $, base, talk }) {
    Object.assign(this, { $, talk });
    this.api = new VoicesApi(base);
    this.problem = new Problem($("load-problem"));
    this.loaded = false;
    this.sounds = new Sounds({ onChange: () => this.#soundChanged(), volume: () => talk.settings.volume });
    const parts = { $, api: this.api, sounds: this.sounds, talk, onUse: (voice) => this.#use(voice) };
    this.list = new VoiceList({ ...parts, onChange: (voices) => this.#voicesChanged(voices) });
    this.maker = new VoiceMaker({
      ...parts,
      onVoice: (voice) => this.list.add(voice),
      onListen: (voice) => this.list.listen(voice),
      onBusy: () => this.#hush(),
    });
    $("panel-voices").addEventListener("keydown", (event) => event.key === "Escape" && this.list.quiet());
  }

  /** The tab is looked at, or left: what records and plays ends then. */
  shown(on) {
    if (!on) {
      this.maker.pause();
      this.list.quiet();
    } else if (!this.loaded) this.load();
    else this.#render(); // another voice may have been chosen meanwhile
  }

  async load() {
    this.problem.hide();
    this.$("voices-loading").hidden = false;
    try {
      const [about, voices] = await Promise.all([this.api.about(), this.api.voices()]);
      this.loaded = true;
      this.$("voices-content").hidden = false;
      this.maker.offer(about);
      this.list.set(voices);
      this.$("stock").open = about.method === "none";
    } catch (error) {
      this.problem.show(error, { again: () => this.load() });
    }
    this.$("voices-loading").hidden = true;
  }

  #use(voice) {
    this.talk.controls.choose(voice.id);
    this.$("announce").textContent = `“${voice.name}” speaks in the conversation.`;
    this.#render();
  }

  #voicesChanged(voices) {
    this.talk.controls.renew(voices.filter(({ usable }) => usable));
    if (!this.maker.about) return;
    this.maker.about.n_voices = this.list.own.length;
    if (!this.list.own.some(({ id }) => id === this.maker.made?.id)) this.maker.made = null;
    this.#render();
  }

  #soundChanged() {
    this.#hush();
    if (this.loaded) this.#render();
  }

  #render() {
    this.maker.render();
    this.list.render();
  }

  /** What the conversation's microphone would hear now is not meant for it. */
  #hush() {
    this.talk.hush(this.maker.recording || this.sounds.playing !== null);
  }

  close() {
    this.maker.clip.recorder.drop();
    this.maker.phrase.recorder.drop();
    this.sounds.close();
  }
}
