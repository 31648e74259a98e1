import assert from "node:assert/strict";
import test from "node:test";

import { Typed } from "../../ui/static/typed.js";

function setUp() {
  const socket = { open: true };
  const said = [];
  const typed = new Typed({ socket, say: ({ id, text }) => said.push({ id, text }) });
  const created = (resumed) => typed.take({ type: "session.created", session: { voicepod: { resumed } } });
  const added = (id) => typed.take({ type: "conversation.item.added", item: { id } });
  return { socket, said, typed, created, added, words: () => said.map(({ text }) => text) };
}

test("a text is said at once, and one that came before the connection when there is one", () => {
  const { socket, typed, created, words } = setUp();
  socket.open = false;
  typed.add("first");
  assert.deepEqual(words(), []);
  socket.open = true;
  created(false);
  typed.add("second");
  assert.deepEqual(words(), ["first", "second"]);
});

test("a text that went into a dead connection is said again, one that arrived is not", () => {
  const { said, typed, created, added, words } = setUp();
  typed.add("arrived and told");
  added(said[0].id);
  typed.add("arrived, not told");
  typed.add("lost");
  created(true);
  typed.add("typed before the history was told");
  added(said[1].id);
  assert.equal(words().length, 3, "said before it is known what arrived");
  typed.take({ type: "voicepod.state", user: "silent", agent: "idle" });
  typed.take({ type: "voicepod.state", user: "silent", agent: "thinking" });
  assert.deepEqual(words().slice(3), ["lost", "typed before the history was told"]);
  assert.equal(said[3].id, said[2].id);
});

test("a conversation that is over takes what it never got along, a refused text stays away", () => {
  const { said, typed, created, words } = setUp();
  typed.add("lost");
  typed.add("refused");
  typed.take({ type: "error", error: { code: "conversation_full", event_id: said[1].id } });
  created(false);
  assert.deepEqual(words(), ["lost", "refused", "lost"]);
  typed.clear();
  created(false);
  assert.equal(words().length, 3);
});
