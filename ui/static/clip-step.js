// Step 1: a recording from a file or the microphone, and the part of it that is used.

import { barOf } from "./levels.js";
import { levelWords, microphoneProblem, recordingHint, refuseFile } from "./clone-words.js";
import { Problem } from "./problem.js";
import { Recorder } from "./recorder.js";
import { Trim, asSeconds } from "./trim.js";
import { Waveform } from "./waveform.js";

const LONGEST_SHOWN_S = 900; // decoded it takes 200 MB for each quarter of an hour
const LENGTH_WAIT_MS = 3000;
const UNKNOWN_SHOWN_BYTES = 10 * 1024 * 1024;

/** How long a file plays, as the browser's own player says; null where it does not know. */
function lengthOf(blob) {
  return new Promise((resolve) => {
    const url = URL.createObjectURL(blob);
    const audio = new Audio();
    const done = (seconds) => {
      URL.revokeObjectURL(url);
      resolve(Number.isFinite(seconds) ? seconds : null);
    };
    audio.onloadedmetadata = () => done(audio.duration);
    audio.onerror = () => done(null);
    setTimeout(done, LENGTH_WAIT_MS);
    audio.preload = "metadata";
    audio.src = url;
  });
}

export class ClipStep {
  /**
   * onChange() when there is another recording or selection; onCheck() when it shall be sent; onState() when something
   * else is to be shown.
   */
  constructor({ $, sounds, talk, onChange, onCheck, onState }) {
    Object.assign(this, { $, sounds, talk, onChange, onCheck, onState });
    this.clip = null;
    this.about = null;
    this.problem = new Problem($("recording-problem"));
    this.waveform = new Waveform({
      box: $("wave"),
      canvas: $("wave-canvas"),
      handles: { start: $("trim-start"), end: $("trim-end") },
      onChange: () => this.#trimmed(),
    });
    this.recorder = new Recorder(sounds, {
      onLevel: (level) => this.#level(level),
      onDone: (blob) => {
        onState();
        this.take(blob, "Your recording");
      },
    });
    const click = (id, handler) => $(id).addEventListener("click", handler);
    click("choose", () => $("file").click());
    $("file").addEventListener("change", () => this.#chosen($("file").files));
    click("record", () => this.record());
    click("record-stop", () => this.recorder.stop());
    click("record-drop", () => {
      this.recorder.drop();
      onState();
      $("record").focus();
    });
    click("check", () => this.onCheck());
    click("play-clip", () => this.#play());
    click("clear", () => (this.busy ? this.onChange() : this.clear()));
    this.#bindDrop();
  }

  #bindDrop() {
    const zone = this.$("panel-voices"); // a file that falls beside its place would replace the page
    const over = (on) => zone.classList.toggle("over", on);
    zone.addEventListener("dragover", (event) => {
      event.preventDefault();
      over(true);
    });
    zone.addEventListener("dragleave", () => over(false));
    zone.addEventListener("drop", (event) => {
      event.preventDefault();
      over(false);
      if (!this.recorder.recording && !this.$("steps").hidden) this.#chosen(event.dataTransfer.files);
    });
  }

  #chosen([file]) {
    if (file && this.about) this.take(file, file.name);
    this.$("file").value = ""; // the same file can be chosen again
  }

  /** Takes a file as the recording, unless it is not worth sending. */
  async take(blob, name) {
    const refused = refuseFile(blob, this.about);
    if (refused) {
      this.problem.tell(refused);
      return;
    }
    this.problem.hide();
    const taking = (this.taking = blob);
    const buffer = await this.#decoded(blob);
    if (this.taking !== taking) return; // another one was chosen meanwhile
    const trim = buffer && new Trim(buffer.duration, { minS: this.about.min_s, maxS: this.about.max_s });
    this.clip = { blob, name, buffer, trim };
    this.onChange();
    if (buffer) this.waveform.show(buffer, trim);
    this.$("check").focus();
  }

