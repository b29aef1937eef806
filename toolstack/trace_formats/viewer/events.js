"use strict";
// The list of all events, of which only those in sight are in the page; and searching in it.

const LINE = 20;

class EventList {
  constructor(box, spacer, data, onPick) {
    Object.assign(this, { box, spacer, data, onPick, now: 0, found: new Set() });
    this.count = data.events.time.length;
    spacer.style.height = `${this.count * LINE}px`;
    box.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(box);
    box.addEventListener("click", (event) => {
      const line = event.target.closest(".event");
      if (line) onPick(Number(line.dataset.number));
    });
  }

  text(number) {
    const { events, whos, kinds, texts } = this.data;
    return [seconds(events.time[number]), whos[events.who[number]], kinds[events.kind[number]], texts[events.text[number]]];
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / LINE) - 5);
    const last = Math.min(this.count, first + Math.ceil(this.box.clientHeight / LINE) + 10);
    const lines = document.createDocumentFragment();
    for (let number = first; number < last; number++) lines.append(this.line(number));
    this.spacer.replaceChildren(lines);
  }

  line(number) {
    const [time, who, kind, text] = this.text(number);
    const now = number === this.now;
    const line = element("div", { className: `event${now ? " now" : this.found.has(number) ? " found" : ""}`, id: `event-${number}`, role: "option" });
    line.setAttribute("aria-selected", String(now));
    line.dataset.number = number;
    line.style.top = `${number * LINE}px`;
    line.title = text;
    line.append(element("span", { className: "time" }, time), ` ${who.padEnd(6)} `, element("b", {}, kind), ` ${text}`);
    return line;
  }

  show(number) {
    this.now = number;
    const { box } = this, top = number * LINE;
    if (top < box.scrollTop + LINE) box.scrollTop = top - box.clientHeight / 3;
    else if (top > box.scrollTop + box.clientHeight - 2 * LINE) box.scrollTop = top - box.clientHeight * 2 / 3;
    box.setAttribute("aria-activedescendant", `event-${number}`);
    this.draw();
  }

  // Mark the events that hold all words of a query, in what is listed or in what is said of them.
  search(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    const { events, texts } = this.data;
    this.found = new Set();
    if (words.length) {
      for (let number = 0; number < this.count; number++) {
        const [, ...rest] = this.text(number);
        const whole = `${rest.join(" ")} ${texts[events.say[number]]}`.toLowerCase();
        if (words.every((word) => whole.includes(word))) this.found.add(number);
      }
    }
    this.matches = [...this.found];
    this.draw();
    return this.matches.length;
  }

  // The next match in a direction, around the end.
  match(from, forward) {
    const { matches } = this;
    if (!matches?.length) return null;
    const after = matches.find((number) => number > from) ?? matches[0];
    const before = matches.findLast((number) => number < from) ?? matches[matches.length - 1];
    return forward ? after : before;
  }
}

// A new element; children are elements or text.
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
