// The player on the audio thread.

import { PlayerEngine } from "./player-engine.js";

class PlayerProcessor extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.engine = new PlayerEngine({
      contextRate: sampleRate,
      sourceRate: processorOptions.sourceRate,
      post: (message, transfer) => this.port.postMessage(message, transfer ?? []),
    });
    this.port.onmessage = ({ data }) => this.engine.receive(data);
  }

  process(inputs, outputs) {
    this.engine.render(outputs[0][0], currentTime);
    return true;
  }
}

registerProcessor("voicepod-player", PlayerProcessor);
