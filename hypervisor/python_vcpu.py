"""A vCPU that executes a guest kernel written in Python.

Its program counter is a generator. A `yield ns` in the guest is where this processor can be interrupted: the upcall is
delivered there, and the pCPU may turn to another vCPU. Between two yields the guest runs undisturbed, as if that
stretch were one long instruction.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno, sched, xen
from hypervisor.abi.cpu import GeneralProtectionFault, PageFault, Probe, Run
from hypervisor.abi.tracepoints import HYPERCALL, UPCALL
from hypervisor.errors import HypercallError
from hypervisor.guest_access import pages_in_a_row, translate_load
from hypervisor.preempt import Continuation, finish
from hypervisor.probe import VCpuProbe
from hypervisor.tape import FULL, LOOK, register
from hypervisor.time import unknown_op
from hypervisor.vcpu import AWAKE, NO_WORK, VCpu, checked_work

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Handler, Hypervisor

MASK_BYTE = xen.vcpu_info.offset("evtchn_upcall_mask")
assert MASK_BYTE == 1, "`PythonVCpu.run` looks at both flags at once"
U32 = 0xFFFF_FFFF
U64 = 0xFFFF_FFFF_FFFF_FFFF

HypercallDoor = Callable[..., int]
Door = tuple[HypercallDoor, Callable[[], None]]
"""The hypercall entry, and the function that locks it for good."""


class PythonCpu:
    """The door: what the guest's code holds of its processor (`hypervisor.abi.cpu.Cpu`)."""

    __slots__ = ("_vcpu", "hypercall", "lock", "outl", "text", "trace", "traces_threads", "vcpu_id")

    def __init__(self, vcpu: PythonVCpu) -> None:
        hv, domain = vcpu.hv, vcpu.domain
        self._vcpu = vcpu
        self.vcpu_id = vcpu.vcpu_id
        self.text: dict[int, Callable[..., Any]] = domain.text
        door = _door if hv.trace is None else _traced_door if hv.tape is None else _taped_door
        self.hypercall, self.lock = door(vcpu)
        self.outl = _store_port(domain, hv.machine.ports.writers)
        """`outl(port, value)`: raises GeneralProtectionFault without permission (domctl ioport_permission)."""
        self.trace: Probe | None = None
        self.traces_threads = hv.traces_threads
        emit = hv.trace
        if emit is not None:
            self.trace = probe = VCpuProbe(emit, domain.domid, vcpu.vcpu_id)
            probe.tape = hv.tape

    def view(self, address: int, size: int = 4096, /, write: bool = True) -> memoryview:
        """Return the bytes at a guest virtual address. Raises PageFault; ValueError if they are not in one piece."""
        vcpu = self._vcpu
        try:
            maddr = translate_load(vcpu, address, write)
            room = 4096 - (address & 0xFFF)
            if not 0 <= size <= room:
                offset = room
                while offset < size:
                    if translate_load(vcpu, address + offset, write) != maddr + offset:
                        raise ValueError(f"{size} bytes at {address:#x} are not in one piece of machine memory")
                    left = size - offset + 4095 >> 12
                    offset += pages_in_a_row(vcpu, address + offset, left, write) << 12
                if size < 0:
                    raise ValueError(f"a view of {size} bytes")
        except PageFault:
            vcpu.hv.sched.charged += vcpu.hv.sched.costs.fault
            raise
        window = vcpu.hv.memory.b[maddr : maddr + size]
        return window if write else window.toreadonly()

    def rdtsc(self) -> int:
        """Return the time-stamp counter: nanoseconds since the host was powered on."""
        return self._vcpu.hv.now()

    def inl(self, port: int) -> int:
        """Read an I/O port. Raises GeneralProtectionFault without permission (domctl ioport_permission)."""
        if not self._vcpu.domain.may_use_port(port):
            raise GeneralProtectionFault(f"no permission for I/O port {port:#x}")
        return self._vcpu.hv.machine.ports.inl(port)


def _store_port(domain: Domain, writers: dict[int, Callable[[int, int], None]]) -> Callable[..., None]:
    """Make the instruction `outl` of a domain's vCPUs: a doorbell is rung for each batch of disk requests."""

    permitted: int | None = None
    ioports = domain.ioports

    def outl(port: int, value: int) -> None:
        nonlocal permitted, ioports
        if port != permitted or domain.ioports is not ioports:
            # Another port than the last time, or other permissions, which come as another list.
            if not domain.may_use_port(port):
                raise GeneralProtectionFault(f"no permission for I/O port {port:#x}")
            permitted, ioports = port, domain.ioports
        write = writers.get(port)
        if write is not None:
            write(port, value & U32)

    return outl


