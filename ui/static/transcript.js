// The conversation as the page shows and exports it: messages in order, fed by the server's events. No DOM here.

/** Text of an item's content parts, whichever kind they are. */
export function itemText(item) {
  return (item.content ?? [])
    .map((part) => part.transcript ?? part.text ?? "")
    .filter(Boolean)
    .join(" ");
}

export class Transcript {
  /** onChange(message) after each change of one message, onRemove(id); `clock()` gives seconds of the conversation. */
  constructor({ onChange, onRemove, clock }) {
    Object.assign(this, { onChange, onRemove, clock });
    this.messages = [];
    this.turns = new Map(); // turn number -> id of the reply
  }

  get(id) {
    return this.messages.find((message) => message.id === id);
  }

  #upsert(id, role, previousId) {
    let message = this.get(id);
    if (!message) {
      message = { id, role, text: "", state: "open", startS: this.clock(), endS: null, turn: null, metrics: null, note: "" };
      const index = this.messages.findIndex((other) => other.id === previousId);
      if (index >= 0) this.messages.splice(index + 1, 0, message);
      else this.messages.push(message);
    }
    return message;
  }

  #changed(message, changes) {
    Object.assign(message, changes);
    this.onChange(message);
  }

  /** An item came into the conversation, live or while an earlier conversation is restored. */
  itemAdded(item, previousId) {
    if (item.type !== "message" || (item.role !== "user" && item.role !== "assistant")) return;
    const known = this.get(item.id);
    const text = itemText(item);
    const finished = item.status !== "in_progress";
    if (item.role === "assistant" && finished && !text && !known) return; // it ended before its first word
    const message = this.#upsert(item.id, item.role, previousId);
    if (item.role === "user" && item.status === "incomplete" && !text) {
      this.userFailed(item.id);
      return;
    }
    // A reply that is being made is shown by its captions; only a finished one that this page has not seen is filled in.
    if (item.role === "assistant" && (known || !finished)) return;
    const done = text !== "";
    message.restored = item.role === "assistant";
    this.#changed(message, { text: text || message.text, state: done ? "done" : "open", endS: this.clock() });
  }

  /** The item is complete; a reply's text waits here until its turn has been heard. */
  itemDone(item) {
    const message = this.get(item.id);
    if (!message) return;
    if (item.role === "assistant") message.fullText = itemText(item);
    else if (itemText(item)) this.#changed(message, { text: itemText(item), state: "done" });
  }

  userPartial(id, delta) {
    const message = this.#upsert(id, "user");
    if (message.state === "open") this.#changed(message, { text: message.text + delta });
  }

  userFinal(id, text) {
    this.#changed(this.#upsert(id, "user"), { text: text.trim(), state: "done", endS: this.clock() });
  }

  userFailed(id) {
    this.#changed(this.#upsert(id, "user"), { state: "failed", note: "I could not make out these words." });
  }

  /** The voice has reached this caption. */
  caption({ turn, item_id: id, text }) {
    const message = this.#upsert(id, "assistant");
    this.turns.set(turn, id);
    if (message.restored || message.metrics) return; // the whole text stands there already
    const startS = message.text ? message.startS : this.clock();
    this.#changed(message, { text: message.text + text, turn, startS, endS: this.clock(), state: "open" });
  }

  /** The reply was cut; `heard` is the server's text of what was heard, where it says so. */
  truncated(id, heard) {
    const message = this.get(id);
    if (!message) return;
    message.fullText = "";
    const text = typeof heard === "string" ? heard : message.text;
    this.#changed(message, { text, state: "done", note: "interrupted", endS: this.clock() });
  }

  /** The turn is over: figures, and the whole text where everything was heard. */
  turnOver(metrics) {
    const message = this.get(this.turns.get(metrics.turn));
    if (!message) return null;
    const completed = metrics.outcome === "completed";
    const text = completed && message.fullText ? message.fullText : message.text;
    const note = metrics.outcome === "interrupted" ? "interrupted" : message.note;
    this.#changed(message, { text, metrics, note, state: "done", endS: this.clock() });
    return message;
  }

  remove(id) {
    this.messages = this.messages.filter((message) => message.id !== id);
    this.onRemove(id);
  }

  clear() {
    for (const { id } of [...this.messages]) this.remove(id);
    this.turns.clear();
  }
}
