// The page's side of the player: hands frames over, knows what was heard, sets volume and duck.

import { PlayerEngine } from "./player-engine.js";

const REPORT_MS = 100;
const DUCK_GAIN = 0.25; // -12 dB
const FALLBACK_BLOCK = 1024;
const FLUSH_ANSWER_MS = 100;

/** The player on the audio thread; without worklets (no HTTPS) the same engine on this thread. */
function createNode(context, sourceRate, onMessage) {
  if (context.audioWorklet) {
    const node = new AudioWorkletNode(context, "voicepod-player", {
      numberOfInputs: 0,
      outputChannelCount: [1],
      processorOptions: { sourceRate },
    });
    node.port.onmessage = ({ data }) => onMessage(data);
    return { node, post: (message, transfer) => node.port.postMessage(message, transfer ?? []) };
  }
  const node = context.createScriptProcessor(FALLBACK_BLOCK, 0, 1);
  const engine = new PlayerEngine({ contextRate: context.sampleRate, sourceRate, post: onMessage });
  node.onaudioprocess = ({ outputBuffer, playbackTime }) => engine.render(outputBuffer.getChannelData(0), playbackTime);
  return { node, post: (message) => engine.receive(message) };
}

export class Player {
  /**
   * onPosition({turn, played, mode}) drives the captions; onReport({turn, played_samples, started_ago_ms, underruns}) is
   * what the server wants to know; onPlayed({turn, first, at, pcm}) is what was really rendered, for the recording.
   */
  constructor(context, { sourceRate, onPosition, onReport, onPlayed }) {
    Object.assign(this, { context, sourceRate, onPosition, onReport, onPlayed });
    this.received = { turn: 0, next: 0 };
    this.flushedTurn = 0;
    this.mode = "idle";
    this.reportedAt = 0;
    this.flushAnswers = [];
    this.ducked = false;
    this.position = null;
    this.output = createNode(context, sourceRate, (data) => this.#heard(data));
    this.duckGain = new GainNode(context);
    this.volumeGain = new GainNode(context);
    this.analyser = new AnalyserNode(context, { fftSize: 512 });
    this.output.node.connect(this.duckGain).connect(this.volumeGain).connect(this.analyser).connect(context.destination);
  }

  get playing() {
    return this.mode === "playing" || this.mode === "filling";
  }

  setSourceRate(sourceRate) {
    if (sourceRate === this.sourceRate) return;
    this.sourceRate = sourceRate;
    this.output.post({ type: "rate", sourceRate });
  }

  /** Queues PCM16 of a turn. False: the turn was flushed, the frame is stale. */
  play(turn, first, pcm) {
    if (turn <= this.flushedTurn) return false;
    this.received = { turn, next: first + pcm.length };
    this.output.post({ type: "audio", turn, first, pcm }, [pcm.buffer]);
    return true;
  }

  /** Silence at once: nothing of `turn` or of an earlier one is played from here on. Ends when the report was given. */
  flush(turn) {
    this.flushedTurn = Math.max(this.flushedTurn, turn);
    const answered = new Promise((resolve) => {
      this.flushAnswers.push(resolve);
      setTimeout(resolve, FLUSH_ANSWER_MS); // a suspended context answers later
    });
    this.output.post({ type: "flush", turn });
    return answered;
  }

  setVolume(volume) {
    this.volumeGain.gain.setTargetAtTime(volume, this.context.currentTime, 0.02);
  }

  duck(on) {
    if (on === this.ducked) return;
    this.ducked = on;
    this.duckGain.gain.setTargetAtTime(on ? DUCK_GAIN : 1, this.context.currentTime, 0.015);
  }

  /** Says again what was heard: a report that was due while the connection was lost never arrived. */
  reportAgain() {
    if (this.position?.turn > 0) this.onReport(this.#report(this.position));
  }

  #heard(data) {
    if (data.type === "played") {
      this.onPlayed(data);
      return;
    }
    this.mode = data.mode;
    this.position = data;
    this.onPosition(data);
    const flushed = data.type === "flushed";
    const due = performance.now() - this.reportedAt >= REPORT_MS;
    if (data.turn > 0 && (due || flushed || data.mode === "drained")) {
      this.reportedAt = performance.now();
      this.onReport(this.#report(data));
    }
    if (flushed) this.flushAnswers.shift()?.();
  }

  /** What has left the loudspeaker: the rendered position less the output's latency, all of it once the turn has drained. */
  #report(data) {
    const latencyS = (this.context.baseLatency || 0) + (this.context.outputLatency || 0);
    const behind = data.mode === "drained" ? 0 : Math.round(latencyS * this.sourceRate);
    return {
      turn: data.turn,
      played_samples: Math.max(0, data.played - behind),
      started_ago_ms: Math.max(0, Math.round((this.context.currentTime - data.startedAt - latencyS) * 1000)),
      underruns: data.underruns,
    };
  }

  close() {
    this.output.node.disconnect();
    this.analyser.disconnect();
    this.onPosition = this.onReport = this.onPlayed = () => {};
  }
}
