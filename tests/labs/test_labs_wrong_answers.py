"""Each check of a lab misses what it is there for: the solutions, with one fault each.

A row: the lab, the file, what stands in its solution, what stands there instead, a check that must be missed.
"""

from pathlib import Path

import attrs
import pytest

from labs.course import SOLUTIONS, find
from labs.kit.check import Check, Checks
from labs.kit.guard import Guard
from labs.kit.worker import run_check


@attrs.frozen
class Fault:
    lab: str
    file: str
    right: str
    wrong: str
    missed: str


FAULTS = [
    Fault("hypercalls", "hypercalls.py", "if result < 0", "if result < -1000", "check"),
    Fault("hypercalls", "hypercalls.py", "result & 0xFFFF", "result & 0xFF00", "xen_version"),
    Fault("hypercalls", "hypercalls.py", '.partition(b"\\0")[0]', "", "command_line"),
    Fault("hypercalls", "hypercalls.py", "number // 32", "0", "has_feature"),
    Fault("hypercalls", "hypercalls.py", "text.encode()", 'text.encode("latin-1")', "say"),
    Fault("hypercalls", "hypercalls.py", "PAGE_SIZE = 4096", "PAGE_SIZE = 5000", "say"),
    Fault("hypercalls", "hypercalls.py", '"<q", view', '"<Q", view', "batch"),
    Fault("hypercalls", "hypercalls.py", "SHUTDOWN_poweroff)", "SHUTDOWN_crash)", "power_off"),
    Fault("boot", "boot.py", "<32sQQI4xQ", "<32sQQIQ4x", "read_start_info"),
    Fault("boot", "boot.py", 'if not members[0].startswith(b"xen-3.")', "if False", "magic"),
    Fault("boot", "boot.py", "PRESENT | WRITABLE\n", "PRESENT\n", "map_shared_info"),
    Fault("boot", "boot.py", 'b"\\xff" * 512', 'b"\\xff" * 511 + b"\\0"', "silence"),
    Fault("boot", "boot.py", "if shift >= 128", "if shift > 255", "system_time"),
    Fault("boot", "boot.py", "if load(TIME, 4) == version", "if True", "torn time"),
    Fault("boot", "boot.py", "load(WC_SEC_HI, 4) << 32", "0", "wall_clock"),
    Fault("boot", "boot.py", "if load(WC_VERSION, 4) == version", "if True", "wall_clock"),
    Fault("boot", "boot.py", "(prod + len(data)) & 0xFFFFFFFF", "(prod + len(data)) % OUT_SIZE", "console_write"),
    Fault("frames", "frames.py", "if not 0 <= pfn < info.nr_pages", "if pfn < 0", "mfn_of"),
    Fault("frames", "frames.py", "words[index] = mfn", "words[index] = mfn & 0xFFFF", "set_mfn"),
    Fault("frames", "frames.py", "PAGE_SIZE, 0, xen.UVMF_INVLPG", "PAGE_SIZE, mfns[0] << 12 | 1, 2", "give_back"),
    Fault("frames", "frames.py", "return None if words[index] == INVALID_MFN else ", "return ", "pfn_of"),
    Fault("frames", "frames.py", " and mfn_of(cpu, info, pfn) == mfn", "", "owns"),
    Fault("frames", "frames.py", " + va % PAGE_SIZE", "", "machine_address"),
    Fault(
        "frames", "frames.py", "memory.XENMEM_maximum_reservation", "memory.XENMEM_current_reservation", "reservation"
    ),
    Fault("frames", "frames.py", "PAGE_SIZE, 0, xen.UVMF_INVLPG", "PAGE_SIZE, mfns[0] << 12 | 1, 2", "give_back"),
    Fault("frames", "frames.py", "        set_mfn(cpu, info, pfn, INVALID_MFN)\n", "", "give_back"),
    Fault("frames", "frames.py", "        set_mfn(cpu, info, pfn, mfn)\n", "", "take"),
    Fault("tables", "tables.py", "12 + 9 * (level - 1)", "12 + 8 * (level - 1)", "index"),
    Fault("tables", "tables.py", "        if not entry & PRESENT:\n            return None\n", "", "walk"),
    Fault("tables", "tables.py", "update, page, len(updates)", "update, page, 1", "update"),
    Fault("tables", "tables.py", "(WRITABLE if writable else 0)", "WRITABLE", "protect"),
    Fault("tables", "tables.py", "    protect(cpu, new_va, new, writable=False)\n", "", "add_l1"),
    Fault("tables", "tables.py", "for level in (4, 3):", "for level in (4,):", "add_l1"),
    Fault("tables", "tables.py", "PIN[level], mfn", "PIN[1], mfn", "pin"),
    Fault("tables", "tables.py", "xen.MMUEXT_UNPIN_TABLE", "xen.MMUEXT_PIN_L2_TABLE", "unpin"),
    Fault("tables", "tables.py", "    pin(cpu, page, new, 4)\n", "", "new_space"),
    Fault("tables", "tables.py", "xen.MMUEXT_NEW_BASEPTR", "xen.MMUEXT_TLB_FLUSH_LOCAL", "switch"),
    Fault("events", "events.py", "xen.DOMID_SELF, remote", "xen.DOMID_SELF, xen.DOMID_SELF", "ports"),
    Fault("events", "events.py", "for word in range(WORDS)", "for word in range(2)", "upcall"),
    Fault("events", "events.py", "        self.words[at] &= ~ready\n", "", "upcall"),
    Fault(
        "events",
        "events.py",
        "                    handler()\n",
        "                    handler()\n                    self.words[at] &= ~(1 << bit)\n",
        "edges",
    ),
    Fault("events", "events.py", " & ~self.words[MASK // 8 + word]", "", "mask"),
    Fault("events", "events.py", "        self.shared[UPCALL_MASK] = 0\n", "        self.shared[0] = 0\n", "install"),
    Fault("events", "events.py", "self.handlers.get(64 * word + bit)", "self.handlers[64 * word + bit]", "strangers"),
    Fault("events", "events.py", "xen.HYPERVISOR_sched_op, sched.SCHEDOP_block", "xen.HYPERVISOR_xen_version", "wait"),
    Fault("events", "events.py", "        self.close(port)\n", "", "sleep_until"),
    Fault("grants", "grants.py", "va, mfn << 12 | 3", "va, mfn << 12 | 1", "setup"),
    Fault("grants", "grants.py", "(gnttab.GTF_readonly if readonly else 0)", "0", "grant"),
    Fault("grants", "grants.py", "self.free = list(range(FIRST_REF", "self.free = list(range(0", "grant"),
    Fault("grants", "grants.py", "return found[5]", "return found[4]", "map"),
    Fault("grants", "grants.py", "(gnttab.GNTMAP_readonly if readonly else 0)", "0", "readonly"),
    Fault("grants", "grants.py", "            return False\n", "            pass\n", "end"),
    Fault("grants", "grants.py", "        self.free.append(ref)\n", "", "end"),
    Fault("grants", "grants.py", "(mfn, xen.DOMID_SELF, at)", "(mfn, xen.DOMID_SELF, offset)", "copy_from"),
    Fault("grants", "grants.py", "            raise GrantError(status)", "            raise GrantError(-1)", "errors"),
    Fault("ring", "ring.py", "while 2 * size <= fitting", "while 2 * size < fitting", "ring_size"),
    Fault("ring", "ring.py", "self.shared[RSP_EVENT] = 1", "self.shared[RSP_EVENT] = 0", "layout"),
    Fault("ring", "ring.py", "self.rsp_cons) & MASK32)\n\n    def unc", "self.rsp_cons))\n\n    def unc", "room"),
    Fault("ring", "ring.py", "& MASK32 < (new - old)", "& MASK32 > (new - old)", "pushing"),
    Fault("ring", "ring.py", "(new - self.shared[event]) & MASK32 <", "new - self.shared[event] <", "wrap"),
    Fault("ring", "ring.py", "(self.shared[REQ_PROD] - self.req_cons) & MASK32", "self.shared[REQ_PROD]", "taking"),
    Fault("ring", "ring.py", "return min(shown, possible)", "return shown", "hostile"),
    Fault("ring", "ring.py", "(self.req_cons + 1) & MASK32", "self.req_cons & MASK32", "final check"),
    Fault("ring", "ring.py", "return min(shown, possible)", "return min(shown, possible, 1)", "ten thousand turns"),
    Fault("ring", "ring.py", "index % self.size * self.entry_size", "index % self.size", "two domains"),
    Fault("blkfront", "blkfront.py", "device.data.sectors = int(text)", "device.data.sectors = 1024", "handshake"),
    Fault("blkfront", "blkfront.py", "0, ident, sector)", "0, ident, sector + 1)", "read"),
    Fault("blkfront", "blkfront.py", "page.view[: len(part)] = part", "page.view[0] = 1", "write"),
    Fault("blkfront", "blkfront.py", "MAX_SEGMENTS = 11", "MAX_SEGMENTS = 12", "segments"),
    Fault("blkfront", "blkfront.py", "readonly=operation == WRITE", "readonly=True", "segments"),
    Fault("blkfront", "blkfront.py", "self.next_id + 1", "self.next_id ^ 1", "many"),
    Fault("blkfront", "blkfront.py", "not self.gone and not self.ring.free_requests()", "False", "many"),
    Fault("blkfront", "blkfront.py", "if ring.push_requests_and_check_notify()", "if not ring.push_requests()", "ring"),
    Fault("blkfront", "blkfront.py", "        if status:\n", "        if status == -1:\n", "errors"),
    Fault("blkfront", "blkfront.py", "self.waiting.get(ident, 0)", "self.waiting[ident]", "hostile"),
    Fault("blkfront", "blkfront.py", "        self.give_back([self.page], [self.ref])\n", "", "closing"),
    Fault("blkfront", "blkfront.py", "        self.kernel.events.unbind(self.port)\n", "", "closing"),
    Fault("blkfront", "blkfront.py", "PAGE_SECTORS, count - number", "PAGE_SECTORS, count + 1 - number", "a real disk"),
    Fault("blkfront", "blkfront.py", "while not self.gone and self.waiting", "while self.waiting", "closing"),
    Fault(
        "xenbus", "xenbus.py", "        page[REQ + (prod + number) % RING]", "        page[REQ + prod % RING]", "ring"
    ),
    Fault("xenbus", "xenbus.py", "    if count > RING:", "    if count > 9000:", "ring"),
    Fault("xenbus", "xenbus.py", "while len(self.rest) >= HEADER.size", "if len(self.rest) >= HEADER.size", "decoder"),
    Fault("xenbus", "xenbus.py", "value.encode(), tx", 'value.encode() + b"\\0", tx', "client"),
    Fault("xenbus", "xenbus.py", '.split("\\0")[:-1]', '.split("\\0")', "client"),
    Fault("xenbus", "xenbus.py", "self.events.append((path, token))", "pass", "events"),
    Fault("xenbus", "xenbus.py", "if message[0] == XS_WATCH_EVENT", "if False", "events"),
    Fault(
        "xenbus",
        "xenbus.py",
        '                if error.name == "EAGAIN":\n                    continue\n',
        "",
        "transaction",
    ),
    Fault("xenbus", "xenbus.py", 'b"F\\0", tx', 'b"T\\0", tx', "transaction"),
    Fault(
        "xenbus",
        "xenbus.py",
        '            self.client.write(f"{self.path}/state", str(INITIALISED), tx)\n',
        '            self.client.write(f"{self.path}/state", str(INITIALISED))\n',
        "handshake",
    ),
    Fault("xenbus", "xenbus.py", "if there in (CLOSING, CLOSED, GONE)", "if there in (CLOSING, CLOSED)", "closing"),
    Fault("xenbus", "xenbus.py", "if self.state != CLOSED", "if True", "closing"),
    Fault("xenbus", "xenbus.py", "if text.isascii() and text.isdigit() and 1 <=", "if 1 <=", "nonsense"),
    Fault("scheduling", "scheduling.py", "    times[state] += now - since\n", "", "runstate"),
    Fault("scheduling", "scheduling.py", "<i4x5Q", "<i5Q4x", "runstate"),
    Fault("scheduling", "scheduling.py", "return spans[RUNNABLE] /", "return spans[BLOCKED] /", "stolen"),
    Fault("scheduling", "scheduling.py", "0, 0, 0, deadline", "0, 0, 0, deadline - 1_000_000", "nap"),
    Fault("scheduling", "scheduling.py", "return min(runnable, key", "return max(runnable, key", "shares"),
    Fault(
        "scheduling",
        "scheduling.py",
        "self.weights.get(domid, self.default)",
        "self.weights.get(domid, 1)",
        "default weight",
    ),
    Fault(
        "scheduling", "scheduling.py", "max(self.passes.get(domid, 0), floor)", "self.passes.get(domid, 0)", "sleepers"
    ),
    Fault("scheduling", "scheduling.py", "round(share * 10_000)", "round(share * 5)", "weights"),
    Fault("scheduling", "scheduling.py", "if idle else 0", "if False else 0", "caps"),
    Fault("hostile", "attack.py", "(VICTIM - ME) * NOTES + number", "number", "steal"),
    Fault("hostile", "vault.py", "place = self.area + index * NOTE", "place = index * NOTE", "honest"),
    Fault("hostile", "vault.py", "not 0 <= index < NOTES", "index >= NOTES", "index"),
    Fault("hostile", "vault.py", "not 0 <= index < NOTES", "index < 0", "index"),
    Fault(
        "hostile",
        "vault.py",
        "            place = self.area + index * NOTE\n",
        "            length = self.ring.view[self.ring.offset(self.ring.req_cons - 1) + 3]\n"
        "            place = self.area + index * NOTE\n",
        "double fetch",
    ),
    Fault(
        "hostile",
        "vault.py",
        "        response = bytearray(SLOT)\n",
        "        response = self.vault.__dict__.setdefault('buffer', bytearray(SLOT))\n",
        "left over",
    ),
    Fault("hostile", "vault.py", "while not ring.request_overflow(ring.shared[REQ_PROD])", "while True", "overflow"),
    Fault("hostile", "vault.py", " or op not in (GET, PUT)", "", "nonsense"),
    Fault("hostile", "vault.py", "not 0 <= index < NOTES", "False", "your own attack"),
    Fault("measuring", "measure.py", "for line in file]", "for line in list(file)[1:]]", "load"),
    Fault("measuring", "measure.py", 'record["domain"]: record["name"]', 'record["domid"]: record["name"]', "names"),
    Fault("measuring", "measure.py", '[record["nr"]] += 1', '[record["nr"]] = 1', "hypercalls"),
    Fault("measuring", "measure.py", '+= record["ran_ns"]', '= record["ran_ns"]', "running"),
    Fault("measuring", "measure.py", 'record["time"] > time', 'record["time"] >= time', "who_runs"),
    Fault("measuring", "measure.py", '"schedule" and record["pcpu"] == pcpu', '"schedule"', "who_runs"),
    Fault("measuring", "measure.py", "            waiting = []\n", "", "event_latencies"),
    Fault("measuring", "measure.py", '"wake" and since is None', '"wake"', "scheduling_latency"),
    Fault("measuring", "measure.py", ' and record["status"] == 0', "", "still_mapped"),
    Fault("measuring", "measure.py", "sum(numbers.values()) / times[domid]", "sum(numbers.values())", "culprit"),
]


