"use strict";
// The page: reads the trace, and goes to events.

const find = (id) => document.getElementById(id);

async function load() {
  const bytes = Uint8Array.from(atob(find("data").textContent.replace(/\s+/g, "")), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

class Viewer {
  constructor(data) {
    this.data = data;
    this.count = data.events.time.length;
    this.tables = new Tables(data.tables, data.changes);
    this.panels = new Panels(this.tables, data);
    this.list = new EventList(find("events"), find("spacer"), data, (number) => this.go(number));
    this.timeline = new Timeline(find("canvas"), find("hint"), data, (number) => this.go(number));
    this.tab = 0;
    this.now = 0;
    const { about } = data;
    find("about").textContent = [about.scheduler, about.pcpus && `${about.pcpus} pCPU`, `${this.count} events`].filter(Boolean).join(" · ");
    const rows = Math.min(11, Math.max(4, this.timeline.rows.length));
    document.body.style.gridTemplateRows = `auto ${TOP + rows * ROW + 4}px minmax(0, 1fr)`;
    this.makeTabs();
    this.listen();
    this.go(this.wanted());
  }

  // The event that the address names: viewer.html#event=12
  wanted() { return Number(location.hash.match(/event=(\d+)/)?.[1] ?? 0); }

  go(number) {
    if (!this.count) return;
    this.now = Math.max(0, Math.min(this.count - 1, number));
    this.tables.go(this.now);
    this.panels.mark(this.tables.of(this.now));
    const { events, texts } = this.data;
    find("position").textContent = `event ${this.now + 1} of ${this.count}, at ${seconds(events.time[this.now])} s`;
    find("narration").replaceChildren(
      element("p", {}, texts[events.say[this.now]]),
      element("div", { className: "source" }, `See ${texts[events.source[this.now]]}.`));
    this.list.show(this.now);
    this.timeline.show(this.now);
    this.showPanel();
    history.replaceState(null, "", `#event=${this.now}`);
  }

  makeTabs() {
    this.tabs = this.panels.list.map(([name], number) => {
      const tab = element("button", { role: "tab", id: `tab-${number}`, title: `${name} (${number + 1})` }, name);
      tab.addEventListener("click", () => this.choose(number));
      return tab;
    });
    find("tabs").append(...this.tabs);
  }

  choose(number) { this.tab = number; this.showPanel(); find("panel").scrollTop = 0; }

  showPanel() {
    this.tabs.forEach((tab, number) => {
      tab.setAttribute("aria-selected", String(number === this.tab));
      tab.tabIndex = number === this.tab ? 0 : -1;
      tab.classList.toggle("changed", this.panels.changed(number));
    });
    find("panel").setAttribute("aria-labelledby", `tab-${this.tab}`);
    find("panel").replaceChildren(...this.panels.list[this.tab][2]());
    find("panel").querySelector(".touched")?.scrollIntoView({ block: "nearest" });
  }

  // The next event of the same vCPU, in a direction.
  same(forward) {
    const { who } = this.data.events;
    for (let number = this.now + (forward ? 1 : -1); number >= 0 && number < this.count; number += forward ? 1 : -1) {
      if (who[number] === who[this.now]) return number;
    }
    return this.now;
  }

  search(forward, again = false) {
    const query = find("query").value;
    if (!again || this.query !== query) {
      this.query = query;
      const matches = this.list.search(query);
      find("matches").textContent = query.trim() ? `${matches.toLocaleString("en")} found` : "";
      // An event that is already there counts as the first match.
      if (matches && this.list.found.has(this.now)) { this.go(this.now); return; }
    }
    const number = this.list.match(this.now, forward);
    if (number !== null) this.go(number);
  }

  listen() {
    for (const [id, act] of Object.entries({
      first: () => this.go(0), back: () => this.go(this.now - 1), step: () => this.go(this.now + 1),
      last: () => this.go(this.count - 1), previous: () => this.search(false, true), "help-button": () => find("help").showModal(),
    })) find(id).addEventListener("click", act);
    find("search").addEventListener("submit", (event) => { event.preventDefault(); this.search(true, true); });
    addEventListener("hashchange", () => this.go(this.wanted()));
    addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || find("help").open) return;
    if (event.target === find("query")) {
      // The browser would empty the field.
      if (event.key === "Escape") { event.preventDefault(); find("events").focus(); }
      return;
    }
    const act = this.keys(event)[event.key];
    if (act) { event.preventDefault(); act(); }
  }

  keys(event) {
    const { timeline } = this;
    const step = (forward) => this.go(event.shiftKey ? this.same(forward) : this.now + (forward ? 1 : -1));
    return {
      ArrowRight: () => step(true), ArrowLeft: () => step(false), ArrowDown: () => step(true), ArrowUp: () => step(false),
      PageDown: () => this.go(this.now + 100), PageUp: () => this.go(this.now - 100),
      Home: () => this.go(0), End: () => this.go(this.count - 1),
      "/": () => { find("query").focus(); find("query").select(); },
      n: () => this.search(true, true), N: () => this.search(false, true),
      "+": () => timeline.zoom(0.6), "=": () => timeline.zoom(0.6), "-": () => timeline.zoom(1 / 0.6), "0": () => timeline.all(),
      "?": () => find("help").showModal(),
      ...Object.fromEntries(this.panels.list.map((_, number) => [String(number + 1), () => this.choose(number)])),
    };
  }
}

load().then((data) => { window.viewer = new Viewer(data); }, (error) => {
  find("narration").textContent = `This page could not be read: ${error}`;
  throw error;
});
