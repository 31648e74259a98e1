// Making a voice: a recording, the server's verdict, consent, a name. Nothing that was entered is lost when a step fails.

import { ClipStep } from "./clip-step.js";
import { ADVICE, GRADES, fate, listed, measures, missing, promise, sentence, whyNot } from "./clone-words.js";
import { languageName } from "./languages.js";
import { PhraseStep } from "./phrase-step.js";
import { Problem } from "./problem.js";

export class VoiceMaker {
  /** onVoice(voice) when one was made; onUse(voice) and onListen(voice) for its buttons; onBusy() as recordings come and go. */
  constructor({ $, api, sounds, talk, onVoice, onUse, onListen, onBusy }) {
    Object.assign(this, { $, api, sounds, talk, onVoice });
    this.about = null;
    this.sample = null;
    this.made = null;
    this.creating = false;
    this.checking = null;
    this.problem = new Problem($("create-problem"));
    const onState = () => {
      this.render();
      onBusy();
    };
    const onChange = () => this.#forgetSample();
    this.clip = new ClipStep({ $, sounds, talk, onChange, onCheck: () => this.check(), onState });
    this.phrase = new PhraseStep({ $, api, sounds, talk, onState });
    for (const id of ["transcript", "signer", "clone-name"]) $(id).addEventListener("input", () => this.render());
    $("agreed").addEventListener("change", () => this.render());
    $("create").addEventListener("click", () => this.create());
    $("made-use").addEventListener("click", () => onUse(this.made));
    $("made-listen").addEventListener("click", () => onListen(this.made));
    $("made-again").addEventListener("click", () => this.again());
  }

  /** Takes what the server says of itself. */
  offer(about) {
    this.about = this.clip.about = about;
    const { $ } = this;
    const { title, text, button } = promise(about);
    $("maker-title").textContent = title;
    $("maker-text").textContent = text;
    $("create").textContent = button;
    $("fate").replaceChildren(...fate(about).map((words) => element("li", words)));
    $("statement").textContent = about.statement.text;
    $("clone-language-field").hidden = about.languages.length < 2;
    $("clone-language").replaceChildren(...about.languages.map((code) => new Option(languageName(code), code)));
    this.render();
  }

  get recording() {
    return this.clip.recorder.recording || this.phrase.recorder.recording;
  }

  /** Ends what records; what was said is kept. */
  pause() {
    this.clip.recorder.stop();
    this.phrase.recorder.stop();
  }

