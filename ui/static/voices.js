// The list of voices: one's own first, each to be heard, used, renamed, taken home and deleted.

import { aboutVoice, greeting } from "./clone-words.js";
import { download } from "./exports.js";
import { icon } from "./icons.js";
import { Problem } from "./problem.js";

export class VoiceList {
  /** onChange(voices) when one came, went or was renamed; onUse(voice). */
  constructor({ $, api, sounds, talk, onChange, onUse }) {
    Object.assign(this, { $, api, sounds, talk, onChange, onUse });
    this.voices = [];
    this.editing = null; // {id, what}: the voice whose name is changed, or that shall be deleted
    this.asking = null; // {id, abort}: whose sentence is being made
    this.problem = new Problem($("list-problem"));
  }

  set(voices) {
    this.voices = voices;
    this.render();
    this.onChange(voices);
  }

  add(voice) {
    this.set([voice, ...this.voices.filter(({ id }) => id !== voice.id)]);
  }

  get own() {
    return this.voices.filter(({ kind }) => kind !== "stock");
  }

  // ---- what the buttons do

  /** Speaks the sentence in this voice, or stops it. */
  async listen(voice) {
    const { id } = voice;
    const stop = this.sounds.playing === id || this.asking?.id === id;
    this.quiet();
    if (stop) return;
    const abort = new AbortController();
    const asking = (this.asking = { id, abort });
    this.problem.hide();
    this.render();
    try {
      const text = this.$("sentence").value.trim() || greeting(voice.language);
      const wav = await this.api.speak(text, id, abort.signal);
      const buffer = await this.sounds.decode(wav);
      if (this.asking !== asking) return;
      if (!buffer) throw new Error("the server's sound could not be read");
      this.sounds.play(id, buffer);
    } catch (error) {
      if (this.asking === asking) this.problem.show(error, { again: () => this.listen(voice), what: "Your sentence" });
    } finally {
      if (this.asking === asking) this.asking = null;
      this.render();
    }
  }

  /** No voice is heard, and none is waited for. */
  quiet() {
    this.asking?.abort.abort();
    this.asking = null;
    this.sounds.stop();
    this.render();
  }

