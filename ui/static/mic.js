// The microphone: asks for it, names what went wrong, gives 20 ms frames.

export const MIC_RATE = 16000;

/** Why there is no microphone: `kind` is one of insecure, denied, missing, busy, lost, failed. */
export class MicError extends Error {
  constructor(kind, cause) {
    super(kind, { cause });
    this.kind = kind;
  }
}

const KINDS = {
  NotAllowedError: "denied",
  SecurityError: "denied",
  NotFoundError: "missing",
  OverconstrainedError: "missing",
  NotReadableError: "busy",
  AbortError: "busy",
};

/** True where the browser lets a page use a microphone at all: HTTPS or this computer. */
export function microphonePossible(scope = globalThis) {
  return Boolean(scope.isSecureContext && scope.navigator?.mediaDevices?.getUserMedia);
}

async function request(deviceId, processing) {
  const audio = { channelCount: 1, echoCancellation: processing, noiseSuppression: processing, autoGainControl: processing };
  if (deviceId) audio.deviceId = { exact: deviceId };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    // The remembered device is gone: any microphone is better than none.
    if (deviceId && error.name === "OverconstrainedError") return request("", processing);
    throw new MicError(KINDS[error.name] ?? "failed", error);
  }
}

export class Microphone {
  /**
   * onFrame({pcm, rms, at}) for each 20 ms; onLost() when the device goes away, onSilenced() when the system mutes it, as
   * by a key of the keyboard or for a call, and when it no longer does. processing: the browser takes out echo
   * and noise and sets the level, as a conversation needs it.
   */
  constructor(context, { onFrame, onLost, onSilenced = () => {}, rate = MIC_RATE, processing = true }) {
    Object.assign(this, { context, onFrame, onLost, onSilenced, rate, processing });
    this.stream = null;
    this.asked = 0; // each question to the browser has a number: the answer to an older one comes too late
    this.device = ""; // which one was opened last
  }

  get open() {
    return this.stream !== null;
  }

  /** True while the system gives silence in place of what the device hears. */
  get silenced() {
    return Boolean(this.stream?.getAudioTracks()[0].muted);
  }

  /** Opens the device with this id, or the default one for "", unless `stop` came while the browser asked. Raises MicError. */
  async start(deviceId) {
    if (!microphonePossible()) throw new MicError("insecure");
    const asked = (this.asked += 1);
    const stream = await request(deviceId, this.processing);
    if (asked !== this.asked) {
      for (const track of stream.getTracks()) track.stop();
      return;
    }
    this.stop();
    this.stream = stream;
    const [track] = stream.getAudioTracks();
    this.device = track.getSettings().groupId ?? "";
    track.onended = () => {
      if (this.stream !== stream) return;
      this.stop();
      this.onLost();
    };
    track.onmute = track.onunmute = () => this.onSilenced();
    this.source = new MediaStreamAudioSourceNode(this.context, { mediaStream: stream });
    this.node = new AudioWorkletNode(this.context, "voicepod-mic", {
      channelCount: 1,
      channelCountMode: "explicit",
      processorOptions: { targetRate: this.rate },
    });
    this.node.port.onmessage = ({ data }) => this.onFrame(data);
    // It writes nothing, but some browsers only run what leads to the output.
    this.source.connect(this.node).connect(this.context.destination);
  }

  /** Silences the track itself, so that the browser's own indicator is right too. */
  setMuted(muted) {
    for (const track of this.stream?.getAudioTracks() ?? []) track.enabled = !muted;
  }

  /** Closes the device, or gives up waiting for one. */
  stop() {
    this.asked += 1;
    if (!this.stream) return;
    const { stream } = this;
    this.stream = null;
    this.node.port.onmessage = null;
    this.source.disconnect();
    this.node.disconnect();
    for (const track of stream.getTracks()) {
      track.onended = track.onmute = track.onunmute = null;
      track.stop();
    }
  }
}

/** True when the user or the browser forbids this page the microphone; browsers that do not say count as willing. */
export async function microphoneDenied() {
  try {
    return (await navigator.permissions.query({ name: "microphone" })).state === "denied";
  } catch {
    return false;
  }
}

/** True while the device that was called `device` is plugged in. */
export async function isThere(device) {
  const devices = await navigator.mediaDevices.enumerateDevices();
  return device !== "" && devices.some(({ kind, groupId }) => kind === "audioinput" && groupId === device);
}

/** The microphones as [{id, name}]; names are empty until permission was given. */
export async function listMicrophones() {
  if (!microphonePossible()) return [];
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices
    .filter((device) => device.kind === "audioinput" && device.deviceId !== "default")
    .map((device, index) => ({ id: device.deviceId, name: device.label || `Microphone ${index + 1}` }))
    .filter((device) => device.id);
}