  #forgetSample() {
    this.checking?.abort();
    this.checking = null;
    if (this.sample) this.api.dropSample(this.sample.id).catch(() => {}); // it expires by itself otherwise
    this.sample = null;
    this.render();
  }

  async check() {
    const { clip } = this.clip;
    this.sounds.stop();
    this.#forgetSample();
    const checking = (this.checking = new AbortController());
    this.clip.problem.hide();
    this.render();
    try {
      const trim = this.clip.selection;
      const sample = await this.api.check(clip.blob, { trim, signal: checking.signal });
      if (this.checking !== checking) return;
      this.checking = null;
      this.#take(sample);
    } catch (error) {
      if (this.checking !== checking) return;
      this.checking = null;
      this.render();
      this.clip.problem.show(error, { again: () => this.check(), what: "Your recording" });
    }
  }

  #take(sample) {
    const { $ } = this;
    this.sample = sample;
    this.problem.hide();
    $("transcript").value = sample.transcript;
    $("clone-language").value = sample.language ?? "";
    if ($("clone-language").selectedIndex < 0) $("clone-language").selectedIndex = 0;
    this.render();
    $("grade").focus();
  }

  get #entered() {
    const { $ } = this;
    return {
      sample: this.sample,
      transcript: $("transcript").value,
      agreed: $("agreed").checked,
      signer: $("signer").value,
      phraseMatches: this.phrase.matches,
      name: $("clone-name").value,
    };
  }

  async create() {
    const { sample, transcript, signer, phraseMatches, name } = this.#entered;
    this.creating = true;
    this.problem.hide();
    this.render();
    const consent = { agreed: true, statement: this.about.statement.version, name: signer.trim() };
    if (phraseMatches) consent.phrase_sample_id = this.phrase.sample.id;
    const language = this.$("clone-language").value;
    try {
      const voice = await this.api.create({
        sample_id: sample.id,
        name: name.trim(),
        transcript: transcript.trim(),
        ...(language && { language }),
        consent,
      });
      this.#over(voice);
    } catch (error) {
      this.creating = false;
      if (error.code === "sample_not_found") this.#expired(error);
      else this.problem.show(error, { again: () => this.create(), what: "Everything you entered" });
      this.render();
    }
  }

  /** The server has forgotten the recording, or that of the phrase; the page has the former. */
  #expired(error) {
    this.sample = null;
    this.phrase.clear();
    this.clip.problem.show(error, { what: "Your recording" });
    this.$("check").focus();
  }

  #over(voice) {
    this.creating = false;
    this.made = voice;
    this.sample = null;
    this.clip.clear();
    this.phrase.clear();
    this.$("agreed").checked = false;
    this.$("clone-name").value = "";
    this.onVoice(voice);
    this.render();
    this.$("made-title").focus();
  }

  /** Another voice. */
  again() {
    this.made = null;
    this.render();
    this.$("record").focus();
  }

  render() {
    const { $, about, sample } = this;
    if (!about) return;
    const refused = whyNot(about);
    $("why-not").hidden = !refused || this.made !== null;
    $("why-not").textContent = refused ?? "";
    for (const id of ["maker-text", "fate"]) $(id).hidden = about.method === "none";
    $("steps").hidden = this.made !== null || refused !== null;
    this.#renderMade();
    this.clip.render({ busy: this.checking !== null, checked: sample !== null });
    $("check-working").hidden = this.checking === null;
    $("check-working").textContent = this.checking ? "Sending the recording and listening to it…" : "";
    $("step-verdict").hidden = !sample;
    const usable = Boolean(sample?.verdict.usable);
    $("step-verdict").classList.toggle("unusable", !usable);
    $("step-consent").hidden = $("step-create").hidden = !usable;
    if (sample) this.#renderVerdict(sample);
    this.phrase.render(about);
    const wants = missing(this.#entered, about);
    $("create").disabled = this.creating || wants.length > 0;
    $("create-missing").textContent = wants.length ? `Still missing: ${listed(wants)}.` : "";
    $("create-working").hidden = !this.creating;
    $("create-working").textContent = this.creating ? "Making the voice…" : "";
  }

  #renderVerdict({ verdict, seconds }) {
    const { $ } = this;
    $("grade").dataset.grade = verdict.usable ? verdict.grade : "poor";
    const words = verdict.usable && verdict.grade === "poor" ? "Usable, but poor." : GRADES[verdict.grade];
    if ($("grade").textContent !== words) $("grade").textContent = words;
    $("findings").replaceChildren(
      ...verdict.problems.map(({ code, severity, message }) => {
        const item = element("li", sentence(message));
        item.dataset.severity = severity;
        if (ADVICE[code]) item.append(element("span", ADVICE[code]));
        return item;
      }),
    );
    $("measures").textContent = measures(verdict, seconds);
  }

  #renderMade() {
    const { $, made } = this;
    $("made").hidden = !made;
    if (!made) return;
    $("made-title").textContent = `“${made.name}” is ready`;
    $("made-text").textContent = made.match
      ? `The nearest voice of this server is ${made.match.name || made.match.voice}. It is a match, not a clone.`
      : "It stands in the list of your voices.";
    const used = this.talk.settings.voice === made.id;
    $("made-use").disabled = used;
    $("made-use").textContent = used ? "Used in the conversation" : "Use it in the conversation";
    $("made-listen").querySelector("span").textContent = this.sounds.playing === made.id ? "Stop" : "Listen";
  }
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}
