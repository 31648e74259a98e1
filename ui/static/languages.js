// Languages and the voices that can speak them. No DOM here.

const english = () => new Intl.DisplayNames(["en"], { type: "language" });

/** "de" -> "German"; a code that is no language stays as it is. */
export function languageName(code) {
  try {
    return english().of(code) ?? code;
  } catch {
    return code;
  }
}

const base = (code) => (code ?? "").toLowerCase().split("-")[0];

const spokenBy = (voice) => (voice.languages?.length ? voice.languages : [voice.language]).map(base);

/** The voices that speak `code`; for "auto" all of them. */
export function voicesFor(code, voices) {
  return code === "auto" ? voices : voices.filter((voice) => spokenBy(voice).includes(base(code)));
}

/** The voice to use for a language: the chosen one if it can, else the first that can, else the chosen one. */
export function voiceFor(code, voices, chosen) {
  const able = voicesFor(code, voices);
  const current = voices.find((voice) => voice.id === chosen);
  return able.find((voice) => voice.id === chosen) ?? able[0] ?? current ?? voices[0];
}

/** Choices for the language menu: [{code, label}]; a language without a voice says so. */
export function languageChoices(codes, voices) {
  return codes.map((code) => {
    if (code === "auto") return { code, label: "Automatic" };
    const spoken = voicesFor(code, voices).length > 0;
    return { code, label: spoken ? languageName(code) : `${languageName(code)} (understood, answered in English)` };
  });
}

/** What the chosen language does, in a sentence. */
export function languageHint(code, voices) {
  if (code === "auto") {
    const spoken = [...new Set(voices.map((voice) => base(voice.language)))].map(languageName);
    return `The language is recognised anew in every utterance. Answers are spoken in the voice's language: ${spoken.join(", ")}.`;
  }
  const name = languageName(code);
  return voicesFor(code, voices).length
    ? `Only ${name} is listened for, which is surer than Automatic; the answers are in ${name}.`
    : `${name} is understood; no voice here speaks it, so the answers are in English.`;
}

/** The persona's instructions with the language the answers must have. */
export function withLanguage(instructions, code, voices) {
  if (code === "auto") return instructions;
  const answer = voicesFor(code, voices).length ? languageName(code) : "English";
  return `${instructions} Always answer in ${answer}.`.trim();
}
