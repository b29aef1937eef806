"""Guest time: vcpu_time_info, wall clock, VIRQ_TIMER (xen.h, vcpu.h; HYPERVISOR_set_timer_op).

The simulated TSC ticks once a nanosecond and never stops, so system time is `tsc` itself; guests still read it through
tsc_timestamp, the multiplier and the shift, as they must on any Xen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.vcpu import VPF_BLOCKED, VPF_POLLING

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

TSC_HZ = 1_000_000_000
TSC_TO_SYSTEM_MUL = 0x8000_0000
TSC_SHIFT = 1
"""(tsc << 1) * 2^31 >> 32 = tsc: one tick is one nanosecond."""

CALIBRATION_NS = 1_000_000_000
"""Xen refreshes its time stamps about once a second (`local_time_calibration`)."""

FAR_FUTURE_NS = 1 << 50
RETRY_NS = 100_000_000
"""set_timer_op with a deadline more than 2^50 ns away (or a negative one) fires after this long instead."""

TIME = xen.vcpu_info.offset("time")
VERSION = TIME + xen.vcpu_time_info.offset("version")
TSC_TIMESTAMP = TIME + xen.vcpu_time_info.offset("tsc_timestamp")
SYSTEM_TIME = TIME + xen.vcpu_time_info.offset("system_time")
MUL = TIME + xen.vcpu_time_info.offset("tsc_to_system_mul")
SHIFT = TIME + xen.vcpu_time_info.offset("tsc_shift")
FLAGS = TIME + xen.vcpu_time_info.offset("flags")
XEN_PVCLOCK_TSC_STABLE_BIT = 1

WC_VERSION = xen.shared_info.offset("wc_version")
WC_SEC = xen.shared_info.offset("wc_sec")
WC_NSEC = xen.shared_info.offset("wc_nsec")
WC_SEC_HI = xen.shared_info.offset("wc_sec_hi")

HYPERCALL = xen.__HYPERVISOR_set_timer_op


class GuestTime:
    """Keeps the time areas of guests current and raises VIRQ_TIMER."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.hypercalls: dict[int, Callable[[VCpu, int, int, int, int, int], int]] = {HYPERCALL: self._set_timer_op}

    # -- time stamps ----------------------------------------------------------------------------------------------

    def update_wallclock(self, domain: Domain) -> None:
        """Write the wall-clock time at power-on into shared_info (update_domain_wallclock_time)."""
        memory = self.hv.memory
        base = domain.shared_info_mfn << 12
        nanoseconds = self.hv.clock.wallclock_base + domain.time_offset * 1_000_000_000
        seconds, rest = divmod(nanoseconds, 1_000_000_000)
        version = memory.i[(base + WC_VERSION) >> 2]
        memory.i[(base + WC_VERSION) >> 2] = version + 1 & 0xFFFFFFFF
        memory.i[(base + WC_SEC) >> 2] = seconds & 0xFFFFFFFF
        memory.i[(base + WC_NSEC) >> 2] = rest
        memory.i[(base + WC_SEC_HI) >> 2] = seconds >> 32
        memory.i[(base + WC_VERSION) >> 2] = version + 2 & 0xFFFFFFFF
        memory.mark(base >> 12)

    def schedule_in(self, vcpu: VCpu, now: int) -> None:
        """Do what comes due when a vCPU gets a processor: fresh time stamps, the periodic tick."""
        if now >= vcpu.next_time_update:
            self.update_time(vcpu, now)
        period = vcpu.periodic_ns
        if period:
            self._periodic_tick(vcpu, now, period)
        vcpu.next_service = 0 if period else vcpu.next_time_update

    def update_time(self, vcpu: VCpu, now: int) -> None:
        """Rewrite vcpu_time_info for the present calibration period; an odd version says that it is in flux."""
        stamp = now - now % CALIBRATION_NS
        vcpu.next_time_update = stamp + CALIBRATION_NS
        memory = self.hv.memory
        info = vcpu.info
        version = memory.i[(info + VERSION) >> 2]
        memory.i[(info + VERSION) >> 2] = version + 1 & 0xFFFFFFFF
        memory.q[(info + TSC_TIMESTAMP) >> 3] = stamp
        memory.q[(info + SYSTEM_TIME) >> 3] = stamp
        memory.i[(info + MUL) >> 2] = TSC_TO_SYSTEM_MUL
        memory.b[info + SHIFT] = TSC_SHIFT
        memory.b[info + FLAGS] = XEN_PVCLOCK_TSC_STABLE_BIT
        memory.i[(info + VERSION) >> 2] = version + 2 & 0xFFFFFFFF
        memory.mark(info >> 12)

    # -- timers ---------------------------------------------------------------------------------------------------

    def _periodic_tick(self, vcpu: VCpu, now: int, period: int) -> None:
        """Raise the tick that came due while the vCPU did not run; arm the next for as long as it runs."""
        if now - vcpu.last_periodic >= period:
            vcpu.last_periodic = now - (now - vcpu.last_periodic) % period
            self.hv.events.send_virq(vcpu, xen.VIRQ_TIMER)
        if vcpu.periodic_timer is None or not vcpu.periodic_timer.armed:
            vcpu.periodic_timer = self.hv.timers.add(vcpu.last_periodic + period, lambda: self._periodic_expired(vcpu))

    def _periodic_expired(self, vcpu: VCpu) -> None:
        # A tick never wakes a vCPU: the next one is armed when it gets a processor again.
        vcpu.periodic_timer = None
        if vcpu.periodic_ns and not vcpu.pause_flags and not vcpu.queued:
            self._periodic_tick(vcpu, self.hv.clock.now, vcpu.periodic_ns)

    def set_periodic(self, vcpu: VCpu, period_ns: int) -> None:
        """Set the period of VIRQ_TIMER; 0 stops it."""
        if vcpu.periodic_timer is not None:
            vcpu.periodic_timer.cancel()
            vcpu.periodic_timer = None
        vcpu.periodic_ns = period_ns
        vcpu.next_service = 0
        vcpu.last_periodic = self.hv.now()
        if period_ns:
            self._periodic_tick(vcpu, vcpu.last_periodic, period_ns)

    def set_singleshot(self, vcpu: VCpu, deadline: int) -> None:
        """Raise VIRQ_TIMER at `deadline`, or at once if that has passed."""
        self.stop_singleshot(vcpu)
        if deadline <= self.hv.now():
            self.hv.events.send_virq(vcpu, xen.VIRQ_TIMER)
        else:
            vcpu.singleshot_timer = self.hv.timers.add(deadline, lambda: self._singleshot_expired(vcpu))

    def stop_singleshot(self, vcpu: VCpu) -> None:
        """Disarm the one-shot timer."""
        if vcpu.singleshot_timer is not None:
            vcpu.singleshot_timer.cancel()
            vcpu.singleshot_timer = None

    def _singleshot_expired(self, vcpu: VCpu) -> None:
        vcpu.singleshot_timer = None
        self.hv.events.send_virq(vcpu, xen.VIRQ_TIMER)

    def _set_timer_op(self, vcpu: VCpu, timeout: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
        """set_timer_op: 0 cancels; a deadline that cannot be meant is met after 100 ms."""
        if timeout == 0:
            self.stop_singleshot(vcpu)
            return 0
        now = self.hv.now()
        if timeout >> 63 or timeout - now > FAR_FUTURE_NS:
            timeout = now + RETRY_NS
        self.set_singleshot(vcpu, timeout)
        return 0

    # -- polling --------------------------------------------------------------------------------------------------

    def start_poll(self, vcpu: VCpu, ports: tuple[int, ...], deadline: int) -> int:
        """Put a vCPU to sleep until one of the ports is pending, or until `deadline` (0 = for ever)."""
        vcpu.poll_ports = ports
        vcpu.domain.pollers += 1
        vcpu.pause_flags |= VPF_BLOCKED | VPF_POLLING
        if deadline:
            vcpu.poll_timer = self.hv.timers.add(deadline, lambda: self.hv.sched.wake(vcpu))
        return 0

    def stop(self, vcpu: VCpu) -> None:
        """Disarm every timer of a vCPU that goes away."""
        self.stop_singleshot(vcpu)
        vcpu.periodic_ns = 0
        if vcpu.periodic_timer is not None:
            vcpu.periodic_timer.cancel()
            vcpu.periodic_timer = None
        if vcpu.poll_timer is not None:
            vcpu.poll_timer.cancel()
            vcpu.poll_timer = None


def unknown_op(_vcpu: VCpu, _a1: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
    """Answer a hypercall that this Xen does not have."""
    return -errno.ENOSYS
