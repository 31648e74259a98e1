// What the page remembers: settings in this browser, the running conversation in this tab.

const SETTINGS_KEY = "voicepod.settings.1";
const SESSION_KEY = "voicepod.session.1";

export const DEFAULTS = Object.freeze({
  mode: "hands-free",
  deviceId: "",
  voice: "",
  language: "auto",
  persona: "",
  patienceMs: 600,
  volume: 1,
  speed: 1,
  headphones: false,
});

const within = (low, high) => (value) => typeof value === "number" && value >= low && value <= high;
const CHECKS = {
  mode: (value) => value === "hands-free" || value === "hold",
  patienceMs: within(300, 1500),
  volume: within(0, 1),
  speed: within(0.5, 2),
  headphones: (value) => typeof value === "boolean",
};

/** Known keys with values of the right form; anything else in the stored text is ignored. */
export function cleanSettings(stored) {
  const settings = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) {
    const value = stored?.[key];
    const fits = CHECKS[key] ?? ((text) => typeof text === "string" && text.length < 200);
    if (value !== undefined && fits(value)) settings[key] = value;
  }
  return settings;
}

function read(storage, key) {
  try {
    return JSON.parse(storage().getItem(key));
  } catch {
    return null; // storage is blocked, or holds something else
  }
}

function write(storage, key, value) {
  try {
    if (value === null) storage().removeItem(key);
    else storage().setItem(key, JSON.stringify(value));
  } catch {
    // A private window may refuse to store: the page works without.
  }
}

export const loadSettings = () => cleanSettings(read(() => localStorage, SETTINGS_KEY));
export const saveSettings = (settings) => write(() => localStorage, SETTINGS_KEY, settings);

/** The token of the conversation that this tab can go on with, or null when it is too old. */
export function loadResume(nowMs = Date.now()) {
  const saved = read(() => sessionStorage, SESSION_KEY);
  return saved && typeof saved.token === "string" && saved.untilMs > nowMs ? saved.token : null;
}

export function saveResume(token, resumeS) {
  write(() => sessionStorage, SESSION_KEY, token && { token, untilMs: Date.now() + resumeS * 1000 });
}
