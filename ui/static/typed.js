// What was typed, kept until the server has it: a text that went into a dead connection is sent again in the next one.

export class Typed {
  /** say({id, text}) sends one text; it is called while `socket` is open. */
  constructor({ socket, say }) {
    Object.assign(this, { socket, say });
    this.texts = []; // {id, text, sent}: not yet seen in the conversation, in order
    this.knows = true; // the history of a resumed conversation has been told: what is missing in it was lost
    this.prefix = `typed_${Math.random().toString(36).slice(2)}`;
    this.n = 0;
  }

  add(text) {
    this.texts.push({ id: `${this.prefix}_${(this.n += 1)}`, text, sent: false });
    this.#send();
  }

  /** Takes every event of the server. */
  take({ type, session, item, error }) {
    if (type === "session.created") {
      for (const text of this.texts) text.sent = false;
      this.knows = !session.voicepod?.resumed;
      this.#send();
    } else if (type === "voicepod.state" && !this.knows) {
      this.knows = true; // it stands behind the history
      this.#send();
    } else if (type === "conversation.item.added") {
      this.#forget(item.id);
    } else if (type === "error") {
      this.#forget(error?.event_id);
    }
  }

  #send() {
    if (!this.socket.open || !this.knows) return;
    for (const text of this.texts.filter(({ sent }) => !sent)) {
      text.sent = true;
      this.say(text);
    }
  }

  #forget(id) {
    this.texts = this.texts.filter((text) => text.id !== id);
  }

  clear() {
    this.texts = [];
  }
}
