"use strict";
// What the tables say, for people: one panel for each kind of thing.

const FLAGS = [[8, "reading"], [16, "writing"], [4, "readonly"]];
const GRANT_TYPES = ["invalid", "permit_access", "accept_transfer", "transitive"];
const MAP_FLAGS = [[1, "device"], [2, "host"], [4, "readonly"], [8, "application"], [16, "contains_pte"]];

class Panels {
  constructor(tables, data) {
    Object.assign(this, { tables, data });
    this.list = [
      ["Rings", ["rings", "indices", "slots", "privates"], () => this.rings()],
      ["Event channels", ["ports", "bits", "upcalls"], () => this.events()],
      ["Grants", ["grants", "mappings"], () => this.grants()],
      ["Pages", ["pages"], () => this.pages()],
      ["Devices", ["devices"], () => this.devices()],
      ["Xenstore", ["nodes"], () => this.store()],
    ];
  }

  // Take note of what the current event has changed: "table key".
  mark(changes) {
    this.touched = new Set();
    this.touchedTables = new Set();
    for (const [, table, key] of changes) {
      const name = this.data.tables[table];
      this.touchedTables.add(name);
      for (const one of name === "pages" ? pagesOf(key) : [key]) this.touched.add(`${name} ${one}`);
    }
  }

  isTouched(name, key) { return this.touched.has(`${name} ${key}`); }

  changed(number) { return this.list[number][1].some((name) => this.touchedTables.has(name)); }

  // The names of domains, as the store says.
  domain(domid) {
    const name = this.tables.nodes.get(`/local/domain/${domid}/name`)?.[0];
    return name ? `${name} (d${domid})` : `d${domid}`;
  }

  // The rows of a table whose keys begin with a domain, by domain and then by number: [domid, number, key, row].
  perDomain(name) {
    const rows = [...this.tables[name]].map(([key, row]) => [...key.split("/").map(Number), key, row]);
    rows.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    return Map.groupBy ? Map.groupBy(rows, (row) => row[0]) : group(rows, (row) => row[0]);
  }

