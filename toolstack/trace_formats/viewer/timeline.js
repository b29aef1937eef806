"use strict";
// What ran where: a row for each pCPU and each vCPU, turns as bars, events as dots.

const ROW = 20, LABEL = 74, TOP = 18;

class Timeline {
  constructor(canvas, hint, data, onPick) {
    Object.assign(this, { canvas, hint, data, onPick, now: 0, scroll: 0 });
    const { time } = data.events;
    this.begin = 0;
    this.end = Math.max(1, time.reduce((most, value) => Math.max(most, value), 0));
    [this.from, this.to] = [this.begin, this.end];
    this.build();
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointerleave", () => { this.hint.hidden = true; });
  }

  build() {
    const { events, kinds, whos } = this.data;
    const begins = kinds.indexOf("schedule"), ends = kinds.indexOf("deschedule");
    this.rows = [];
    const places = new Map();
    const row = (name) => {
      if (!places.has(name)) {
        places.set(name, { name, bars: [], dots: [] });
      }
      return places.get(name);
    };
    const open = new Map();
    events.time.forEach((time, number) => {
      const who = whos[events.who[number]], pcpu = events.pcpu[number];
      row(who).dots.push(number);
      if (events.kind[number] === begins) open.set(pcpu, [time, who]);
      else if (events.kind[number] === ends) {
        const [since, ran] = open.get(pcpu) ?? [time, who];
        open.delete(pcpu);
        row(`pCPU ${pcpu}`).bars.push([since, time, ran]);
        row(ran).bars.push([since, time, `pCPU ${pcpu}`]);
      }
    });
    for (const [pcpu, [since, ran]] of open) {
      row(`pCPU ${pcpu}`).bars.push([since, this.end, ran]);
      row(ran).bars.push([since, this.end, `pCPU ${pcpu}`]);
    }
    const order = (name) => (name.startsWith("pCPU") ? 0 : 1e6) + Number(name.match(/\d+/)[0]) * 1000 + Number(name.match(/v(\d+)/)?.[1] ?? 0);
    this.rows = [...places.values()].sort((a, b) => order(a.name) - order(b.name));
  }

  x(time) { return LABEL + (time - this.from) / (this.to - this.from) * (this.width - LABEL - 8); }
  time(x) { return this.from + (x - LABEL) / (this.width - LABEL - 8) * (this.to - this.from); }

  draw() {
    const { canvas } = this, ratio = devicePixelRatio || 1;
    this.width = canvas.clientWidth;
    this.height = canvas.clientHeight;
    canvas.width = this.width * ratio;
    canvas.height = this.height * ratio;
    const paint = canvas.getContext("2d");
    paint.setTransform(ratio, 0, 0, ratio, 0, 0);
    const style = getComputedStyle(document.body);
    this.ink = { fore: style.color, dim: style.getPropertyValue("--dim"), line: style.getPropertyValue("--line"), back: style.getPropertyValue("--back") };
    paint.clearRect(0, 0, this.width, this.height);
    paint.font = "11px system-ui, sans-serif";
    paint.textBaseline = "middle";
    this.rows.forEach((row, place) => this.drawRow(paint, row, TOP + place * ROW - this.scroll));
    this.drawScale(paint);
    const at = this.x(this.data.events.time[this.now]);
    paint.fillStyle = "#e5484d";
    if (at >= LABEL) paint.fillRect(at - 0.75, 0, 1.5, this.height);
  }

  drawRow(paint, row, y) {
    if (y < -ROW || y > this.height) return;
    paint.fillStyle = this.ink.line;
    paint.fillRect(LABEL, y + ROW - 1, this.width, 1);
    paint.save();
    paint.beginPath();
    paint.rect(LABEL, y, this.width - LABEL, ROW);
    paint.clip();
    let last = -9;
    for (let place = lowest(row.bars, this.from, (bar) => bar[1]); place < row.bars.length; place++) {
      const [since, until, what] = row.bars[place];
      if (since > this.to) break;
      const x = this.x(since), width = Math.max(0.6, this.x(until) - x);
      if (x + width < last + 0.5) continue;
      last = x + width;
      paint.fillStyle = colour(row.name.startsWith("pCPU") ? what : row.name);
      paint.fillRect(x, y + 3, width, ROW - 7);
      if (width > 34) {
        paint.fillStyle = "#ffffff";
        paint.fillText(what, Math.max(x, LABEL) + 4, y + ROW / 2);
      }
    }
    this.drawDots(paint, row, y);
    paint.restore();
    paint.fillStyle = this.ink.fore;
    paint.fillText(row.name, 10, y + ROW / 2);
  }

  drawDots(paint, row, y) {
    const { time } = this.data.events;
    paint.fillStyle = this.ink.fore;
    let last = -9;
    for (let place = lowest(row.dots, this.from, (number) => time[number]); place < row.dots.length; place++) {
      const x = this.x(time[row.dots[place]]);
      if (x > this.width) break;
      if (x < last + 2) continue;
      last = x;
      paint.fillRect(x - 0.75, y + ROW - 6, 1.5, 4);
    }
  }

