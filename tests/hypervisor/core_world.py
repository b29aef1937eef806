"""Domains for the tests of the hypervisor's core: hypercalls by hand, or by little programs that their vCPUs run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

import bare_guest

from hypervisor.abi import event_channel as ev
from hypervisor.abi import physdev, sched, xen
from hypervisor.abi import vcpu as vcpu_abi
from hypervisor.abi.cpu import Cpu
from hypervisor.abi.layout import Layout
from hypervisor.machine.timers import Timers
from hypervisor.vcpu import VPF_DOWN, VCpu

EVTCHN_OP = xen.HYPERVISOR_event_channel_op
PHYSDEV_OP = xen.HYPERVISOR_physdev_op
SCHED_OP = xen.HYPERVISOR_sched_op
VCPU_OP = xen.HYPERVISOR_vcpu_op
SELF = xen.DOMID_SELF
KERNEL = 0x100000
"""Guest virtual address of the entry point of programs; that of vCPU n is n pages further, the callback 64 pages."""
CALLBACK = KERNEL + (64 << 12)
PENDING, MASK = xen.shared_info.offset("evtchn_pending"), xen.shared_info.offset("evtchn_mask")
UPCALL_PENDING = xen.vcpu_info.offset("evtchn_upcall_pending")
UPCALL_MASK = xen.vcpu_info.offset("evtchn_upcall_mask")
SELECTOR = xen.vcpu_info.offset("evtchn_pending_sel")
MS = 1_000_000

Program = Callable[[Cpu], Generator[int, None, None]]


class Image:
    """What the vCPUs of a domain run: the code is in `text` at KERNEL and behind."""

    name = "test"
    virt_base = 0
    virt_entry = 0xDEAD000

    def __init__(self) -> None:
        self.unloaded = 0

    def boot(self, cpu: Cpu, start_info: int) -> Generator[int, None, None]:
        raise AssertionError("vCPUs start at KERNEL")

    def unload(self) -> None:
        self.unloaded += 1


class Guest(bare_guest.Guest):
    """A domain whose vCPUs are paused, for hypercalls from outside, until `runs` gives them programs."""

    # -- event channels -----------------------------------------------------------------------------------------------

    def event(self, op: int, layout: Layout, **fields: Any) -> tuple[int, Any]:
        return self.call(EVTCHN_OP, op, layout=layout, **fields)

    def alloc(self, remote: int = SELF, dom: int = SELF) -> int:
        """EVTCHNOP_alloc_unbound; returns the port, or a negative errno."""
        rc, op = self.event(ev.EVTCHNOP_alloc_unbound, ev.evtchn_alloc_unbound, dom=dom, remote_dom=remote)
        return op.port if rc == 0 else rc

    def bind(self, remote: int, port: int) -> int:
        """EVTCHNOP_bind_interdomain; returns the local port, or a negative errno."""
        rc, op = self.event(
            ev.EVTCHNOP_bind_interdomain, ev.evtchn_bind_interdomain, remote_dom=remote, remote_port=port
        )
        return op.local_port if rc == 0 else rc

    def virq(self, virq: int, vcpu: int = 0) -> int:
        rc, op = self.event(ev.EVTCHNOP_bind_virq, ev.evtchn_bind_virq, virq=virq, vcpu=vcpu)
        return op.port if rc == 0 else rc

    def ipi(self, vcpu: int = 0) -> int:
        rc, op = self.event(ev.EVTCHNOP_bind_ipi, ev.evtchn_bind_ipi, vcpu=vcpu)
        return op.port if rc == 0 else rc

    def pirq(self, pirq: int, flags: int = 0) -> int:
        rc, op = self.event(ev.EVTCHNOP_bind_pirq, ev.evtchn_bind_pirq, pirq=pirq, flags=flags)
        return op.port if rc == 0 else rc

    def send(self, port: int) -> int:
        return self.event(ev.EVTCHNOP_send, ev.evtchn_send, port=port)[0]

    def close(self, port: int) -> int:
        return self.event(ev.EVTCHNOP_close, ev.evtchn_close, port=port)[0]

    def unmask(self, port: int) -> int:
        return self.event(ev.EVTCHNOP_unmask, ev.evtchn_unmask, port=port)[0]

    def bind_vcpu(self, port: int, vcpu: int) -> int:
        return self.event(ev.EVTCHNOP_bind_vcpu, ev.evtchn_bind_vcpu, port=port, vcpu=vcpu)[0]

    def reset(self, dom: int = SELF) -> int:
        return self.event(ev.EVTCHNOP_reset, ev.evtchn_reset, dom=dom)[0]

    def status(self, port: int, dom: int = SELF) -> Any:
        """EVTCHNOP_status; returns the structure, or a negative errno."""
        rc, op = self.event(ev.EVTCHNOP_status, ev.evtchn_status, dom=dom, port=port, status=0x55)
        return op if rc == 0 else rc

    # -- physdev_op ---------------------------------------------------------------------------------------------------

    def physdev(self, op: int, layout: Layout, **fields: Any) -> tuple[int, Any]:
        return self.call(PHYSDEV_OP, op, layout=layout, **fields)

    def map_pirq(self, line: int, pirq: int = -1, domid: int = SELF) -> int:
        """PHYSDEVOP_map_pirq of an interrupt line; returns the PIRQ, or a negative errno."""
        fields = {"domid": domid, "type": physdev.MAP_PIRQ_TYPE_GSI, "index": line, "pirq": pirq}
        rc, op = self.physdev(physdev.PHYSDEVOP_map_pirq, physdev.physdev_map_pirq, **fields)
        return op.pirq if rc == 0 else rc

    def unmap_pirq(self, pirq: int, domid: int = SELF) -> int:
        layout = physdev.physdev_unmap_pirq
        return self.physdev(physdev.PHYSDEVOP_unmap_pirq, layout, domid=domid, pirq=pirq)[0]

    # -- what is in shared memory -------------------------------------------------------------------------------------

    def _word(self, at: int, port: int) -> int:
        return (self.domain.shared_info_mfn << 9) + (at >> 3) + (port >> 6)

    def pending(self, port: int) -> bool:
        return bool(self.hv.memory.q[self._word(PENDING, port)] >> (port & 63) & 1)

    def masked(self, port: int) -> bool:
        return bool(self.hv.memory.q[self._word(MASK, port)] >> (port & 63) & 1)

    def set_bit(self, at: int, port: int, value: bool) -> None:
        word = self._word(at, port)
        bit = 1 << (port & 63)
        self.hv.memory.q[word] = self.hv.memory.q[word] | bit if value else self.hv.memory.q[word] & ~bit

    def mask(self, port: int) -> None:
        self.set_bit(MASK, port, True)

    def clear(self, port: int) -> None:
        self.set_bit(PENDING, port, False)

    def upcall_pending(self, vcpu: int = 0) -> int:
        return self.hv.memory.b[self.vcpus[vcpu].info + UPCALL_PENDING]

    def set_upcall_pending(self, value: int, vcpu: int = 0) -> None:
        self.hv.memory.b[self.vcpus[vcpu].info + UPCALL_PENDING] = value

    def upcall_mask(self, vcpu: int = 0) -> int:
        return self.hv.memory.b[self.vcpus[vcpu].info + UPCALL_MASK]

    def set_upcall_mask(self, value: int, vcpu: int = 0) -> None:
        self.hv.memory.b[self.vcpus[vcpu].info + UPCALL_MASK] = value

    def selector(self, vcpu: int = 0) -> int:
        return self.hv.memory.q[(self.vcpus[vcpu].info + SELECTOR) >> 3]

    def set_selector(self, value: int, vcpu: int = 0) -> None:
        self.hv.memory.q[(self.vcpus[vcpu].info + SELECTOR) >> 3] = value

    def acknowledge(self, vcpu: int = 0) -> list[int]:
        """What an upcall handler does: returns the ports it found, lowest first."""
        self.set_upcall_pending(0, vcpu)
        q, found = self.hv.memory.q, []
        selector = self.selector(vcpu)
        self.set_selector(0, vcpu)
        for word in range(64):
            if selector >> word & 1:
                pending, mask = self._word(PENDING, 0) + word, self._word(MASK, 0) + word
                ready = q[pending] & ~q[mask]
                q[pending] &= ~ready
                found += [word * 64 + bit for bit in range(64) if ready >> bit & 1]
        return found

    # -- the FIFO event ABI: the control block of vCPU n is on data page n, the event array on those after the vCPUs' --

    def init_control(self, vcpu: int = 0, *, gfn: int | None = None, offset: int = 0) -> int:
        """EVTCHNOP_init_control; returns the result."""
        gfn = self.pages[vcpu] if gfn is None else gfn
        rc, op = self.event(
            ev.EVTCHNOP_init_control, ev.evtchn_init_control, control_gfn=gfn, offset=offset, vcpu=vcpu, link_bits=255
        )
        assert op.link_bits == (17 if rc == 0 else 255)
        return rc

    def expand_array(self, gfn: int | None = None) -> int:
        """EVTCHNOP_expand_array; returns the result."""
        gfn = self.pages[len(self.vcpus)] if gfn is None else gfn
        return self.event(ev.EVTCHNOP_expand_array, ev.evtchn_expand_array, array_gfn=gfn)[0]

    def use_fifo(self) -> None:
        """Switch to the FIFO ABI, all of it, with one page of event words."""
        for vcpu in self.vcpus:
            assert self.init_control(vcpu.vcpu_id) == 0
        assert self.expand_array() == 0

    def set_priority(self, port: int, priority: int) -> int:
        return self.event(ev.EVTCHNOP_set_priority, ev.evtchn_set_priority, port=port, priority=priority)[0]

    def word_at(self, port: int) -> int:
        """Where an event word is, of the first page of them, as an index of `Memory.i`."""
        return (self.pages[len(self.vcpus)] << 10) + port

    def word(self, port: int) -> int:
        return self.hv.memory.i[self.word_at(port)]

    def set_word(self, port: int, value: int) -> None:
        self.hv.memory.i[self.word_at(port)] = value

    def ready(self, vcpu: int = 0) -> int:
        return self.hv.memory.i[self.pages[vcpu] << 10]

    def set_ready(self, value: int, vcpu: int = 0) -> None:
        self.hv.memory.i[self.pages[vcpu] << 10] = value

    def head(self, priority: int = 7, vcpu: int = 0) -> int:
        return self.hv.memory.i[(self.pages[vcpu] << 10) + 2 + priority]

    # -- programs -----------------------------------------------------------------------------------------------------

    def runs(self, *programs: Program, handler: Callable[[], None] | None = None) -> Image:
        """Give each vCPU a program and let the domain go; `handler` is the event callback of all of them."""
        image = Image()
        self.domain.image = image
        for vcpu, program in zip(self.vcpus, programs, strict=False):
            self.load(vcpu, program, handler)
            self.hv.sched.unpause(vcpu, VPF_DOWN)
        self.hv.domain_ops.unpause(self.domain)
        return image

    def load(self, vcpu: VCpu, program: Program, handler: Callable[[], None] | None = None) -> None:
        """Put a program and the callback where the vCPU will find them."""
        entry = KERNEL + (vcpu.vcpu_id << 12)
        self.domain.text[entry] = program
        vcpu.context.rip = entry
        if handler is not None:
            self.domain.text[CALLBACK] = handler
            vcpu.context.event_callback = CALLBACK
        vcpu.initialised = True
        if vcpu.vcpu_id == 0:
            vcpu.hv.time.update_wallclock(vcpu.domain)

    def alloc_table(self) -> int:
        """One more frame of zeroes, mapped nowhere, fit for a descriptor table."""
        return self.hv.frames.alloc(self.domain)

    # -- sched_op and vcpu_op -----------------------------------------------------------------------------------------

    def sched(self, op: int, layout: Layout, *, on: int = 0, **fields: Any) -> int:
        return self.call(SCHED_OP, op, layout=layout, on=on, **fields)[0]

    def block(self, vcpu: int = 0) -> int:
        return self.hypercall(SCHED_OP, sched.SCHEDOP_block, 0, vcpu=vcpu)

    def poll(self, ports: Iterable[int] = (), timeout: int = 0, *, at: int | None = None, on: int = 0) -> int:
        """SCHEDOP_poll; the ports are put on a page of their own, or assumed at address `at`."""
        ports = list(ports)
        where = self.spare if at is None else at
        if at is None:
            self.poke(where, b"".join(port.to_bytes(4, "little") for port in ports))
        fields = {"ports": where, "nr_ports": len(ports), "timeout": timeout}
        return self.sched(sched.SCHEDOP_poll, sched.sched_poll, on=on, **fields)

    def shutdown(self, reason: int) -> int:
        return self.sched(sched.SCHEDOP_shutdown, sched.sched_shutdown, reason=reason)

    def watchdog(self, number: int, seconds: int) -> int:
        return self.sched(sched.SCHEDOP_watchdog, sched.sched_watchdog, id=number, timeout=seconds)

    def vcpu_op(self, op: int, target: int, layout: Layout | None = None, *, on: int = 0, **fields: Any) -> int:
        if layout is None:
            return self.hypercall(VCPU_OP, op, target, 0, vcpu=on)
        return self.call(VCPU_OP, op, target, layout=layout, on=on, **fields)[0]

    def is_up(self, vcpu: int) -> int:
        return self.vcpu_op(vcpu_abi.VCPUOP_is_up, vcpu)


class World(bare_guest.World):
    """A host of such guests."""

    guest_type = Guest

    def run(self, until: int | None = None, steps: int = 10_000) -> None:
        """Turn the pCPUs until nothing is left to do, or until the time `until` (ns)."""
        hv = self.hv
        alarm = hv.timers.add(Timers.NEVER if until is None else until, lambda: None)
        try:
            for _ in range(steps):
                if hv.stopped or hv.sched.drain(1) == Timers.NEVER or not alarm.armed:
                    return
            raise AssertionError(f"no end after {steps} steps, at {hv.clock.now} ns")
        finally:
            alarm.cancel()
            hv.timers.prune()
