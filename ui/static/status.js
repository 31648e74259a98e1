// What the page says about itself: the state in words, and what to do when something is wrong. No DOM here.

// Notices of a talk that waits and goes on by itself, and how its connection is called meanwhile.
export const WAITING = { unreachable: "waiting", server_busy: "busy", server_loading: "loading" };

/** The connection as people see it: that it is tried again each few seconds is no news. */
export function describeConnection({ starting, connection, notice }) {
  if (starting) return notice === "asking" ? "asking" : "connecting";
  return connection === "connecting" ? (WAITING[notice] ?? connection) : connection;
}

/** How to begin, for a page without messages. */
export function invitation({ started, mic, mode, startWords }) {
  let how = `Press ${startWords} and speak`;
  if (started && !mic) how = "Type a message";
  else if (started) how = mode === "hold" ? "Hold the button and speak" : "Just speak";
  return `${how}, or try one of these:`;
}

/** Everything that decides the state -> [key, words]. The key sets the colour, the words are read out. */
export function describeState(page) {
  const { server, connection, started, sound, user, agent, playing, muted, silenced, mode, holding, mic } = page;
  if (!started && server === "loading") return ["thinking", "Getting ready…"];
  if (!started && server !== "ready") return ["error", "Not connected"];
  if (!started) return ["idle", "Ready when you are"];
  if (connection === "asking") return ["connecting", "Waiting for the microphone…"];
  if (connection === "connecting") return ["connecting", "Connecting…"];
  if (connection === "waiting") return ["reconnecting", "Connection lost, reconnecting…"];
  if (connection === "loading") return ["busy", "Waiting for the server to start…"];
  if (connection === "busy") return ["busy", "Waiting for a free seat…"];
  if (connection !== "open") return ["error", "Not connected"];
  if (!sound) return ["paused", "Sound is paused"];
  if (holding) return ["hearing", "Listening, let go to send"];
  if (user === "speaking") return ["hearing", "Hearing you…"];
  if (playing || agent === "speaking") return ["speaking", "Speaking"];
  if (agent === "thinking") return ["thinking", "Thinking…"];
  if (!mic) return ["typing", "Connected, type your message"];
  if (muted) return ["muted", "Microphone muted"];
  if (silenced) return ["muted", "Muted by your system or device"];
  if (mode === "hold") return ["listening", "Hold the button or Space to talk"];
  return ["listening", "Listening, just speak"];
}

/** What went wrong and what helps -> {title, text, actions: [[id, label]]}. */
export const NOTICES = {
  asking: {
    title: "The browser has not given the microphone yet",
    text: "If it asks, choose Allow. If it asks nothing, another program may hold the microphone. Typing works meanwhile.",
    actions: [["text-only", "Type instead"]],
  },
  insecure: {
    title: "The microphone needs HTTPS",
    text:
      "Browsers give the microphone only to secure pages. Open this page as https://… or on this computer as " +
      "http://localhost, or start the server with --tls-cert CERT.pem --tls-key KEY.pem. Typing works here too.",
    actions: [["text-only", "Type instead"]],
  },
  denied: {
    title: "The microphone is blocked",
    text:
      "Allow the microphone for this page: click the icon at the left of the address, switch the microphone on, then " +
      "try again. On a phone look into the browser's site settings.",
    actions: [["retry-mic", "Try again"], ["text-only", "Type instead"]],
  },
  missing: {
    title: "No microphone found",
    text: "Plug in or switch on a microphone or headset, then try again. You can also type and hear the answers.",
    actions: [["retry-mic", "Try again"], ["text-only", "Type instead"]],
  },
  busy: {
    title: "The microphone is in use",
    text: "Another program holds the microphone. Close it there, or choose another device in the settings.",
    actions: [["retry-mic", "Try again"], ["text-only", "Type instead"]],
  },
  lost: {
    title: "The microphone is gone",
    text: "The device was unplugged or switched off. Plug it in again or go on with another one.",
    actions: [["retry-mic", "Use another microphone"], ["text-only", "Type instead"]],
  },
  failed: {
    title: "The microphone did not start",
    text: "The browser could not open the microphone. Try again, choose another device, or reload the page.",
    actions: [["retry-mic", "Try again"], ["text-only", "Type instead"]],
  },
  server_busy: {
    title: "All seats are taken",
    text: "Other people are talking at the moment. Your place is asked for again by itself.",
    actions: [["retry-now", "Try now"], ["give-up", "Stop waiting"]],
  },
  server_loading: {
    title: "The server is starting",
    text: "It is getting its models ready, which takes a moment. The talk goes on by itself.",
    actions: [["retry-now", "Try now"], ["give-up", "Stop waiting"]],
  },
  unreachable: {
    title: "The server cannot be reached",
    text: "Check your network, and that the server runs. The page keeps trying and goes on by itself.",
    actions: [["retry-now", "Try now"], ["give-up", "Stop trying"]],
  },
  away: {
    title: "The server cannot be reached",
    text: "Check your network, and that the server runs. The page goes on by itself as soon as it answers.",
    actions: [],
  },
  slow: {
    title: "Your network is too slow for your voice",
    text:
      "What you say arrives late. Hold to talk needs less of the network than hands-free, and typing hardly any. Or come " +
      "closer to the router, or use another network.",
    actions: [],
  },
  taken: {
    title: "The conversation went on in another tab",
    text: "Only one tab can hold a conversation. Close the other one, or start a new conversation here.",
    actions: [["start", "Start here"]],
  },
  refused: {
    title: "The server ended the conversation",
    text: "{message} Start again; if it happens again, reload the page.",
    actions: [["start", "Start again"]],
  },
  start_failed: {
    title: "The server could not start",
    text: "A model or a setting is missing. The server's log says which one and what to do.",
    actions: [],
  },
  audio: {
    title: "Sound is paused by the browser",
    text: "Tap once to let the page play sound.",
    actions: [["resume-audio", "Play sound"]],
  },
  broken: {
    title: "This browser cannot run the page",
    text: "It lacks Web Audio worklets. Use a current Chrome, Edge, Firefox or Safari.",
    actions: [],
  },
};

export function fillNotice(kind, values = {}) {
  const notice = NOTICES[kind];
  const text = notice.text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "").trim();
  return { ...notice, text };
}

/** Names of the parts of a turn's latency, in the order in which they happen. */
export const PARTS = [
  ["endpointing", "end of speech"],
  ["asr", "recognition"],
  ["prompt", "prompt"],
  ["llm_first_token", "first word"],
  ["first_clause", "first clause"],
  ["tts_first_audio", "voice"],
  ["send", "network"],
  ["playout", "playback"],
];

/** turn_metrics -> [{key, label, ms}] of the parts that took any time, unknown ones last. */
export function latencyParts(metrics) {
  const parts = metrics.parts_ms ?? {};
  const known = new Map(PARTS);
  const order = [...known.keys(), ...Object.keys(parts).filter((key) => !known.has(key))];
  return order
    .filter((key) => Number.isFinite(parts[key]) && Math.round(parts[key]) !== 0)
    .map((key) => ({ key, label: known.get(key) ?? key.replaceAll("_", " "), ms: Math.round(parts[key]) }));
}

/** 640 -> "0.64 s" */
export const asSeconds = (ms) => `${(ms / 1000).toFixed(2)} s`;
