"""A small machine with one domain on it, for tests of the guest kernel alone.

It keeps to Xen's interface where the kernel touches it: machine frames, page tables that are walked for every view (no
TLB) and checked for the one rule that matters most (a page table is mapped read-only), event bits, upcalls at yields
only, one timer per vCPU. It knows one vCPU, no second domain, and no hypercall that these tests do not need.
"""

from collections.abc import Callable
from typing import Any

import attrs

from guest_kernel.image import PythonKernelImage
from guest_kernel.kernel import Kernel
from guest_kernel.symbols import VIRT_BASE
from hypervisor.abi import callback, event_channel, grant_table, sched, vcpu, xen
from hypervisor.abi.cpu import GeneralProtectionFault, PageFault, Run
from hypervisor.abi.errno import EFAULT, EINVAL, ENOENT, ENOSYS
from hypervisor.abi.io.console import xencons_interface

PAGE = 4096
KERNEL_PAGES = 4
CONSOLE_PORT = 1
STORE_PORT = 2
MAX_GRANT_FRAMES = 4
PRESENT, WRITABLE = 1, 2
U64 = (1 << 64) - 1


@attrs.define
class Layout:
    """Where the builder put things: frame numbers of the domain."""

    p2m: int
    start_info: int
    console: int
    tables: int
    nr_tables: int
    stack: int
    mapped: int