  drawScale(paint) {
    paint.fillStyle = this.ink.back;
    paint.fillRect(0, 0, this.width, TOP - 2);
    paint.fillStyle = this.ink.dim;
    const span = this.to - this.from, step = niceStep(span / Math.max(2, this.width / 130));
    for (let time = Math.ceil(this.from / step) * step; time <= this.to; time += step) {
      const x = this.x(time);
      paint.fillRect(x, TOP - 6, 1, 4);
      paint.fillText(duration(time, step), x + 3, 8);
    }
  }

  zoom(factor, x = this.x(this.data.events.time[this.now])) {
    const middle = Math.min(this.to, Math.max(this.from, this.time(x)));
    const span = Math.min(this.end - this.begin, Math.max(50, (this.to - this.from) * factor));
    const share = (middle - this.from) / (this.to - this.from);
    this.look(middle - span * share, span);
  }

  look(from, span) {
    this.from = Math.max(this.begin, Math.min(from, this.end - span));
    this.to = this.from + span;
    this.draw();
  }

  all() { this.look(this.begin, this.end - this.begin); }

  // Go to an event: it stays, or comes, into sight.
  show(number) {
    this.now = number;
    const time = this.data.events.time[number], span = this.to - this.from;
    if (time < this.from || time > this.to) this.look(time - span / 2, span); else this.draw();
  }

  wheel(event) {
    event.preventDefault();
    const most = Math.max(0, TOP + this.rows.length * ROW - this.height);
    if (event.shiftKey) { this.scroll = Math.max(0, Math.min(most, this.scroll + event.deltaY + event.deltaX)); this.draw(); }
    else this.zoom(Math.exp(event.deltaY / 400), event.offsetX);
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.drag = { x: event.offsetX, y: event.offsetY, from: this.from, scroll: this.scroll, moved: false };
  }

  move(event) {
    const { drag } = this;
    if (!drag) { this.tell(event); return; }
    const x = event.offsetX - drag.x, y = event.offsetY - drag.y;
    if (Math.abs(x) + Math.abs(y) > 4) drag.moved = true;
    if (!drag.moved) return;
    const span = this.to - this.from, most = Math.max(0, TOP + this.rows.length * ROW - this.height);
    this.scroll = Math.max(0, Math.min(most, drag.scroll - y));
    this.look(drag.from - x / (this.width - LABEL - 8) * span, span);
  }

  release(event) {
    const { drag } = this;
    this.drag = null;
    if (drag && !drag.moved) {
      const number = this.nearest(event);
      if (number !== null) this.onPick(number);
    }
  }

  // The event of the row under the pointer that is nearest to it; of all rows for a pCPU.
  nearest(event) {
    const row = this.rows[Math.floor((event.offsetY - TOP + this.scroll) / ROW)];
    const { time, pcpu } = this.data.events, wanted = this.time(event.offsetX);
    const dots = !row ? null : row.dots.length ? row.dots
      : time.map((_, number) => number).filter((number) => `pCPU ${pcpu[number]}` === row.name);
    if (!dots || !dots.length) return null;
    const place = lowest(dots, wanted, (number) => time[number]);
    const near = [dots[place - 1], dots[place]].filter((number) => number !== undefined);
    return near.reduce((a, b) => (Math.abs(time[a] - wanted) <= Math.abs(time[b] - wanted) ? a : b));
  }

  tell(event) {
    const number = this.nearest(event);
    this.hint.hidden = number === null;
    if (number === null) return;
    const { events, kinds, texts } = this.data;
    this.hint.textContent = `${seconds(events.time[number])}  ${kinds[events.kind[number]]} ${texts[events.text[number]]}`.slice(0, 110);
    this.hint.style.left = `${Math.min(event.offsetX + 12, Math.max(0, this.width - this.hint.offsetWidth - 6))}px`;
    this.hint.style.top = `${Math.min(event.offsetY + 14, this.height - 22)}px`;
  }
}

// The first place in `list` whose value is not below `wanted`; values nearly never go back.
function lowest(list, wanted, value) {
  let low = 0, high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (value(list[middle]) < wanted) low = middle + 1; else high = middle;
  }
  return low;
}

function colour(who) {
  const domain = Number(who.match(/\d+/)?.[0] ?? 0);
  return `hsl(${(212 + domain * 137) % 360} 48% 44%)`;
}

function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= least);
}

function duration(nanoseconds, step) {
  const [size, unit] = step >= 1e9 ? [1e9, "s"] : step >= 1e6 ? [1e6, "ms"] : step >= 1e3 ? [1e3, "µs"] : [1, "ns"];
  return `${Math.round(nanoseconds / size).toLocaleString("en")} ${unit}`;
}

function seconds(nanoseconds) {
  return `${Math.floor(nanoseconds / 1e9)}.${String(nanoseconds % 1e9).padStart(9, "0")}`;
}
