// The settings panel: fills its menus, keeps the values in the browser, says what changed.

import { languageChoices, languageHint, voiceFor, voicesFor } from "./languages.js";
import { listMicrophones } from "./mic.js";
import { saveSettings } from "./store.js";

function fill(select, choices, chosen) {
  select.replaceChildren(
    ...choices.map(([value, label]) => {
      const option = document.createElement("option");
      option.value = value;
      option.textContent = label;
      return option;
    }),
  );
  select.value = chosen;
  if (select.selectedIndex < 0 && choices.length) select.selectedIndex = 0;
}

const RANGES = {
  patience: ["patienceMs", (value) => asWait(value)],
  speed: ["speed", (value) => `${value.toFixed(2)}×`],
  volume: ["volume", (value) => `${Math.round(value * 100)} %`],
};
const asWait = (ms) => `${(ms / 1000).toFixed(2)} s`;

export class Controls {
  /** onChange(name, settings) after each change by the user. */
  constructor({ $, root, settings, personas, onChange }) {
    Object.assign(this, { $, settings, personas, onChange });
    this.voices = [];
    this.languages = ["auto"];
    this.modes = [...root.querySelectorAll("input[name=mode]")];
    for (const radio of this.modes) {
      radio.checked = radio.value === settings.mode;
      radio.addEventListener("change", () => this.#set("mode", radio.value));
    }
    for (const [id, [name, words]] of Object.entries(RANGES)) this.#range(id, name, words);
    const headphones = $("headphones");
    headphones.checked = settings.headphones;
    headphones.addEventListener("change", () => this.#set("headphones", headphones.checked));
    const names = Object.keys(personas);
    fill($("persona"), names.map((name) => [name, name]), settings.persona);
    for (const [id, name] of [["persona", "persona"], ["device", "deviceId"]]) {
      $(id).addEventListener("change", () => this.#set(name, $(id).value));
    }
    $("voice").addEventListener("change", () => this.#set("voice", $("voice").value));
    $("language").addEventListener("change", () => {
      settings.language = $("language").value;
      settings.voice = voiceFor(settings.language, this.voices, settings.voice)?.id ?? "";
      this.#voices();
      this.#set("language", settings.language);
    });
    fill($("voice"), [["", "Chosen after Start"]], "");
    fill($("language"), [["auto", "Automatic"]], "auto");
    $("language-hint").textContent = "All languages are offered after Start.";
    this.refreshDevices();
  }

  /** Where nothing hears the end of a question, the talk button tells it. */
  holdOnly() {
    this.settings.mode = "hold";
    for (const radio of this.modes) {
      radio.checked = radio.value === "hold";
      radio.disabled = true;
    }
  }

  #set(name, value) {
    this.settings[name] = value;
    saveSettings(this.settings);
    this.onChange(name, this.settings);
  }

  #range(id, name, words) {
    const input = this.$(id);
    const output = this.$(`${id}-value`);
    const show = () => {
      output.textContent = words(Number(input.value));
      input.setAttribute("aria-valuetext", output.textContent);
      input.style.setProperty("--fill", `${(100 * (input.value - input.min)) / (input.max - input.min)}%`);
    };
    input.value = this.settings[name];
    show();
    input.addEventListener("input", () => {
      show();
      if (name === "volume") this.#set(name, Number(input.value));
    });
    input.addEventListener("change", () => this.#set(name, Number(input.value)));
  }

  /** The instructions of the chosen persona. */
  get instructions() {
    return this.personas[this.settings.persona] ?? Object.values(this.personas)[0] ?? "";
  }

  /** Takes what the server can speak and understand; remembered choices that it lacks fall back to its own. */
  offer({ voices, languages, voice }) {
    this.voices = voices;
    this.serverVoice = voice;
    this.languages = languages.includes("auto") ? languages : ["auto", ...languages];
    if (!this.languages.includes(this.settings.language)) this.settings.language = "auto";
    const wanted = voices.some(({ id }) => id === this.settings.voice) ? this.settings.voice : voice;
    this.settings.voice = voiceFor(this.settings.language, voices, wanted)?.id ?? voice;
    const choices = languageChoices(this.languages, voices);
    fill(this.$("language"), choices.map(({ code, label }) => [code, label]), this.settings.language);
    this.#voices();
  }

  /** Takes the voices anew, as one's own come and go; a chosen one that is gone gives way to the server's own. */
  renew(voices) {
    this.voices = voices;
    const gone = this.settings.voice && !voices.some(({ id }) => id === this.settings.voice);
    if (gone) this.#set("voice", this.serverVoice ?? "");
    this.#voices();
  }

  /** Chooses a voice; a language that it does not speak gives way. */
  choose(id) {
    const { settings } = this;
    if (!voicesFor(settings.language, this.voices).some((voice) => voice.id === id)) settings.language = "auto";
    this.$("language").value = settings.language;
    settings.voice = id;
    this.#voices();
    this.#set("voice", id);
  }

  #voices() {
    const { language, voice } = this.settings;
    const unknown = voice ? [] : [["", "Chosen after Start"]];
    fill(this.$("voice"), [...unknown, ...this.voices.map(({ id, name }) => [id, name || id])], voice);
    this.$("language-hint").textContent = languageHint(language, this.voices);
  }

  async refreshDevices() {
    const devices = await listMicrophones();
    const choices = [["", "Default microphone"], ...devices.map(({ id, name }) => [id, name])];
    fill(this.$("device"), choices, this.settings.deviceId);
  }
}