def _door(vcpu: PythonVCpu) -> Door:
    """Make the hypercall entry of a vCPU.

    Once locked it does nothing: what is left of a dead guest's suspended code may still run when Python throws it away.
    """
    # (A list knows negative numbers, too: as those counted from its end. There nothing is.)
    table: list[Handler] = [*vcpu.hv.table, *[unknown_op] * len(vcpu.hv.table)]

    def hypercall(nr: int, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0, a5: int = 0, /) -> int:
        vcpu.hypercalls += 1
        try:
            handler = table[nr]
        except (IndexError, TypeError):
            return -errno.ENOSYS
        try:
            return handler(vcpu, a1, a2, a3, a4, a5)
        except HypercallError as error:
            return -error.errno
        except Continuation as rest:
            return finish(vcpu, nr, rest, (a1, a2, a3, a4, a5))

    return hypercall, table.clear


def _traced_door(vcpu: PythonVCpu) -> Door:
    """Make a hypercall entry that records each call with its result."""
    plain, lock_plain = _door(vcpu)
    locked = False
    hv, domid, vcpu_id = vcpu.hv, vcpu.domain.domid, vcpu.vcpu_id
    emit = hv.trace
    assert emit is not None

    def hypercall(nr: int, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0, a5: int = 0, /) -> int:
        rc = plain(nr, a1, a2, a3, a4, a5)
        if not locked:
            emit(domid, vcpu_id, HYPERCALL, nr & U64, a1 & U64, a2 & U64, a3 & U64, a4 & U64, a5 & U64, rc)
        return rc

    def lock() -> None:
        nonlocal locked
        locked = True
        lock_plain()

    return hypercall, lock


def _taped_door(vcpu: PythonVCpu) -> Door:
    """Make a hypercall entry that records each call on the tape: `_door` and `_traced_door` in one."""
    table: list[Handler] = list(vcpu.hv.table)
    hv, domid, vcpu_id = vcpu.hv, vcpu.domain.domid, vcpu.vcpu_id
    tape, emit, sched = hv.tape, hv.trace, hv.sched
    assert tape is not None
    assert emit is not None
    words, tick = tape.words, tape.tick(sched.costs.hypercall)
    call, short_call = vcpu.codes.call, vcpu.codes.short_call

    def hypercall(nr: int, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0, a5: int = 0, /) -> int:
        vcpu.hypercalls += 1
        try:
            if nr < 0:
                raise IndexError
            handler = table[nr]
        except (IndexError, TypeError):
            if table:
                emit(domid, vcpu_id, HYPERCALL, *map(register, (nr, a1, a2, a3, a4, a5)), -errno.ENOSYS)
            return -errno.ENOSYS
        if sched.running is vcpu:
            words.append(tick)
        try:
            rc = handler(vcpu, a1, a2, a3, a4, a5)
        except HypercallError as error:
            rc = -error.errno
        except Continuation as rest:
            rc = finish(vcpu, nr, rest, (a1, a2, a3, a4, a5))
        if not table:
            # It is locked: the domain has gone meanwhile.
            return rc
        if rc or a3 or a4 or a5:
            words.extend((call, nr, a1, a2, a3, a4, a5, rc & U64))
        else:
            words.append(short_call)
            words.append(nr)
            words.append(a1)
            words.append(a2)
        if not vcpu.hypercalls & LOOK and len(words) > FULL:
            tape.keep()
        return rc

    return hypercall, table.clear


