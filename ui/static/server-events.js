// What the server says in a talk, given to the parts of the page that show it.

// Answers to what the page did on purpose, and what its notices say better.
const QUIET_ERRORS = new Set([
  "session_not_found",
  "response_cancel_not_active",
  "input_audio_buffer_commit_empty",
  "server_busy",
  "engine_not_ready",
]);

export class ServerEvents {
  /**
   * `sound.player` may be null. onSession(session) for each connection; say(words) puts a line into the chat, unless it
   * was the last one; onDropped() when what was heard turned out to be no words.
   */
  constructor({ transcript, captions, live, sound, onSession, onDropped, say }) {
    Object.assign(this, { transcript, captions, live, sound, onSession, onDropped, say });
  }

  take(event) {
    const { transcript, captions, live } = this;
    switch (event.type) {
      case "session.created":
        this.onSession(event.session);
        break;
      case "voicepod.state":
        live.user = event.user ?? live.user;
        live.agent = event.agent ?? live.agent;
        break;
      case "input_audio_buffer.speech_started":
        live.user = "speaking";
        break;
      case "input_audio_buffer.speech_stopped":
        live.user = "silent";
        break;
      case "voicepod.notice":
        this.#failed(event.message);
        break;
      case "voicepod.rate":
        this.sound.player?.setSourceRate(event.rate);
        break;
      case "voicepod.flush":
        this.sound.player?.flush(event.turn);
        captions.flush(event.turn);
        break;
      case "voicepod.caption":
        captions.add(event);
        break;
      case "conversation.item.added":
        transcript.itemAdded(event.item, event.previous_item_id);
        break;
      case "conversation.item.done":
        transcript.itemDone(event.item);
        break;
      case "conversation.item.truncated":
        transcript.truncated(event.item_id, event.voicepod?.text);
        break;
      case "conversation.item.deleted":
        transcript.remove(event.item_id);
        break;
      case "voicepod.utterance_dropped":
        transcript.remove(event.item_id);
        this.onDropped();
        break;
      case "conversation.item.input_audio_transcription.delta":
        transcript.userPartial(event.item_id, event.delta ?? "");
        break;
      case "conversation.item.input_audio_transcription.completed":
        transcript.userFinal(event.item_id, event.transcript ?? "");
        break;
      case "conversation.item.input_audio_transcription.failed":
        transcript.userFailed(event.item_id);
        break;
      case "voicepod.turn_metrics":
        this.#turnOver(event);
        break;
      case "response.done":
        if (event.response?.status === "failed") this.#failed(event.response.status_details?.error?.message);
        break;
      case "error":
        if (!QUIET_ERRORS.has(event.error?.code)) this.#failed(event.error?.message);
        break;
      default: // the other events of the protocol say nothing that the page shows
    }
  }

  /** The player has come to this sample: captions appear with the voice. */
  heard(turn, played) {
    for (const caption of this.captions.advance(turn, played)) this.transcript.caption(caption);
  }

  #turnOver(metrics) {
    if (metrics.outcome === "completed") this.heard(metrics.turn, Infinity);
    else this.captions.flush(metrics.turn);
    this.transcript.turnOver(metrics);
  }

  /** A failed turn is told twice, by `error` and by `response.done`; people read it once. */
  #failed(message) {
    this.say(message || "Something went wrong with this answer. Please ask again.");
  }
}
