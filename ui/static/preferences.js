// What the user chose, as the server is told it.

import { withLanguage } from "./languages.js";

/** The body of a session.update. `instructions` are the server's own, for a page that has no persona chosen. */
export function preferences(settings, { instructions: chosen, voices }, instructions = "") {
  const persona = chosen || instructions;
  const turnDetection = { type: "server_vad", silence_duration_ms: settings.patienceMs };
  return {
    ...(persona && { instructions: withLanguage(persona, settings.language, voices) }),
    audio: {
      input: {
        transcription: { language: settings.language === "auto" ? null : settings.language },
        turn_detection: settings.mode === "hold" ? null : turnDetection,
      },
      output: { ...(settings.voice && { voice: settings.voice }), speed: settings.speed },
    },
    voicepod: { headphones: settings.headphones },
  };
}