class PythonVCpu(VCpu):
    """Runs `Image.boot` (or what `text` holds at the entry point) of the domain's image."""

    __slots__ = ("_bytes", "_run", "_text", "_trace", "_words", "cpu")

    def __init__(self, domain: Domain, vcpu_id: int) -> None:
        super().__init__(domain, vcpu_id)
        self._bytes = domain.hv.memory.b
        self._words = domain.hv.memory.h
        """The same in 16 bits: the pending flag of a vcpu_info, and the mask above it, at once."""
        self._text = domain.text
        self._trace = domain.hv.trace
        self.cpu = PythonCpu(self)
        self._run: Run | None = None
        self.resume = self._first

    def run(self) -> int:
        """Deliver a pending upcall, then run the guest to its next yield."""
        words, at = self._words, self.flags_at
        try:
            state = words[at]
            if state and state < 0x100:
                # An upcall is pending, and not masked: the byte above is zero.
                handler = self.upcall
                if handler is not None:
                    # `deliver_upcall`, written out: events between domains are what speed is measured by.
                    words[at] = state + 0x100
                    handler()
                    # The guest may have moved its vcpu_info in the handler.
                    at = self.flags_at
                    words[at] = state = words[at] & 0xFF
                else:
                    self._deliver()
                    state = words[self.flags_at] & 0xFF
                if state:
                    # The handler has left an upcall pending: it is entered again before anything else runs.
                    return 0
            work = 0
            if self.idle:
                # (Two steps: a call of what an attribute holds takes longer, as it could be a method.)
                resume = self.resume
                work = self.yielded(resume(None))
            if not self.idle:
                self.block()
            return work
        except Exception as error:
            self.failed(error)
        return 0

    def yielded(self, work: object) -> int:
        """Take note of what the guest said at its yield: returns how many nanoseconds it computes, or 0 if it is idle.

        Raises ValueError: it may have said anything at all.
        """
        if type(work) is deque:
            # (A domain that has gone is not entered again.)
            self.idle = work if self._run is not None else AWAKE
            return 0
        self.idle = AWAKE
        return NO_WORK if work is NO_WORK else checked_work(work)

    def block(self) -> None:
        """Make the hypercall SCHEDOP_block in the place of the guest, which is in its idle loop."""
        self.cpu.hypercall(xen.HYPERVISOR_sched_op, sched.SCHEDOP_block)

    def _first(self, _: None) -> object:
        """Enter the guest for the first time: what `resume` is until then."""
        self._run = self._start()
        self.resume = self._run.send
        return self.resume(None)

    def _restart(self, _: None) -> object:
        """Enter the guest again, through a new door: what `resume` is after `halt`."""
        self.cpu = PythonCpu(self)
        return self._first(None)

    def _start(self) -> Run:
        """Find the code at the instruction pointer."""
        domain, context = self.domain, self.context
        image = domain.image
        if image is None:
            raise GeneralProtectionFault("the domain has no image to execute")
        if context.rip == image.virt_entry:
            return image.boot(self.cpu, context.rsi)
        entry = domain.text.get(context.rip)
        if entry is None:
            raise GeneralProtectionFault(f"there is no code at {context.rip:#x}")
        return entry(self.cpu)  # type: ignore[no-any-return]

    def deliver_upcall(self) -> None:
        """Enter the event callback, if an unmasked upcall is pending, at an instruction boundary amid computing."""
        bytes_, info = self._bytes, self.info
        if bytes_[info] and not bytes_[info + MASK_BYTE]:
            try:
                self._deliver()
            except Exception as error:
                self.failed(error)

    def _deliver(self) -> None:
        """Mask upcalls, call the guest's handler, and unmask as its iret would."""
        handler = self._text.get(self.context.event_callback)
        if handler is None:
            raise GeneralProtectionFault(f"there is no code at the event callback {self.context.event_callback:#x}")
        trace = self._trace
        if trace is not None:
            trace(self.domain.domid, self.vcpu_id, UPCALL, self.ready_bits())
            if self.codes is not None:
                self.upcall = self._taped_upcall(handler)
        else:
            self.upcall = handler
        self._bytes[self.info + MASK_BYTE] = 1
        handler()
        # The guest may have moved its vcpu_info in the handler.
        self._bytes[self.info + MASK_BYTE] = 0

    def _taped_upcall(self, handler: Callable[[], object]) -> Callable[[], object]:
        """Return what records an upcall on the tape, and enters it."""
        tape, code = self.hv.tape, self.codes.upcall
        assert tape is not None
        words, memory = tape.words, self.hv.memory
        i, q = memory.i, memory.q

        def upcall() -> None:
            words.append(code)
            # `ready_bits`, written out.
            queues = self.event_queues
            words.append(i[queues[0].ready_at] if queues else q[self.selector_at])
            handler()

        return upcall

    def callbacks_changed(self) -> None:
        """Look the code of the event callback up again: it has been registered anew."""
        self.upcall = None

    def halt(self) -> None:
        """Lock the door, then throw the suspended code away; what it does on its way out reaches nothing."""
        self.cpu.lock()
        run, self._run = self._run, None
        self.resume = self._restart
        self.upcall = None
        self.idle = AWAKE
        self.compute_left = 0
        self.yielding = False
        if run is not None:
            # Whatever the guest's code raises on its way out, nobody is left to tell: its domain is gone.
            with suppress(BaseException):
                run.close()

    def failed(self, error: Exception) -> None:
        """End a domain whose kernel has returned, or let an exception escape: the Python form of a triple fault."""
        hv: Hypervisor = self.hv
        if isinstance(error, StopIteration):
            hv.domain_ops.crash(self.domain, f"vCPU {self.vcpu_id} ran off the end of its code")
            return
        for line in "".join(traceback.format_exception(error)).splitlines():
            hv.log(f"d{self.domain.domid}v{self.vcpu_id} {line}")
        hv.domain_ops.crash(self.domain, f"unhandled {type(error).__name__}: {error}")