  table(heads, rows) {
    const head = element("tr", {}, ...heads.map((text) => element("th", { className: text.startsWith("#") ? "number" : "" }, text.replace("#", ""))));
    const lines = rows.map(([touched, ...cells]) => element("tr", { className: touched ? "touched" : "" }, ...cells.map((cell, place) =>
      element("td", { className: heads[place].startsWith("#") ? "number" : "" }, cell instanceof Node ? cell : String(cell)))));
    return element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines));
  }

  rings() {
    const { tables } = this;
    if (!tables.rings.size) return [note("No ring is connected at this moment.")];
    const parts = [legend()];
    const rank = (key) => ["xenstore", "console"].indexOf(key.split(":")[1]);
    for (const key of [...tables.rings.keys()].sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1))) parts.push(...this.ring(key, tables.rings.get(key)));
    return parts;
  }

  ring(key, [layout, back, front, refs, size, names]) {
    const { tables } = this;
    const indices = tables.indices.get(key);
    const ends = ["back", "front"].map((end) => tables.privates.get(`${key}/${end}`));
    const title = element("h2", {}, `${key}`);
    const where = note(`${layout}: ${this.domain(front)} grants it by ${refs.join(", ")}, ${this.domain(back)} serves it`);
    if (!indices) return [title, where, note("Its pages are not in this trace (run with --trace-state).")];
    const shown = names.map((name, place) => `${name} ${indices[place]}`).join("   ");
    const line = element("div", { className: `code${this.isTouched("indices", key) ? " touched" : ""}` }, shown);
    const parts = [title, where, line];
    const [backs, fronts] = ends;
    if (backs || fronts) {
      const text = [backs && `backend has consumed to ${backs[1]}`, fronts && `frontend has consumed to ${fronts[1]}`];
      parts.push(element("div", { className: `note${ends.some((_, place) => this.isTouched("privates", `${key}/${["back", "front"][place]}`)) ? " touched" : ""}` }, text.filter(Boolean).join("; ")));
    }
    const kinds = slotKinds(names, indices, ends, size);
    parts.push(this.slots(key, size, kinds), this.slotTable(key, size, kinds, indices));
    return parts;
  }

  slots(key, size, kinds) {
    return element("div", { className: "slots" }, ...Array.from({ length: size }, (_, slot) => {
      const touched = this.isTouched("slots", `${key}/${slot}`) ? " touched" : "";
      const cell = element("i", { className: (kinds.get(slot) ?? "") + touched }, String(slot));
      cell.title = this.slotText(key, slot, kinds.get(slot));
      return cell;
    }));
  }

  slotText(key, slot, kind) {
    const row = this.tables.slots.get(`${key}/${slot}`);
    if (!row) return "never written";
    return kind === "request" || kind === "taken" ? row[1] : kind === "response" ? row[2] : row[1] === row[2] ? row[1] : `as a request: ${row[1]}; as a response: ${row[2]}`;
  }

  slotTable(key, size, kinds, indices) {
    const rows = [];
    for (let slot = 0; slot < size; slot++) {
      const touched = this.isTouched("slots", `${key}/${slot}`);
      if (kinds.has(slot) || touched) rows.push([touched, slot, kinds.get(slot) ?? "free", this.slotText(key, slot, kinds.get(slot))]);
    }
    const most = 40;
    const table = this.table(["#slot", "holds", "what"], rows.slice(0, most));
    return element("div", {}, rows.length ? table : note("Nothing is under way in it."), rows.length > most ? note(`… and ${rows.length - most} more`) : "");
  }

  events() {
    const parts = [];
    const bits = this.tables.bits, upcalls = this.perDomain("upcalls");
    const domains = this.perDomain("ports");
    for (const [domid, rows] of domains) {
      parts.push(element("h2", {}, this.domain(domid)));
      for (const [, vcpu, key, [pending, masked, ready]] of upcalls.get(domid) ?? []) {
        parts.push(element("div", { className: `code${this.isTouched("upcalls", key) ? " touched" : ""}` }, `vCPU ${vcpu}: evtchn_upcall_pending ${pending}   evtchn_upcall_mask ${masked}   ready ${ready}`));
      }
      parts.push(this.table(["#port", "bound to", "vCPU", "#priority", "pending", "masked"], rows.map(([, port, key, [use, remote, number, vcpu, priority]]) => {
        const [pending, masked] = bits.get(key) ?? [0, 0];
        const to = use === "interdomain" ? `${this.domain(remote)} port ${number}` : use === "unbound" ? `nobody yet, for ${this.domain(remote)}` : use;
        return [this.isTouched("ports", key) || this.isTouched("bits", key), port, to, vcpu, priority, pending ? "● pending" : "", masked ? "masked" : ""];
      })));
    }
    return parts.length ? parts : [this.missing()];
  }

  grants() {
    const parts = [];
    const users = group([...this.tables.mappings].map(([key, [granter, ref, flags]]) => [`${granter}/${ref}`, key, flags]), (row) => row[0]);
    for (const [domid, rows] of this.perDomain("grants")) {
      parts.push(element("h2", {}, `${this.domain(domid)} grants`));
      parts.push(this.table(["#ref", "to", "frame", "flags", "#uses", "mapped by"], rows.map(([, ref, key, [flags, to, frame, pin]]) => [
        this.isTouched("grants", key), ref, this.domain(to), `0x${frame.toString(16)}`, grantFlags(flags), uses(pin),
        (users.get(key) ?? []).map(([, handle]) => `${this.domain(Number(handle.split("/")[0]))}, handle ${handle.split("/")[1]}`).join("; "),
      ])));
    }
    for (const [domid, rows] of this.perDomain("mappings")) {
      parts.push(element("h2", {}, `${this.domain(domid)} has mapped`));
      parts.push(this.table(["#handle", "of", "#ref", "how"], rows.map(([, handle, key, [granter, ref, flags]]) => [
        this.isTouched("mappings", key), handle, this.domain(granter), ref, names(flags, MAP_FLAGS)])));
    }
    return parts.length ? parts : [this.missing()];
  }

  pages() {
    const { pages } = this.tables;
    if (!pages.size) return [this.missing()];
    const counts = new Map(), types = new Set(), special = [], fresh = [];
    for (const [mfn, row] of pages) {
      const [owner, type] = row;
      if (owner < 0) continue;
      types.add(type);
      counts.set(`${owner} ${type}`, (counts.get(`${owner} ${type}`) ?? 0) + 1);
      const touched = this.isTouched("pages", mfn);
      if (touched) fresh.push([mfn, row]); else if (type.endsWith(" table") || type === "descriptors") special.push([mfn, row]);
    }
    const owners = [...new Set([...counts.keys()].map((key) => Number(key.split(" ")[0])))].sort((a, b) => a - b);
    const columns = [...types].sort();
    const lines = ([mfn, [owner, type, typeCount, count, flags]]) => [this.isTouched("pages", mfn), `0x${mfn.toString(16)}`, this.owner(owner), type, typeCount, count, names(flags, PAGE_FLAGS)];
    const heads = ["frame", "owner", "type", "#type uses", "#uses", "flags"];
    const byFrame = (a, b) => a[0] - b[0];
    const parts = [element("h2", {}, "Frames, by owner and type"),
      this.table(["owner", ...columns.map((type) => `#${type}`)], owners.map((owner) => [false, this.owner(owner), ...columns.map((type) => counts.get(`${owner} ${type}`) ?? "")]))];
    if (fresh.length) parts.push(element("h2", {}, `Changed by this event: ${fresh.length}`), this.table(heads, fresh.sort(byFrame).slice(0, 200).map(lines)));
    if (special.length) parts.push(element("h2", {}, "Page tables and descriptor tables"), this.table(heads, special.sort(byFrame).slice(0, 400).map(lines)));
    return parts;
  }

  owner(domid) { return domid === 0x7ff1 ? "DOMID_IO" : domid === 0x7ff2 ? "Xen" : this.domain(domid); }

  devices() {
    const { devices } = this.tables;
    if (!devices.size) return [note("No device has a state yet.")];
    const rows = [...devices.keys()].sort().map((path) => {
      const [state, domid] = devices.get(path);
      return [this.isTouched("devices", path), path, path.includes("/backend/") ? "backend" : "frontend", this.domain(domid), element("span", { className: `state ${state}` }, state)];
    });
    return [element("h2", {}, "Both ends of the devices, and their xenbus states"), this.table(["path", "end", "of", "state"], rows)];
  }

  store() {
    const { nodes } = this.tables;
    if (!nodes.size) return [this.missing()];
    const lines = [];
    const below = group([...nodes.keys()].filter((path) => path !== "/"), (path) => path.slice(0, path.lastIndexOf("/")) || "/");
    const walk = (path, depth) => {
      const [value, perms] = nodes.get(path) ?? ["", ""];
      const line = element("div", { className: this.isTouched("nodes", path) ? "touched" : "" });
      line.append("  ".repeat(depth), path === "/" ? "/" : path.slice(path.lastIndexOf("/") + 1));
      if (value) line.append(" = ", element("span", { className: "value" }, JSON.stringify(value)));
      line.append(element("span", { className: "perms" }, `   ${perms}`));
      lines.push(line);
      for (const child of below.get(path) ?? []) walk(child, depth + 1);
    };
    walk("/", 0);
    return [element("div", { className: "tree" }, ...lines)];
  }

  missing() { return note(this.data.state ? "There is nothing of this at this moment." : "This trace does not show the host's state: record it with `paravirt run --trace FILE --trace-state`."); }
}

