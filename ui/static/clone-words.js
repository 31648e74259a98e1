// What the tab "My voices" says: verdicts, problems, what is still missing. No DOM here.

import { languageName } from "./languages.js";

export const GRADES = {
  good: "Good: this recording can be used as it is.",
  fair: "Usable, but a better recording gives a better voice.",
  poor: "Not good enough.",
};

/** What can be done about a problem right here; the server's own words say the rest. */
export const ADVICE = {
  too_short: "Widen the selection, or record more.",
  too_long: "Move the handles so that less is selected.",
  several_speakers: "Select a part in which nobody else speaks.",
  silence_inside: "Select a part without long pauses.",
};

/** How a request failed, in words -> {words, waitS, retry, login}. Of `what` the page knows that it is not lost. */
export function describeProblem(problem, what = "") {
  const kept = what && ` ${what} is still here.`;
  const { status, code, message, retryAfterS } = problem;
  const told = message ? sentence(message) : "";
  if (status === undefined) return { words: "Something in this page went wrong. Please try again.", retry: true };
  if (status === 0) return { words: `The server cannot be reached. Check your network.${kept}`, retry: true };
  if (status === 401) {
    return { words: `Your login has ended. Log in again in a new tab, then come back.${kept}`, retry: true, login: true };
  }
  if (status === 403) {
    const scope = /scope (\w+)/.exec(message)?.[1] ?? "voices";
    return { words: `Your key or login does not reach so far. Ask for one with the scope “${scope}”.` };
  }
  if (status === 404 && code === "sample_not_found") {
    return { words: `The server keeps an unused recording only for some minutes.${kept || ""} Check it again.` };
  }
  if (status === 413) return { words: told || "The file is too large." };
  if (status === 429 || status === 503) {
    const waitS = Math.max(1, Math.ceil(retryAfterS ?? 5));
    const busy = status === 429 ? "That was too much in a short time." : told || "The server is busy.";
    return { words: `${busy}${kept}`, waitS, retry: true };
  }
  if (status >= 500) return { words: `The server could not do it.${kept}`, retry: true };
  return { words: told || "The server refused this." };
}

/** "no such voice" -> "No such voice." */
export function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

/** What the tab says in place of the form, or null where voices can be made. */
export function whyNot(about) {
  if (about.method === "none") {
    return "The speech engine of this server has one fixed set of voices and cannot make new ones. You can listen to them here.";
  }
  if (about.max_voices <= 0) return "This server is set up to keep no voices of its users.";
  if (about.n_voices >= about.max_voices) {
    return `You have ${about.n_voices} of ${about.max_voices} voices. Delete one to make another.`;
  }
  return null;
}

/** Title and promise of the form, by what the engine can do. */
export function promise({ method }) {
  if (method === "none") return { title: "A voice of your own", text: "", button: "" };
  return method === "clone"
    ? {
        title: "Make a voice",
        text: "Record yourself or choose a file. The server makes a voice that sounds like the recording.",
        button: "Make the voice",
      }
    : {
        title: "Find your nearest voice",
        text:
          "This server cannot clone voices. It compares your recording with its own stock voices and gives you the one " +
          "that sounds nearest: a match, not a clone. It will not sound like you.",
        button: "Find the voice",
      };
}

/** What happens to the recording, as sentences. */
export function fate({ watermark, notice }) {
  return [
    "Your recording goes to this server and nowhere else. Unless you make a voice of it, it is forgotten within 15 minutes.",
    "With the voice it is kept until you delete the voice. No other user of this server can hear or use either.",
    watermark
      ? "All speech of these voices is synthetic, and carries an inaudible mark that says so."
      : "All speech of these voices is synthetic.",
    ...(notice ? [sentence(notice)] : []),
  ];
}

/** "3 to 30 seconds of one person…" */
export function recordingHint({ min_s: minS, max_s: maxS, max_upload_mb: megabytes }) {
  return (
    `${minS} to ${maxS} seconds of one person speaking naturally in a quiet room. ` +
    `WAV, MP3, M4A, FLAC, OGG or WebM, up to ${megabytes} MB.`
  );
}

