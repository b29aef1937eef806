"use strict";
// The state of the host at any event: tables, and the changes that lead from one event to the next and back.

class Tables {
  // `changes`: [event, table, key, row], in order; a row of null takes the key out.
  constructor(names, changes) {
    this.changes = changes;
    this.before = new Array(changes.length); // what was there before each change, once it has been made
    this.maps = names.map(() => new Map());
    this.applied = 0;
    names.forEach((name, number) => { this[name] = this.maps[number]; });
    this.pagesTable = names.indexOf("pages");
  }

  // Have the tables as they were after an event.
  go(event) {
    const end = this.firstAfter(event);
    while (this.applied < end) this.apply(this.applied++);
    while (this.applied > end) this.undo(--this.applied);
  }

  // The changes that one event made.
  of(event) {
    return this.changes.slice(this.firstAfter(event - 1), this.firstAfter(event));
  }

  firstAfter(event) {
    let low = 0, high = this.changes.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.changes[middle][0] <= event) low = middle + 1; else high = middle;
    }
    return low;
  }

  apply(number) {
    const [, table, key, row] = this.changes[number];
    const map = this.maps[table];
    if (table === this.pagesTable) {
      const frames = pagesOf(key);
      this.before[number] = frames.map((mfn) => map.get(mfn) ?? null);
      for (const mfn of frames) put(map, mfn, row);
    } else {
      this.before[number] = map.get(key) ?? null;
      put(map, key, row);
    }
  }

  undo(number) {
    const [, table, key] = this.changes[number];
    const map = this.maps[table];
    const before = this.before[number];
    if (table === this.pagesTable) pagesOf(key).forEach((mfn, place) => put(map, mfn, before[place]));
    else put(map, key, before);
  }
}

function put(map, key, row) {
  if (row === null) map.delete(key); else map.set(key, row);
}

// "mfn+frames": the frames that one change is about.
function pagesOf(key) {
  const [first, count] = key.split("+").map(Number);
  return Array.from({ length: count }, (_, place) => first + place);
}