const PAGE_FLAGS = [[1, "allocated"], [2, "Xen's own"], [4, "validated"], [8, "pinned"], [16, "partial"]];

function names(value, table) { return table.filter(([bit]) => value & bit).map(([, name]) => name).join(" "); }

function grantFlags(flags) { return [GRANT_TYPES[flags & 3], names(flags, FLAGS)].filter(Boolean).join(" "); }

// A pin holds four counters of a byte each: device read, device write, host read, host write.
function uses(pin) { return [0, 8, 16, 24].reduce((sum, shift) => sum + ((pin >>> shift) & 0xff), 0); }

// Slot → what it holds, as the indices say.
function slotKinds(names, indices, [back, front], size) {
  const kinds = new Map();
  if (names[0] !== "req_prod") return byteKinds(names, indices);
  const [requests, , responses] = indices;
  const span = (from, to, kind) => { for (let n = 0; n < Math.min(size, (to - from) >>> 0); n++) kinds.set(((from + n) >>> 0) % size, kind); };
  span(responses, requests, "request");
  if (back) span(responses, back[1], "taken");
  if (front && ((responses - front[1]) >>> 0) <= size) span(front[1], responses, "response");
  return kinds;
}

// The same for the rings of bytes: the pieces that hold bytes which nobody has taken.
function byteKinds(names, [firstCons, firstProd, secondCons, secondProd]) {
  const kinds = new Map();
  const span = (cons, prod, bytes, first, kind) => {
    for (let n = 0; n < Math.min(bytes, (prod - cons) >>> 0); n++) kinds.set(first + Math.floor((((cons + n) >>> 0) % bytes) / 32), kind);
  };
  const isConsole = names[0] === "in_cons";
  span(firstCons, firstProd, 1024, 0, "request");
  span(secondCons, secondProd, isConsole ? 2048 : 1024, 32, "response");
  return kinds;
}

function group(list, key) {
  const groups = new Map();
  for (const one of list) {
    const name = key(one);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(one);
  }
  return groups;
}

function note(text) { return element("div", { className: "note" }, text); }

function legend() {
  return element("div", { className: "legend slots", style: "display:block" }, ...[["request", "request"], ["taken", "request that the backend has taken"], ["response", "response that the frontend has not seen"], ["touched", "changed by this event"]]
    .map(([name, text]) => element("span", {}, element("i", { className: name }), text)));
}