/** Is this file worth sending? The words why not, or null. */
export function refuseFile({ size, type }, { max_upload_mb: megabytes }) {
  if (!size) return "This file is empty.";
  if (size > megabytes * 1024 * 1024) {
    return `This file has ${(size / 1024 / 1024).toFixed(0)} MB; up to ${megabytes} MB can be sent. Cut it or save it as MP3.`;
  }
  if (type && !/^(audio|video|application)\//.test(type)) return "This is not a sound file.";
  return null;
}

/** What a voice is, in a line. */
export function aboutVoice(voice) {
  const parts = [languageName(voice.language)];
  if (voice.kind === "clone") parts.unshift("Clone of a recording");
  if (voice.kind === "match") parts.unshift(nearest(voice));
  if (voice.watermarked && voice.kind !== "stock") parts.push("marked as synthetic");
  if (!voice.usable) parts.push(`cannot be used now${voice.reason ? `: ${voice.reason}` : ""}`);
  return parts.filter(Boolean).join(" · ");
}

function nearest({ match }) {
  if (!match) return "Match, not a clone";
  return `Match: the stock voice ${match.name || match.voice}, ${likeness(match.similarity)}`;
}

/** Cosine similarity of two speakers in words; 0.75 and more is taken for the same speaker by the encoder's authors. */
export function likeness(similarity) {
  const share = similarity.toFixed(2);
  if (similarity >= 0.75) return `very alike (${share})`;
  if (similarity >= 0.6) return `alike (${share})`;
  return `only roughly alike (${share})`;
}

/** What was measured, in a line. */
export function measures({ speech_seconds: speechS, snr_db: snrDb }, seconds) {
  const parts = [`${seconds.toFixed(1)} s`, `${speechS.toFixed(1)} s of them speech`];
  if (snrDb !== null && snrDb !== undefined) parts.push(`speech ${Math.round(snrDb)} dB above the noise`);
  return parts.join(" · ");
}

/** The result of the phrase that was read aloud. */
export function describePhrase({ matches, heard }) {
  if (matches) return "That is the phrase.";
  return heard ? `The server heard “${heard}”. Please read the phrase once more.` : "No words were heard. Please read it again.";
}

/** What is still missing before the voice can be made, in words; empty: nothing. */
export function missing({ sample, transcript, agreed, signer, phraseMatches, name }, about) {
  const wants = [];
  if (!sample?.verdict.usable) wants.push("a usable recording");
  if (about.method === "clone" && !transcript.trim()) wants.push("what is said in the recording");
  if (!agreed) wants.push("your consent");
  if (!signer.trim()) wants.push("your full name");
  if (about.phrase_required && !phraseMatches) wants.push("the phrase, read aloud");
  if (!name.trim()) wants.push("a name for the voice");
  return wants;
}

/** ["a", "b", "c"] -> "a, b and c" */
export function listed(words) {
  return words.length > 1 ? `${words.slice(0, -1).join(", ")} and ${words.at(-1)}` : (words[0] ?? "");
}

const MICROPHONE = {
  insecure: "Browsers give the microphone only to secure pages (https, or this computer). You can choose a file instead.",
  denied: "The microphone is blocked. Allow it for this page at the left of the address, or choose a file instead.",
  missing: "No microphone was found. Plug one in, or choose a file instead.",
  busy: "Another program holds the microphone. Close it there, or choose another device in the settings of “Talk”.",
};

/** Why nothing can be recorded. */
export function microphoneProblem({ kind }) {
  return MICROPHONE[kind] ?? "The microphone did not start. Try again, or choose a file instead.";
}

const SENTENCES = {
  de: "Hallo, so klinge ich. Schön, dass du da bist.",
  en: "Hello, this is how I sound. Nice to meet you.",
  es: "Hola, así sueno yo. Encantado de conocerte.",
  fr: "Bonjour, voici comment je parle. Ravi de vous rencontrer.",
  hi: "नमस्ते, मेरी आवाज़ ऐसी है। आपसे मिलकर खुशी हुई।",
  it: "Ciao, questa è la mia voce. Piacere di conoscerti.",
  ja: "こんにちは、これが私の声です。はじめまして。",
  ko: "안녕하세요, 제 목소리는 이렇습니다. 반갑습니다.",
  pt: "Olá, é assim que eu falo. Prazer em conhecer você.",
  ru: "Здравствуйте, вот так я звучу. Приятно познакомиться.",
  zh: "你好，这就是我的声音。很高兴认识你。",
};

/** What a voice says when nobody wrote a sentence for it. */
export function greeting(language) {
  return SENTENCES[(language ?? "").toLowerCase().split("-")[0]] ?? SENTENCES.en;
}

/** What the level says while one records: peak in [0, 1]. */
export function levelWords(peak, seconds) {
  if (peak >= 0.99) return "Too loud: move away a little";
  if (seconds > 2 && peak < 0.03) return "Very quiet: come closer";
  return "Recording";
}
