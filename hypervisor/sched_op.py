"""HYPERVISOR_sched_op (sched.h): yield, block, poll, shutdown, watchdog."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno, sched, xen
from hypervisor.event_channel import two_level
from hypervisor.guest_access import copy_from_guest
from hypervisor.vcpu import VPF_BLOCKED

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_sched_op
MASK_BYTE = xen.vcpu_info.offset("evtchn_upcall_mask")
MAX_POLL_PORTS = 128
NR_WATCHDOGS = 2


class SchedOps:
    """What a guest says about its own use of the processor."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self._handlers: dict[int, Callable[[VCpu, int], int]] = {
            sched.SCHEDOP_yield: self._yield,
            sched.SCHEDOP_shutdown: self._shutdown,
            sched.SCHEDOP_poll: self._poll,
            sched.SCHEDOP_remote_shutdown: self._remote_shutdown,
            sched.SCHEDOP_shutdown_code: self._shutdown_code,
            sched.SCHEDOP_watchdog: self._watchdog,
            sched.SCHEDOP_pin_override: self._pin_override,
        }
        self.hypercalls = {HYPERCALL: self._make_op()}

    def _make_op(self) -> Callable[[VCpu, int, int, int, int, int], int]:
        """Build the hypercall; `block`, which ends every idle stretch of every guest, is decided first."""
        b, written = self.hv.memory.b, self.hv.memory.written
        handlers = self._handlers
        block_op = sched.SCHEDOP_block

        def do_sched_op(vcpu: VCpu, cmd: int, arg: int, _a3: int, _a4: int, _a5: int) -> int:
            if cmd == block_op:
                # Blocking unmasks upcalls, always; only a pending upcall keeps the vCPU awake.
                info = vcpu.info
                if b[info + MASK_BYTE]:
                    b[info + MASK_BYTE] = 0
                    written[info >> 12] = 1
                if not b[info]:
                    vcpu.pause_flags |= VPF_BLOCKED
                return 0
            handler = handlers.get(cmd & 0xFFFFFFFF)
            return handler(vcpu, arg) if handler is not None else -errno.ENOSYS

        return do_sched_op

    def _yield(self, vcpu: VCpu, _arg: int) -> int:
        vcpu.yielding = True
        return 0

    def _poll(self, vcpu: VCpu, arg: int) -> int:
        """Sleep until one of the ports is pending, masked or not. A free port is an error when it is looked at."""
        op = sched.sched_poll.unpack_from(copy_from_guest(vcpu, arg, sched.sched_poll.size))
        if op.nr_ports > MAX_POLL_PORTS:
            return -errno.EINVAL
        ports: tuple[int, ...] = ()
        if op.nr_ports:
            raw = memoryview(copy_from_guest(vcpu, op.ports, 4 * op.nr_ports)).cast("I")
            ports = tuple(raw)
        for port in ports:
            channel = self.hv.events.lookup(vcpu.domain, port)
            if not channel.state:
                return -errno.EINVAL
            if two_level.is_pending(channel):
                return 0
        if op.timeout and op.timeout <= self.hv.now():
            return 0
        return self.hv.time.start_poll(vcpu, ports, op.timeout)

    def _shutdown(self, vcpu: VCpu, arg: int) -> int:
        op = sched.sched_shutdown.unpack_from(copy_from_guest(vcpu, arg, sched.sched_shutdown.size))
        self.hv.domain_ops.shutdown(vcpu.domain, op.reason & 0xFF)
        return 0

    def _shutdown_code(self, vcpu: VCpu, arg: int) -> int:
        op = sched.sched_shutdown.unpack_from(copy_from_guest(vcpu, arg, sched.sched_shutdown.size))
        if vcpu.domain.shutting_down:
            return -errno.EBUSY
        vcpu.domain.shutdown_code = op.reason & 0xFF
        return 0

    def _remote_shutdown(self, vcpu: VCpu, arg: int) -> int:
        op = sched.sched_remote_shutdown.unpack_from(copy_from_guest(vcpu, arg, sched.sched_remote_shutdown.size))
        domain = self.hv.domain(op.domain_id)
        if not vcpu.domain.is_privileged:
            return -errno.EPERM
        self.hv.domain_ops.shutdown(domain, op.reason & 0xFF)
        return 0

    def _watchdog(self, vcpu: VCpu, arg: int) -> int:
        """Arm, poke or stop one of two watchdogs; the id of a new one is returned."""
        op = sched.sched_watchdog.unpack_from(copy_from_guest(vcpu, arg, sched.sched_watchdog.size))
        domain = vcpu.domain
        if op.id > NR_WATCHDOGS:
            return -errno.EINVAL
        if op.id == 0:
            for index, timer in enumerate(domain.watchdogs):
                if timer is None:
                    self._arm(vcpu, index, op.timeout)
                    return index + 1
            # Xen returns this one as an unsigned 32-bit number.
            return -errno.ENOSPC & 0xFFFFFFFF
        index = op.id - 1
        if domain.watchdogs[index] is None:
            return -errno.EINVAL
        domain.watchdogs[index].cancel()
        domain.watchdogs[index] = None
        if op.timeout:
            self._arm(vcpu, index, op.timeout)
        return 0

    def _arm(self, vcpu: VCpu, index: int, seconds: int) -> None:
        domain = vcpu.domain

        def bite() -> None:
            domain.watchdogs[index] = None
            if not domain.is_dying:
                self.hv.log(f"Watchdog timer {index} fired for d{domain.domid}")
                self.hv.domain_ops.shutdown(domain, sched.SHUTDOWN_watchdog)

        domain.watchdogs[index] = self.hv.timers.add(self.hv.now() + seconds * 1_000_000_000, bite)

    def _pin_override(self, vcpu: VCpu, arg: int) -> int:
        op = sched.sched_pin_override.unpack_from(copy_from_guest(vcpu, arg, sched.sched_pin_override.size))
        if not vcpu.domain.is_privileged:
            return -errno.EPERM
        if op.pcpu >= len(self.hv.sched.pcpus):
            return -errno.EINVAL
        return -errno.ENOSYS
