// Part of step 3: a phrase of the server's is read aloud, so that nobody hands in another person's recording.

import { describePhrase, microphoneProblem } from "./clone-words.js";
import { Problem } from "./problem.js";
import { Recorder } from "./recorder.js";

const LONGEST_S = 20;
const BUTTONS = { none: "Show the phrase", shown: "Record it", recording: "Stop", checking: "Checking…", done: "Read it again" };

export class PhraseStep {
  /** onState() when something else is to be shown. */
  constructor({ $, api, sounds, talk, onState }) {
    Object.assign(this, { $, api, talk, sounds, onState });
    this.problem = new Problem($("phrase-problem"));
    this.recorder = new Recorder(sounds, {
      onLevel: () => {},
      onDone: (blob) => this.#check(blob),
    });
    $("phrase-record").addEventListener("click", () => this.#press());
    this.clear();
  }

  /** Forgets the phrase and what was heard. */
  clear() {
    this.recorder.drop();
    Object.assign(this, { state: "none", phrase: null, sample: null });
    this.problem.hide();
  }

  get matches() {
    return Boolean(this.sample?.phrase?.matches);
  }

  async #press() {
    if (this.state === "none") await this.#ask();
    else if (this.state === "recording") this.recorder.stop();
    else if (this.state !== "checking") await this.#record();
  }

  #to(state) {
    this.state = state;
    this.onState();
  }

  async #ask() {
    this.problem.hide();
    try {
      this.phrase = await this.api.phrase(this.$("clone-language").value);
      this.#to("shown");
    } catch (error) {
      this.problem.show(error, { again: () => this.#ask() });
    }
  }

  async #record() {
    this.problem.hide();
    this.sounds.stop();
    this.talk.interrupt();
    try {
      await this.recorder.start({ deviceId: this.talk.settings.deviceId, maxS: LONGEST_S });
      this.#to("recording");
    } catch (error) {
      this.problem.tell(microphoneProblem(error), () => this.$("phrase-record").click());
    }
  }

  async #check(blob) {
    this.#to("checking");
    try {
      this.sample = await this.api.check(blob, { phraseId: this.phrase.id });
      this.#to("done");
    } catch (error) {
      if (error.status === 404) this.clear(); // a phrase is good for some minutes only
      this.#to(error.status === 404 ? "none" : "shown");
      if (error.status === 404) this.problem.tell("This phrase has expired. Ask for a new one.");
      else this.problem.show(error, { again: () => this.#check(blob), what: "What you said" });
    }
  }

  render({ phrase_required: required }) {
    const { $, state } = this;
    $("phrase-title").textContent = required ? "Read a phrase aloud" : "Read a phrase aloud (optional)";
    $("phrase-why").textContent =
      "It shows that the recording is of you. The server compares the words and the voice, and notes it with your consent.";
    $("phrase-text").hidden = !this.phrase;
    $("phrase-text").lang = $("clone-language").value;
    $("phrase-text").textContent = this.phrase ? `“${this.phrase.text}”` : "";
    $("phrase-record").querySelector("span").textContent = BUTTONS[state];
    $("phrase-record").disabled = state === "checking";
    $("phrase-record").classList.toggle("on", state === "recording");
    const result = state === "done" ? describePhrase(this.sample.phrase) : null;
    $("phrase-result").hidden = !result;
    if (!result) return;
    $("phrase-result").dataset.grade = this.matches ? "good" : "poor";
    $("phrase-result").textContent = result;
  }
}