# A worker of pytest-xdist has a second thread, and from 3.12 on Python warns of forking then. The child only runs a
# check, and ends without returning to what the thread may hold.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.lab}-{fault.missed}".replace(" ", "_"))
def test_a_faulty_answer_is_missed_by_its_check(fault: Fault, tmp_path: Path) -> None:
    lab = find(fault.lab)
    assert lab is not None
    for path in (SOLUTIONS / fault.lab).glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text())
    text = (tmp_path / fault.file).read_text()
    assert fault.right in text
    (tmp_path / fault.file).write_text(text.replace(fault.right, fault.wrong))
    check = named(lab.checks(), fault.missed)
    reply = run_check(check, lab.name, tmp_path, 1, Guard(tmp_path, lab.allowed))
    assert not reply["earned"]
    assert reply["reason"]
    assert "grade" not in reply["reason"]


def named(checks: Checks, name: str) -> Check:
    return next(check for check in checks.all if check.name == name)


def test_every_check_has_a_fault() -> None:
    """Or it might ask for nothing."""
    missing = []
    for name in {fault.lab for fault in FAULTS}:
        lab = find(name)
        assert lab is not None
        missed = {fault.missed for fault in FAULTS if fault.lab == name}
        missing += [f"{name}: {check.name}" for check in lab.checks().all if check.name not in missed]
    assert missing == []
