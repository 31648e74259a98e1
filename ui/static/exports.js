// Files made in the page: transcript as text, JSON and subtitles, the conversation's sound as WAV. No DOM here.

import { StreamResampler, fromPcm16, toPcm16 } from "./resample.js";

const WAV_RATE = 24000;
const JOIN_S = 0.06; // pieces closer than this are one run: the clock of a block is only so exact
const KEEP_S = 30 * 60;

const NAMES = { user: "You", assistant: "Voicepod" };

function said(messages) {
  return messages.filter((message) => message.text);
}

export function toText(messages) {
  return said(messages)
    .map(({ role, text, note }) => `${NAMES[role]}: ${text}${note ? ` [${note}]` : ""}\n`)
    .join("\n");
}

export function toJson(messages, about) {
  const turns = said(messages).map(({ role, text, startS, endS, note, metrics }) => ({
    role,
    text,
    start_s: round(startS),
    end_s: round(endS ?? startS),
    ...(note && { note }),
    ...(metrics && { latency_ms: { total: metrics.total_ms, ...metrics.parts_ms } }),
  }));
  return `${JSON.stringify({ ...about, messages: turns }, null, 2)}\n`;
}

const round = (seconds) => Math.round(seconds * 1000) / 1000;

/** 3661.5 -> "01:01:01,500" */
export function srtTime(seconds) {
  const ms = Math.max(0, Math.round(seconds * 1000));
  const pad = (value, width) => String(value).padStart(width, "0");
  const clock = [Math.floor(ms / 3_600_000), Math.floor(ms / 60_000) % 60, Math.floor(ms / 1000) % 60];
  return `${clock.map((part) => pad(part, 2)).join(":")},${pad(ms % 1000, 3)}`;
}

/** SubRip with one cue a message; a cue lasts at least a second, so that it can be read. */
export function toSrt(messages) {
  return said(messages)
    .map(({ role, text, startS, endS }, index) => {
      const end = Math.max(endS ?? startS, startS + 1);
      return `${index + 1}\n${srtTime(startS)} --> ${srtTime(end)}\n${NAMES[role]}: ${text}\n`;
    })
    .join("\n");
}

/** Keeps what was sent and what was really played, each piece with its time on the audio clock (s); 30 minutes at most. */
export class Recording {
  constructor() {
    this.clear();
  }

  clear() {
    this.tracks = { user: [], assistant: [] };
  }

  get empty() {
    return !this.tracks.user.length && !this.tracks.assistant.length;
  }

  /** pcm: Int16Array at `rate` Hz; extra: anything that should stay with the piece, as the turn. */
  add(track, { at, pcm, rate, ...extra }) {
    const pieces = this.tracks[track];
    pieces.push({ at, pcm, rate, ...extra });
    while (pieces[0].at < at - KEEP_S) pieces.shift();
  }

  /** Stereo WAV, 24 kHz: the user left, the reply right. */
  toWav() {
    const all = [...this.tracks.user, ...this.tracks.assistant];
    const startS = Math.min(...all.map((piece) => piece.at));
    const channels = [this.tracks.user, this.tracks.assistant].map((pieces) => render(pieces, startS));
    const length = Math.max(...channels.map((channel) => channel.length));
    const mixed = new Int16Array(length * 2);
    channels.forEach((channel, index) => {
      for (let i = 0; i < channel.length; i += 1) mixed[i * 2 + index] = channel[i];
    });
    return wavFile(mixed, 2, WAV_RATE);
  }
}

/** Pieces that follow each other become runs, so that one run is resampled without seams. */
function runsOf(pieces) {
  const runs = [];
  for (const piece of pieces) {
    const run = runs[runs.length - 1];
    const end = run ? run.at + run.samples / run.rate : 0;
    if (run && run.rate === piece.rate && Math.abs(piece.at - end) < JOIN_S) {
      run.parts.push(piece.pcm);
      run.samples += piece.pcm.length;
    } else {
      runs.push({ at: piece.at, rate: piece.rate, parts: [piece.pcm], samples: piece.pcm.length });
    }
  }
  return runs;
}

function render(pieces, startS) {
  const rendered = runsOf(pieces).map((run) => {
    const joined = new Int16Array(run.samples);
    let offset = 0;
    for (const part of run.parts) {
      joined.set(part, offset);
      offset += part.length;
    }
    return { start: Math.round((run.at - startS) * WAV_RATE), pcm: atWavRate(joined, run.rate) };
  });
  let free = 0; // a run that would begin inside the one before is set behind it: nothing is lost
  for (const run of rendered) {
    run.start = Math.max(run.start, free);
    free = run.start + run.pcm.length;
  }
  const channel = new Int16Array(free);
  for (const { start, pcm } of rendered) channel.set(pcm, start);
  return channel;
}

function atWavRate(pcm, rate) {
  if (rate === WAV_RATE) return pcm;
  const resampler = new StreamResampler(rate, WAV_RATE);
  const body = resampler.process(fromPcm16(pcm));
  const tail = resampler.flush();
  const whole = new Float32Array(body.length + tail.length);
  whole.set(body);
  whole.set(tail, body.length);
  return toPcm16(whole);
}

/** RIFF/WAVE file (ArrayBuffer) of interleaved PCM16. */
export function wavFile(interleaved, channels, rate) {
  const bytes = interleaved.length * 2;
  const buffer = new ArrayBuffer(44 + bytes);
  const view = new DataView(buffer);
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + bytes, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, channels, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, rate * channels * 2, true);
  view.setUint16(32, channels * 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, bytes, true);
  new Int16Array(buffer, 44).set(interleaved);
  return buffer;
}

/** Hands a file to the browser's downloads. */
export function download(name, content, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
