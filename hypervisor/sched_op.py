"""HYPERVISOR_sched_op (sched.h): yield, block, poll, shutdown, watchdog."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno, sched, xen
from hypervisor.event_channel.channel import FREE
from hypervisor.event_channel.port_table import lookup
from hypervisor.guest_access import access_ok, copy_from_guest, read_u32
from hypervisor.vcpu import VPF_BLOCKED

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_sched_op
COMPAT_HYPERCALL = xen.__HYPERVISOR_sched_op_compat
MASK_BYTE = xen.vcpu_info.offset("evtchn_upcall_mask")
MAX_POLL_PORTS = 128
NR_WATCHDOGS = 2
WATCHDOG_DELAY_NS = 1_000
"""The timers of watchdogs are on pCPU 0: how long it takes from anywhere else until one that is due fires there."""
HARDWARE_DOMAIN = 0


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
        do_sched_op = self._make_op()
        self._handlers[sched.SCHEDOP_block] = lambda vcpu, arg: do_sched_op(vcpu, sched.SCHEDOP_block, arg, 0, 0, 0)
        self.hypercalls = {HYPERCALL: do_sched_op, COMPAT_HYPERCALL: self._compat_op}

    def _make_op(self) -> Callable[[VCpu, int, int, int, int, int], int]:
        """Build the hypercall; `block`, which ends every idle stretch of every guest, is decided first."""
        b, h, written = self.hv.memory.b, self.hv.memory.h, self.hv.memory.written
        handlers = self._handlers
        block_op, mask_byte = sched.SCHEDOP_block, MASK_BYTE

        def do_sched_op(vcpu: VCpu, cmd: int, arg: int, _a3: int, _a4: int, _a5: int) -> int:
            if cmd == block_op:
                # Blocking unmasks upcalls, always; only a pending upcall keeps the vCPU awake.
                if h[vcpu.flags_at]:
                    # Something is pending, or masked.
                    info = vcpu.info
                    if b[info + mask_byte]:
                        b[info + mask_byte] = 0
                        written[info >> 12] = 1
                    if b[info]:
                        return 0
                flags = vcpu.pause_flags
                vcpu.pause_flags = flags | VPF_BLOCKED if flags else VPF_BLOCKED
                return 0
            handler = handlers.get(cmd & 0xFFFFFFFF)
            return handler(vcpu, arg) if handler is not None else -errno.ENOSYS

        return do_sched_op

    def _compat_op(self, vcpu: VCpu, cmd: int, arg: int, _a3: int, _a4: int, _a5: int) -> int:
        """Run the old form of the hypercall: three operations, the reason of a shutdown passed by value."""
        cmd &= 0xFFFFFFFF
        if cmd == sched.SCHEDOP_shutdown:
            self.hv.domain_ops.shutdown(vcpu.domain, arg & 0xFF)
            return 0
        if cmd in (sched.SCHEDOP_yield, sched.SCHEDOP_block):
            return self._handlers[cmd](vcpu, 0)
        return -errno.ENOSYS

    def _yield(self, vcpu: VCpu, _arg: int) -> int:
        vcpu.yielding = True
        return 0

    def _poll(self, vcpu: VCpu, arg: int) -> int:
        """Sleep until one of the ports is pending, masked or not, until an upcall is due, or until the timeout.

        The ports are looked at one after the other: one that is pending hides what is wrong behind it.
        """
        op = sched.sched_poll.unpack_from(copy_from_guest(vcpu, arg, sched.sched_poll.size))
        if op.nr_ports > MAX_POLL_PORTS:
            return -errno.EINVAL
        if not access_ok(op.ports):
            return -errno.EFAULT
        b, info = self.hv.memory.b, vcpu.info
        if b[info] and not b[info + MASK_BYTE]:
            return 0
        ports = []
        for index in range(op.nr_ports):
            port = read_u32(vcpu, op.ports + 4 * index)
            channel = lookup(vcpu.domain, port)
            if channel.state == FREE:
                return -errno.EINVAL
            if vcpu.domain.port_ops.is_pending(channel):
                return 0
            ports.append(port)
        # A time before the host was switched on (the argument is signed), or one that has passed: over at once.
        if op.timeout >> 63 or 0 < op.timeout <= self.hv.now():
            return 0
        self.hv.time.start_poll(vcpu, tuple(ports), op.timeout)
        return 0

    def _shutdown(self, vcpu: VCpu, arg: int) -> int:
        op = sched.sched_shutdown.unpack_from(copy_from_guest(vcpu, arg, sched.sched_shutdown.size))
        self.hv.domain_ops.shutdown(vcpu.domain, op.reason & 0xFF)
        return 0

    def _shutdown_code(self, vcpu: VCpu, arg: int) -> int:
        """Announce the reason of a shutdown to come: no later reason replaces it."""
        op = sched.sched_shutdown.unpack_from(copy_from_guest(vcpu, arg, sched.sched_shutdown.size))
        if not vcpu.domain.shutting_down:
            vcpu.domain.shutdown_code = op.reason & 0xFF
        return 0

    def _remote_shutdown(self, vcpu: VCpu, arg: int) -> int:
        op = sched.sched_remote_shutdown.unpack_from(copy_from_guest(vcpu, arg, sched.sched_remote_shutdown.size))
        domain = self.hv.domain(op.domain_id)
        if not (vcpu.domain.is_privileged or vcpu.domain.target is domain):
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
                    self._arm(domain, index, op.timeout)
                    return index + 1
            # Xen returns this one as an unsigned 32-bit number.
            return -errno.ENOSPC & 0xFFFFFFFF
        index = op.id - 1
        armed = domain.watchdogs[index]
        if armed is None:
            return -errno.EINVAL
        armed.cancel()
        if op.timeout:
            self._arm(domain, index, op.timeout)
        else:
            domain.watchdogs[index] = None
        return 0

    def _arm(self, domain: Domain, index: int, seconds: int) -> None:
        def bite() -> None:
            if not domain.is_dying and not domain.shutting_down:
                self.hv.log(f"Watchdog timer fired for domain {domain.domid}")
                self.hv.domain_ops.shutdown(domain, sched.SHUTDOWN_watchdog)

        # One that is to bite at once does so when it has fired over there; meanwhile the guest goes on.
        delay = max(seconds * 1_000_000_000, WATCHDOG_DELAY_NS)
        domain.watchdogs[index] = self.hv.timers.add(self.hv.now() + delay, bite)

    def _pin_override(self, vcpu: VCpu, arg: int) -> int:
        """Pin the caller to a pCPU for a while, or (a negative number) not any more: for firmware that wants that."""
        if vcpu.domain.domid != HARDWARE_DOMAIN:
            return -errno.EPERM
        op = sched.sched_pin_override.unpack_from(copy_from_guest(vcpu, arg, sched.sched_pin_override.size))
        if op.pcpu < 0:
            return 0 if self.hv.sched.end_override(vcpu) else -errno.EINVAL
        self.hv.sched.override(vcpu, op.pcpu)
        return 0
