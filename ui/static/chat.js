// The messages on the page, drawn from the transcript.

import { asSeconds, latencyParts } from "./status.js";

const NEAR_END_PX = 80;

export class Chat {
  constructor({ list, partial, announce }) {
    Object.assign(this, { list, partial, announce });
    this.rows = new Map();
  }

  get empty() {
    return this.rows.size === 0;
  }

  /** Draws one message; `index` is its place. Partial words also stand under the orb, final ones are read out. */
  show(message, index) {
    if (!message.text && message.state === "done" && !message.note) return;
    const following = this.#atEnd();
    const row = this.rows.get(message.id) ?? this.#add(message, index);
    row.classList.toggle("open", message.state === "open");
    row.classList.toggle("failed", message.state === "failed");
    const words = row.querySelector(".words");
    words.textContent = message.text || (message.state === "open" ? "…" : "");
    const note = row.querySelector(".note");
    note.textContent = message.note;
    note.hidden = !message.note;
    if (message.role === "user") this.#userWords(message, row);
    if (message.metrics && !row.querySelector(".latency")) row.append(latency(message.metrics));
    if (following) this.list.scrollTop = this.list.scrollHeight;
  }

  #userWords(message, row) {
    const open = message.state === "open";
    row.setAttribute("aria-hidden", String(open));
    this.partial.textContent = open ? message.text : "";
    if (!open && message.text && row.dataset.said !== message.text) {
      row.dataset.said = message.text;
      this.announce.textContent = `You said: ${message.text}`;
    }
  }

  #atEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.list;
    return scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
  }

  #add(message, index) {
    const row = document.createElement("article");
    row.className = `message ${message.role}`;
    row.dataset.id = message.id;
    row.innerHTML = '<p class="who"></p><p class="words" dir="auto"></p><p class="note" hidden></p>';
    row.querySelector(".who").textContent = message.role === "user" ? "You" : "Voicepod";
    const rows = this.list.querySelectorAll(".message");
    this.list.insertBefore(row, rows[index] ?? null);
    this.rows.set(message.id, row);
    return row;
  }

  /** A line between messages, such as the news that an earlier conversation has ended. */
  divide(text) {
    const line = document.createElement("p");
    line.className = "divider";
    line.textContent = text;
    this.list.append(line);
    this.list.scrollTop = this.list.scrollHeight;
  }

  /** The words of the line that stands last, "" if a message does. */
  get lastLine() {
    const last = this.list.lastElementChild;
    return last?.className === "divider" ? last.textContent : "";
  }

  remove(id) {
    this.rows.get(id)?.remove();
    this.rows.delete(id);
  }

  clear() {
    this.rows.clear();
    this.list.replaceChildren();
    this.partial.textContent = "";
  }
}

/** The latency of a turn: total, and its parts as chips that the total opens. */
function latency(metrics) {
  const box = document.createElement("details");
  box.className = "latency";
  const total = document.createElement("summary");
  total.textContent = asSeconds(metrics.total_ms ?? 0);
  total.setAttribute("aria-label", `Answered after ${asSeconds(metrics.total_ms ?? 0)}, show the parts`);
  const chips = document.createElement("ul");
  for (const { key, label, ms } of latencyParts(metrics)) {
    const chip = document.createElement("li");
    chip.dataset.part = key;
    chip.textContent = `${label} ${ms} ms`;
    chips.append(chip);
  }
  box.append(total, chips);
  return box;
}