  async #decoded(blob) {
    const seconds = await lengthOf(blob);
    const small = seconds === null ? blob.size < UNKNOWN_SHOWN_BYTES : seconds < LONGEST_SHOWN_S;
    return small ? this.sounds.decode(await blob.arrayBuffer()) : null;
  }

  async record() {
    this.problem.hide();
    this.sounds.stop();
    this.talk.interrupt();
    try {
      await this.recorder.start({ deviceId: this.talk.settings.deviceId, maxS: this.about.max_s });
      this.onState();
      this.$("record-stop").focus();
    } catch (error) {
      this.problem.tell(microphoneProblem(error), () => this.$("record").click());
    }
  }

  #level({ rms, peak, seconds }) {
    const { $ } = this;
    $("record-level").style.setProperty("--level", barOf(rms).toFixed(3));
    $("record-level").setAttribute("aria-valuenow", String(Math.round(barOf(rms) * 100)));
    $("record-time").textContent = `${Math.floor(seconds)} of ${this.about.max_s} s`;
    this.loudest = Math.max(peak, (this.loudest ?? 0) * 0.98); // falls to half in 0.7 s
    const words = levelWords(this.loudest, seconds);
    if ($("record-words").textContent !== words) $("record-words").textContent = words;
  }

  #trimmed() {
    if (this.sounds.playing === "clip") this.sounds.stop();
    this.onChange();
  }

  #play() {
    if (this.sounds.playing === "clip") {
      this.sounds.stop();
      return;
    }
    const { buffer, trim } = this.clip;
    const onPosition = (seconds) => this.waveform.setPlayed(seconds);
    this.sounds.play("clip", buffer, { startS: trim.start, endS: trim.end, onPosition });
  }

  /** Back to the beginning of this step. */
  clear() {
    this.sounds.stop();
    this.clip = null;
    this.problem.hide();
    this.onChange();
    this.$("record").focus();
  }

  /** What to send of it: null for the whole file; an end of null is the file's own. */
  get selection() {
    const { trim } = this.clip;
    if (!trim || trim.seconds >= trim.duration - 0.01) return null;
    return { start: trim.start, end: trim.end >= trim.duration - 0.01 ? null : trim.end };
  }

  get #tooShort() {
    return Boolean(this.clip?.trim) && this.clip.trim.duration < this.about.min_s;
  }

  #hint() {
    const { trim } = this.clip;
    const { min_s: minS, max_s: maxS } = this.about;
    if (!trim) return "This browser cannot show this file. It is sent whole, and the server tries to read it.";
    if (this.#tooShort) return `This is too short: at least ${minS} s are needed. Please make a longer recording.`;
    const chosen = `Selected: ${asSeconds(trim.seconds)}, from ${asSeconds(trim.start)} to ${asSeconds(trim.end)}.`;
    const most = trim.duration > maxS ? ` At most ${maxS} s can be used; move the handles to the best part.` : "";
    return chosen + most;
  }

  /** busy: the recording is on its way to the server; checked: this selection of it has been there. */
  render({ busy = false, checked = false } = {}) {
    const { $, clip } = this;
    const { recording } = this.recorder;
    $("recording-hint").textContent = recordingHint(this.about);
    $("drop").hidden = recording || clip !== null;
    $("recording").hidden = !recording;
    $("clip").hidden = recording || clip === null;
    $("check").hidden = checked;
    $("check").disabled = busy || this.#tooShort;
    this.busy = busy;
    $("clear").textContent = busy ? "Cancel" : "Use another";
    if (!clip) return;
    $("clip-name").textContent = clip.name;
    $("clip-length").textContent = clip.trim ? asSeconds(clip.trim.duration) : "";
    $("wave").hidden = $("play-clip").hidden = !clip.buffer;
    $("play-clip").querySelector("span").textContent = this.sounds.playing === "clip" ? "Stop" : "Play the selection";
    $("clip-hint").textContent = this.#hint();
    if (clip.buffer) this.waveform.draw();
  }
}