  async #rename(voice, name) {
    if (!name || name === voice.name) return this.#edit(null);
    return this.#doing(async () => {
      const renamed = await this.api.rename(voice.id, name);
      this.#edit(null);
      this.set(this.voices.map((other) => (other.id === voice.id ? renamed : other)));
      this.#focus(voice.id, "rename");
    }, () => this.#rename(voice, name));
  }

  async #remove(voice) {
    return this.#doing(async () => {
      if (this.sounds.playing === voice.id) this.sounds.stop();
      try {
        await this.api.remove(voice.id);
      } catch (error) {
        if (error.status !== 404) throw error; // it is gone already, which is what was wanted
      }
      this.#edit(null);
      this.set(this.voices.filter(({ id }) => id !== voice.id));
      this.$("announce").textContent = `“${voice.name}” is deleted.`;
      this.$("voices-title").focus();
    }, () => this.#remove(voice));
  }

  async #save(voice) {
    return this.#doing(async () => {
      download(`${voice.name.replace(/[^\p{L}\p{N} _-]/gu, "") || "voice"}.wav`, await this.api.sample(voice.id), "audio/wav");
    }, () => this.#save(voice));
  }

  async #doing(work, again) {
    this.problem.hide();
    try {
      await work();
    } catch (error) {
      this.problem.show(error, { again });
    }
  }

  #edit(editing) {
    this.editing = editing;
    this.render();
    if (editing) this.#focus(editing.id, editing.what === "name" ? "name" : "keep");
  }

  #focus(id, part) {
    this.$("own-voices").querySelector(`[data-voice="${id}"] [data-part="${part}"]`)?.focus();
  }

  // ---- what is on screen

  render() {
    const { $ } = this;
    const focused = $("panel-voices").getRootNode().activeElement;
    const [id, part] = [focused?.closest?.("[data-voice]")?.dataset.voice, focused?.dataset.part];
    const typed = part === "name" ? focused.value : null;
    const { own } = this;
    const stock = this.voices.filter(({ kind }) => kind === "stock");
    $("own-none").hidden = own.length > 0;
    $("own-voices").replaceChildren(...own.map((voice) => this.#row(voice)));
    $("stock").hidden = stock.length === 0;
    $("stock-title").textContent = `Voices of this server (${stock.length})`;
    $("stock-voices").replaceChildren(...stock.map((voice) => this.#row(voice)));
    if (!id || !part) return;
    const again = $("panel-voices").querySelector(`[data-voice="${id}"] [data-part="${part}"]`);
    again?.focus();
    if (again && typed !== null) again.value = typed;
  }

  #row(voice) {
    const row = document.createElement("li");
    row.dataset.voice = voice.id;
    const about = make("div", { className: "about" });
    about.append(make("b", { textContent: voice.name }), make("small", { textContent: aboutVoice(voice) }));
    row.append(this.#listenButton(voice), about);
    const what = this.editing?.id === voice.id ? this.editing.what : null;
    if (what === "name") row.append(this.#nameForm(voice));
    else if (what === "delete") row.append(this.#deleteForm(voice));
    else row.append(this.#actions(voice));
    return row;
  }

  #listenButton(voice) {
    const heard = this.sounds.playing === voice.id;
    const asked = this.asking?.id === voice.id;
    const button = this.#button("listen", "", () => this.listen(voice));
    button.className = "round";
    button.innerHTML = icon(heard || asked ? "stop" : "play");
    button.setAttribute("aria-label", heard || asked ? `Stop ${voice.name}` : `Listen to ${voice.name}`);
    button.setAttribute("aria-busy", String(asked));
    button.disabled = !voice.usable;
    return button;
  }

  #actions(voice) {
    const actions = make("div", { className: "row-actions" });
    const used = this.talk.settings.voice === voice.id;
    const use = this.#button("use", used ? "In use" : "Use", () => this.onUse(voice));
    use.setAttribute("aria-pressed", String(used));
    use.setAttribute("aria-label", used ? `${voice.name} is used in the conversation` : `Use ${voice.name} in the conversation`);
    use.disabled = !voice.usable;
    actions.append(use);
    if (voice.kind === "stock") return actions;
    actions.append(
      this.#iconButton("rename", "pencil", `Rename ${voice.name}`, () => this.#edit({ id: voice.id, what: "name" })),
      this.#iconButton("save", "download", `Download the recording of ${voice.name}`, () => this.#save(voice)),
      this.#iconButton("delete", "bin", `Delete ${voice.name}`, () => this.#edit({ id: voice.id, what: "delete" })),
    );
    return actions;
  }

  #nameForm(voice) {
    const form = make("form", { className: "row-edit" });
    const input = make("input", { type: "text", value: voice.name, maxLength: 60 });
    input.dataset.part = "name";
    input.setAttribute("aria-label", "New name");
    const save = make("button", { type: "submit", textContent: "Save" });
    form.append(input, save, this.#button("keep", "Cancel", () => this.#stay(voice, "rename")));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#rename(voice, input.value.trim());
    });
    form.addEventListener("keydown", (event) => event.key === "Escape" && this.#stay(voice, "rename"));
    return form;
  }

  #deleteForm(voice) {
    const form = make("div", { className: "row-edit" });
    form.setAttribute("role", "group");
    const words = make("p", { textContent: `Delete “${voice.name}” and its recording for good?` });
    words.id = "delete-words";
    form.setAttribute("aria-labelledby", words.id);
    const yes = this.#button("yes", "Delete", () => this.#remove(voice));
    yes.className = "danger";
    form.append(words, yes, this.#button("keep", "Keep", () => this.#stay(voice, "delete")));
    form.addEventListener("keydown", (event) => event.key === "Escape" && this.#stay(voice, "delete"));
    return form;
  }

  #stay(voice, part) {
    this.#edit(null);
    this.#focus(voice.id, part);
  }

  #button(part, text, onClick) {
    const button = make("button", { type: "button", textContent: text });
    button.dataset.part = part;
    button.addEventListener("click", onClick);
    return button;
  }

  #iconButton(part, drawing, label, onClick) {
    const button = this.#button(part, "", onClick);
    button.className = "round plain";
    button.innerHTML = icon(drawing);
    button.setAttribute("aria-label", label);
    button.title = label;
    return button;
  }
}

function make(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}
