// Keys that work anywhere on the page: Esc interrupts, Space is the talk button.

const TYPING = new Set(["INPUT", "TEXTAREA", "SELECT", "BUTTON", "SUMMARY", "A"]);

/** True when this element needs its Space itself; the talk button is the one that shares it. */
export function ownsSpace(element) {
  if (!element?.tagName || element.id === "hold") return false;
  return TYPING.has(element.tagName) || element.isContentEditable === true;
}

/** Listens until `signal` aborts. canHold() says if hold-to-talk is the mode now. */
export function listenToKeys({ signal, onInterrupt, canHold, onHold, onRelease }) {
  const options = { signal, capture: true };
  const target = (event) => event.composedPath()[0];
  document.addEventListener(
    "keydown",
    (event) => {
      if (event.key === "Escape") onInterrupt();
      if (event.code !== "Space" || event.ctrlKey || event.altKey || event.metaKey) return;
      if (!canHold() || ownsSpace(target(event))) return;
      event.preventDefault();
      if (!event.repeat) onHold();
    },
    options,
  );
  document.addEventListener(
    "keyup",
    (event) => {
      if (event.code !== "Space" || !canHold()) return;
      if (!ownsSpace(target(event))) event.preventDefault();
      onRelease();
    },
    options,
  );
  // A key that is let go in another window sends no keyup here.
  window.addEventListener("blur", () => onRelease(), { signal });
}
