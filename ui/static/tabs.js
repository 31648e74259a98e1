// The tabs in the page's head: one is shown, the arrow keys go from one to the next.

export class Tabs {
  /** tabs: {name: [tab, panel]}; onShow(name) when another one is shown. */
  constructor(tabs, onShow) {
    this.tabs = tabs;
    this.onShow = onShow;
    this.names = Object.keys(tabs);
    [this.shown] = this.names;
    this.names.forEach((name, index) => {
      const [tab] = tabs[name];
      tab.addEventListener("click", () => this.show(name));
      tab.addEventListener("keydown", (event) => this.#key(event, index));
    });
  }

  show(name) {
    if (name === this.shown) return;
    this.shown = name;
    for (const [other, [tab, panel]] of Object.entries(this.tabs)) {
      const chosen = other === name;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      panel.hidden = !chosen;
    }
    this.onShow(name);
  }

  #key(event, index) {
    const last = this.names.length - 1;
    const to = { ArrowRight: index === last ? 0 : index + 1, ArrowLeft: index === 0 ? last : index - 1, Home: 0, End: last };
    if (!(event.key in to)) return;
    event.preventDefault();
    const name = this.names[to[event.key]];
    this.tabs[name][0].focus();
    this.show(name);
  }
}