class FakeMachine:
    """Memory, clock and hypervisor of one domain; also its `Cpu`."""

    def __init__(self, nr_pages: int = 2048, *, cmdline: str = "", initial: bool = False, store: bool = False) -> None:
        self.nr_pages = nr_pages
        self.first_mfn = 64
        frames = self.first_mfn + nr_pages + 64
        self.memory = memoryview(bytearray(frames * PAGE))
        self.words = self.memory.cast("Q")
        self.vcpu_id = 0
        self.text: dict[int, Callable[..., Any]] = {}
        self.trace: Any = None
        self.traces_threads = False
        self.now = 1_000
        self.timer: int | None = None
        self.blocked = False
        self.poll_until: int | None = None
        self.shutdown: int | None = None
        self.periodic = True
        self.callback = 0
        self.xen_console = bytearray()
        self.calls: dict[int, int] = {}
        self.sent: list[int] = []
        self.ports: dict[int, str] = {CONSOLE_PORT: "interdomain", STORE_PORT: "interdomain"}
        self.virqs: dict[int, int] = {}
        self.burnt = 0
        self.reader: Callable[[FakeMachine], None] | None = None
        """Called when the console's port is notified."""
        self.store: Callable[[FakeMachine], None] | None = None
        """Called when xenstore's port is notified."""
        self.shared_mfn = 1
        self.m2p_mfn = 2
        self.grant_mfns = list(range(frames - MAX_GRANT_FRAMES, frames))
        self.root = 0
        self.layout = self._build(cmdline, initial, store)
        shared = self.frame(self.shared_mfn)
        xen.vcpu_time_info.pack_into(
            shared, xen.shared_info.offset("vcpu_info[0].time"), version=2, tsc_to_system_mul=1 << 31, tsc_shift=1
        )
        shared[1] = 1
        wc = xen.shared_info.offset("wc_version")
        shared[wc : wc + 16] = memoryview(b"".join(v.to_bytes(4, "little") for v in (2, 1_700_000_000, 500, 0)))

    # Building, as libxc does

    def mfn(self, pfn: int) -> int:
        return self.first_mfn + self.nr_pages - 1 - pfn

    def frame(self, mfn: int) -> memoryview:
        return self.memory[mfn * PAGE : (mfn + 1) * PAGE]

    def _build(self, cmdline: str, initial: bool, store: bool) -> Layout:
        p2m_pages = -(-self.nr_pages // 512)
        start_info = KERNEL_PAGES + p2m_pages
        tables = start_info + 3
        nr_tables = 3
        while True:
            end = tables + nr_tables + 1 + 128
            mapped = min(-(-end // 1024) * 1024, self.nr_pages)
            need = 3 + -(-mapped // 512)
            if need == nr_tables:
                break
            nr_tables = need
        where = Layout(KERNEL_PAGES, start_info, start_info + 2, tables, nr_tables, tables + nr_tables, mapped)
        for pfn in range(self.nr_pages):
            self.words[self.mfn(where.p2m + pfn // 512) * 512 + pfn % 512] = self.mfn(pfn)
            self.words[self.m2p_mfn * 512 + self.mfn(pfn)] = pfn
        l4, l3, l2 = (self.mfn(tables + level) for level in range(3))
        self.root = l4
        flags = 0x67
        self.words[l4 * 512 + (VIRT_BASE >> 39 & 511)] = l3 << 12 | flags
        self.words[l3 * 512 + (VIRT_BASE >> 30 & 511)] = l2 << 12 | flags
        for pfn in range(mapped):
            l1 = self.mfn(tables + 3 + pfn // 512)
            self.words[l2 * 512 + pfn // 512] = l1 << 12 | flags
            read_only = tables <= pfn < tables + nr_tables
            self.words[l1 * 512 + pfn % 512] = self.mfn(pfn) << 12 | (0x61 if read_only else 0x63)
        xen.start_info.pack_into(
            self.frame(self.mfn(start_info)),
            0,
            magic=b"xen-3.0-x86_64",
            nr_pages=self.nr_pages,
            shared_info=self.shared_mfn << 12,
            flags=xen.SIF_INITDOMAIN | xen.SIF_PRIVILEGED if initial else 0,
            console=b"" if initial else self.mfn(start_info + 2).to_bytes(8, "little") + bytes([CONSOLE_PORT]),
            store_mfn=self.mfn(start_info + 1) if store else 0,
            store_evtchn=STORE_PORT if store else 0,
            pt_base=VIRT_BASE + tables * PAGE,
            nr_pt_frames=nr_tables,
            mfn_list=VIRT_BASE + where.p2m * PAGE,
            cmd_line=cmdline.encode(),
        )
        return where

    # Cpu

    def walk(self, address: int) -> int:
        """Return the L1 entry for an address, 0 if there is none."""
        table = self.root
        for shift in (39, 30, 21, 12):
            entry = self.words[table * 512 + (address >> shift & 511)]
            if not entry & PRESENT:
                return 0
            table = entry >> 12 & 0xFFFFFFFFFF
        return entry

    def view(self, address: int, size: int = PAGE, /, write: bool = True) -> memoryview:
        assert address % PAGE + size <= PAGE or not address % PAGE
        m2p_page = (address - xen.MACH2PHYS_VIRT_START) >> 12
        if 0 <= m2p_page < self.first_mfn - self.m2p_mfn:
            entry = (self.m2p_mfn + m2p_page) << 12 | PRESENT
        else:
            entry = self.walk(address)
        if not entry & PRESENT or (write and not entry & WRITABLE):
            raise PageFault(address, write)
        at = (entry >> 12 & 0xFFFFFFFFFF) * PAGE + address % PAGE
        for offset in range(PAGE, size, PAGE):
            if self.walk(address + offset) != entry + offset:
                raise ValueError(f"{size} bytes at {address:#x} are not in one piece")
        part = self.memory[at : at + size]
        return part if write else part.toreadonly()

    def rdtsc(self) -> int:
        return self.now

    def inl(self, port: int) -> int:
        raise GeneralProtectionFault(f"no permission for I/O port {port:#x}")

    def outl(self, port: int, value: int) -> None:
        raise GeneralProtectionFault(f"no permission for I/O port {port:#x}")

    def hypercall(self, nr: int, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0, a5: int = 0, /) -> int:
        self.calls[nr] = self.calls.get(nr, 0) + 1
        handler = {
            xen.HYPERVISOR_mmu_update: self._mmu_update,
            xen.HYPERVISOR_update_va_mapping: self._update_va_mapping,
            xen.HYPERVISOR_set_timer_op: self._set_timer,
            xen.HYPERVISOR_console_io: self._console_io,
            xen.HYPERVISOR_vcpu_op: self._vcpu_op,
            xen.HYPERVISOR_sched_op: self._sched_op,
            xen.HYPERVISOR_callback_op: self._callback_op,
            xen.HYPERVISOR_event_channel_op: self._event_op,
            xen.HYPERVISOR_grant_table_op: self._grant_op,
            xen.HYPERVISOR_xen_version: self._version,
        }.get(nr)
        return handler(a1, a2, a3, a4) if handler else -ENOSYS

    # Page tables

    def _tables(self) -> dict[int, int]:
        """All page tables by frame, with their level."""
        found = {self.root: 4}
        todo = [(self.root, 4)]
        while todo:
            table, level = todo.pop()
            for slot in range(512):
                entry = self.words[table * 512 + slot]
                if entry & PRESENT and level > 1:
                    below = entry >> 12 & 0xFFFFFFFFFF
                    if level > 1:
                        found[below] = level - 1
                        todo.append((below, level - 1))
        return found

    def _check_types(self) -> bool:
        """Whether no page table is mapped writable, and L1 entries stay within memory."""
        tables = self._tables()
        for table, level in tables.items():
            if level == 1:
                for slot in range(512):
                    entry = self.words[table * 512 + slot]
                    if entry & PRESENT and entry & WRITABLE and entry >> 12 & 0xFFFFFFFFFF in tables:
                        return False
        return True

    def _set_entry(self, index: int, value: int) -> int:
        before = self.words[index]
        self.words[index] = value
        if not self._check_types():
            self.words[index] = before
            return -EINVAL
        return 0

    def _mmu_update(self, address: int, count: int, done: int, domid: int) -> int:
        result = 0
        finished = 0
        for index in range(count):
            words = self.view(address + 16 * index, 16).cast("Q")
            result = self._set_entry(words[0] >> 3, words[1])
            if result:
                break
            finished += 1
        self.view(done, 4).cast("I")[0] = finished
        return result

    def _update_va_mapping(self, va: int, value: int, flags: int, _a4: int) -> int:
        table = self.root
        for shift in (39, 30, 21):
            entry = self.words[table * 512 + (va >> shift & 511)]
            if not entry & PRESENT:
                return -EINVAL
            table = entry >> 12 & 0xFFFFFFFFFF
        return self._set_entry(table * 512 + (va >> 12 & 511), value)

    # The rest of Xen

    def _version(self, command: int, address: int, _a3: int, _a4: int) -> int:
        self.view(address, 16)[:] = bytes(range(16))
        return 0

    def _set_timer(self, deadline: int, *_: int) -> int:
        self.timer = deadline or None
        return 0

    def _console_io(self, command: int, count: int, address: int, _a4: int) -> int:
        if command == xen.CONSOLEIO_write:
            self.xen_console += bytes(self.view(address, count))
            return 0
        return 0

    def _vcpu_op(self, command: int, vcpu_id: int, address: int, _a4: int) -> int:
        if vcpu_id:
            return -ENOENT
        if command == vcpu.VCPUOP_stop_periodic_timer:
            self.periodic = False
            return 0
        return -ENOSYS

    def _sched_op(self, command: int, address: int, _a3: int, _a4: int) -> int:
        shared = self.frame(self.shared_mfn)
        if command == sched.SCHEDOP_block:
            shared[1] = 0
            self.blocked = not shared[0]
        elif command == sched.SCHEDOP_poll:
            poll = sched.sched_poll.unpack_from(self.view(address, sched.sched_poll.size))
            self.poll_until = poll.timeout
        elif command == sched.SCHEDOP_shutdown:
            self.shutdown = sched.sched_shutdown.unpack_from(self.view(address, 4)).reason
        else:
            return -ENOSYS
        return 0

    def _callback_op(self, command: int, address: int, *_: int) -> int:
        layout = callback.callback_register
        self.callback = layout.unpack_from(self.view(address, layout.size)).address
        return 0

    def _event_op(self, command: int, address: int, *_: int) -> int:
        e = event_channel
        if command == e.EVTCHNOP_send:
            port = e.evtchn_send.unpack_from(self.view(address, 4)).port
            if self.ports.get(port) not in ("interdomain", "ipi", "unbound"):
                return -EINVAL
            self.sent.append(port)
            if self.ports[port] == "ipi":
                self.raise_event(port)
            if port == CONSOLE_PORT and self.reader is not None:
                self.reader(self)
            if port == STORE_PORT and self.store is not None:
                self.store(self)
            return 0
        if command == e.EVTCHNOP_close:
            port = e.evtchn_close.unpack_from(self.view(address, 4)).port
            if self.ports.pop(port, None) is None:
                return -EINVAL
            self.virqs = {virq: bound for virq, bound in self.virqs.items() if bound != port}
            self._words(port)[0][self._words(port)[1]] &= ~(1 << (port & 63))
            return 0
        if command == e.EVTCHNOP_unmask:
            port = e.evtchn_unmask.unpack_from(self.view(address, 4)).port
            words, at = self._words(port)
            words[at + 64] &= ~(1 << (port & 63))
            if words[at] >> (port & 63) & 1:
                words[at] &= ~(1 << (port & 63))
                self.raise_event(port)
            return 0
        made = {
            e.EVTCHNOP_alloc_unbound: (e.evtchn_alloc_unbound, "port", "unbound"),
            e.EVTCHNOP_bind_virq: (e.evtchn_bind_virq, "port", "virq"),
            e.EVTCHNOP_bind_ipi: (e.evtchn_bind_ipi, "port", "ipi"),
        }.get(command)
        if made is None:
            return -ENOSYS
        layout, member, kind = made
        view = self.view(address, layout.size)
        operation = layout.unpack_from(view)
        port = next(port for port in range(1, 4096) if port not in self.ports)
        self.ports[port] = kind
        if kind == "virq":
            self.virqs[operation.virq] = port
        setattr(operation, member, port)
        layout.pack_into(view, 0, operation)
        return 0

    def _grant_op(self, command: int, address: int, count: int, _a4: int) -> int:
        g = grant_table
        if command == g.GNTTABOP_query_size:
            layout = g.gnttab_query_size
            layout.pack_into(self.view(address, layout.size), 0, nr_frames=1, max_nr_frames=MAX_GRANT_FRAMES)
        elif command == g.GNTTABOP_setup_table:
            setup = g.gnttab_setup_table.unpack_from(self.view(address, g.gnttab_setup_table.size))
            if setup.nr_frames > MAX_GRANT_FRAMES:
                return -EFAULT
            self.view(setup.frame_list, 8 * setup.nr_frames).cast("Q")[:] = memoryview(
                b"".join(mfn.to_bytes(8, "little") for mfn in self.grant_mfns[: setup.nr_frames])
            ).cast("Q")
        else:
            return -ENOSYS
        return 0

    # Events and time

    def _words(self, port: int) -> tuple[memoryview, int]:
        words = self.frame(self.shared_mfn).cast("Q")
        return words, (xen.shared_info.offset("evtchn_pending") >> 3) + (port >> 6)

    def raise_event(self, port: int) -> None:
        """Make a port pending, with the chain of bits that Xen sets."""
        words, at = self._words(port)
        bit = 1 << (port & 63)
        if words[at] & bit:
            return
        words[at] |= bit
        if words[at + 64] & bit:
            return
        selector = words[1]
        if not selector >> (port >> 6) & 1:
            words[1] |= 1 << (port >> 6)
            self.frame(self.shared_mfn)[0] = 1
            self.blocked = False
            self.poll_until = None

    def read_console(self, limit: int = 2048) -> bytes:
        """Take bytes out of the console ring, as xenconsoled does."""
        page = self.frame(self.mfn(self.layout.console))
        out = xencons_interface.offset("out")
        words = page.cast("I")
        at = xencons_interface.offset("out_cons") >> 2
        cons, prod = words[at], words[at + 1]
        data = bytes(page[out + ((cons + n) & 2047)] for n in range(min((prod - cons) & 0xFFFFFFFF, limit)))
        words[at] = (cons + len(data)) & 0xFFFFFFFF
        return data

    def type_console(self, data: bytes) -> None:
        """Put bytes into the console's input ring."""
        page = self.frame(self.mfn(self.layout.console))
        words = page.cast("I")
        at = xencons_interface.offset("in_prod") >> 2
        prod = words[at]
        for offset, byte in enumerate(data):
            page[(prod + offset) & 1023] = byte
        words[at] = (prod + len(data)) & 0xFFFFFFFF
        self.raise_event(CONSOLE_PORT)

    def run(self, code: Run, *, until: int | None = None, max_yields: int = 100_000) -> None:
        """Run the vCPU until it shuts down, or nothing more will ever happen, or the clock passes `until`."""
        for _ in range(max_yields):
            shared = self.frame(self.shared_mfn)
            if shared[0] and not shared[1]:
                shared[1] = 1
                self.text[self.callback]()
                shared[1] = 0
            work = code.send(None)
            if isinstance(work, int):
                self.now += work
                self.burnt += work
            elif not work:
                # Its idle loop. (It is resumed after each upcall, and says so again if there is still nothing.)
                self.hypercall(xen.HYPERVISOR_sched_op, sched.SCHEDOP_block)
            if self.shutdown is not None:
                return
            self._fire_timer()
            while self.blocked or self.poll_until is not None:
                if not self._skip(until):
                    return
        raise AssertionError(f"no end after {max_yields} yields")

    def _skip(self, until: int | None) -> bool:
        times = [time for time in (self.timer if self.blocked else None, self.poll_until) if time is not None]
        if not times or (until is not None and min(times) > until):
            return False
        self.now = max(self.now, min(times))
        if self.poll_until is not None and self.poll_until <= self.now:
            self.poll_until = None
        self._fire_timer()
        return True

    def _fire_timer(self) -> None:
        if self.timer is not None and self.timer <= self.now:
            self.timer = None
            self.raise_event(self.virqs[xen.VIRQ_TIMER])


class Booted:
    """A kernel on a fake machine, whose program is a coroutine function of the kernel."""

    def __init__(self, main: Callable[[Kernel], Any], machine: FakeMachine | None = None, **options: Any) -> None:
        self.machine = machine or FakeMachine(**options)
        kernels: list[Kernel] = []

        class Program:
            def __init__(self, kernel: Kernel) -> None:
                kernels.append(kernel)

            async def main(self) -> None:
                await main(kernels[0])

        image = PythonKernelImage(name="test", main=Program)
        start_info = VIRT_BASE + self.machine.layout.start_info * PAGE
        self.kernel = Kernel(image, self.machine, start_info)
        self.code = self.kernel.run()

    def run(self, **options: Any) -> FakeMachine:
        self.machine.run(self.code, **options)
        return self.machine


def run(main: Callable[[Kernel], Any], **options: Any) -> FakeMachine:
    """Boot a kernel, run `main(kernel)` in it to the end, and return the machine."""
    booted = Booted(main, **options)
    try:
        return booted.run()
    finally:
        booted.code.close()
