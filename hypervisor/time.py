"""Guest time: vcpu_time_info, wall clock, VIRQ_TIMER (xen.h, vcpu.h; HYPERVISOR_set_timer_op).

The simulated TSC ticks once a nanosecond and never stops, so system time is `tsc` itself; guests still read it through
tsc_timestamp, the multiplier and the shift, as they must on any Xen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.abi import vcpu as vcpu_abi
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_to_guest
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
"""set_timer_op with a deadline 2^50 ns away or more (or a negative one) fires after this long instead."""

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
        # Xen says so only if it was told to keep its own time by the TSC.
        self._flags = XEN_PVCLOCK_TSC_STABLE_BIT if hv.options.clocksource == "tsc" else 0
        self.wallclock = hv.clock.wallclock_base
        """Nanoseconds since 1970 at power-on, as domains are told: dom0 may set it (XENPF_settime)."""
        self.hypercalls: dict[int, Callable[[VCpu, int, int, int, int, int], int]] = {HYPERCALL: self._set_timer_op}

    # -- time stamps ----------------------------------------------------------------------------------------------

    def update_wallclock(self, domain: Domain) -> None:
        """Write the wall-clock time at power-on into shared_info (update_domain_wallclock_time)."""
        memory = self.hv.memory
        base = domain.shared_info_mfn << 12
        nanoseconds = self.wallclock + domain.time_offset * 1_000_000_000
        seconds, rest = divmod(nanoseconds, 1_000_000_000)
        version = memory.i[(base + WC_VERSION) >> 2]
        memory.i[(base + WC_VERSION) >> 2] = version + 1 & 0xFFFFFFFF
        memory.i[(base + WC_SEC) >> 2] = seconds & 0xFFFFFFFF
        memory.i[(base + WC_NSEC) >> 2] = rest
        # (The offset is any 64-bit number: the sum wraps as in Xen.)
        memory.i[(base + WC_SEC_HI) >> 2] = seconds >> 32 & 0xFFFFFFFF
        memory.i[(base + WC_VERSION) >> 2] = version + 2 & 0xFFFFFFFF
        memory.mark(base >> 12)

    def schedule_in(self, vcpu: VCpu, now: int) -> None:
        """Do what comes due when a vCPU gets a processor: fresh time stamps, the periodic tick."""
        if now >= vcpu.next_time_update:
            self.update_time(vcpu, now)
        period = vcpu.periodic_ns
        if period:
            self._periodic_tick(vcpu, now, period)
        if vcpu.runstate_area:
            self._store_runstate(vcpu, runstate_fields(vcpu, vcpu_abi.RUNSTATE_running, now))
        vcpu.next_service = 0 if period or vcpu.runstate_area else vcpu.next_time_update

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
        memory.b[info + FLAGS] = self._flags
        memory.i[(info + VERSION) >> 2] = version + 2 & 0xFFFFFFFF
        memory.mark(info >> 12)
        if vcpu.time_area:
            self._copy_time(vcpu)

    def _copy_time(self, vcpu: VCpu) -> None:
        """Bring the second copy of vcpu_time_info up to date (update_secondary_system_time)."""
        start = vcpu.info + TIME
        fields = bytes(self.hv.memory.b[start : start + xen.vcpu_time_info.size])
        # A reader on another vCPU finds an odd version as long as the fields are in flux.
        in_flux = bytes([fields[0] | 1]) + fields[1:]
        for data in (in_flux, fields):
            if not _try_copy(vcpu, vcpu.time_area, data):
                vcpu.next_service = vcpu.quick_until = 0
                return

    # -- runstates ------------------------------------------------------------------------------------------------

    def runstate(self, vcpu: VCpu) -> bytes:
        """Return a vcpu_runstate_info of the present moment; its times add up to the vCPU's age."""
        hv = self.hv
        now = max(hv.now(), vcpu.since)
        if hv.sched.is_on_cpu(vcpu):
            state = vcpu_abi.RUNSTATE_running
        elif vcpu.pause_flags & VPF_BLOCKED:
            state = vcpu_abi.RUNSTATE_blocked
        else:
            state = vcpu_abi.RUNSTATE_runnable if vcpu.queued else vcpu_abi.RUNSTATE_offline
        return runstate_fields(vcpu, state, now)

    def set_runstate_area(self, vcpu: VCpu, area: int, caller: VCpu) -> None:
        """Keep the runstate of `vcpu` at a guest virtual address from now on, 0 to stop."""
        vcpu.runstate_area = area
        if not area:
            self.hv.sched.runstate_areas.pop(vcpu, None)
            return
        vcpu.next_service = vcpu.quick_until = 0
        self.hv.sched.runstate_areas[vcpu] = self.switched_out
        # Of the caller itself as it was when it got its processor, as Xen does.
        running = runstate_fields(vcpu, vcpu_abi.RUNSTATE_running, vcpu.since)
        _try_copy(caller, area, running if vcpu is caller else self.runstate(vcpu))

    def switched_out(self, vcpu: VCpu, now: int) -> None:
        """Say in the guest's area that a vCPU does not run any more."""
        if vcpu.pause_flags & VPF_BLOCKED:
            state = vcpu_abi.RUNSTATE_blocked
        else:
            state = vcpu_abi.RUNSTATE_offline if vcpu.pause_flags else vcpu_abi.RUNSTATE_runnable
        self._store_runstate(vcpu, runstate_fields(vcpu, state, now))

    def _store_runstate(self, vcpu: VCpu, info: bytes) -> None:
        """Write a runstate to where the guest wants it; skip it while that place is not mapped, as Xen does."""
        area = vcpu.runstate_area
        if not vcpu.domain.vm_assist >> xen.VMASST_TYPE_runstate_update_flag & 1:
            _try_copy(vcpu, area, info)
            return
        # With this assist the guest sees by the top bit of state_entry_time that an update is in progress.
        at = vcpu_abi.vcpu_runstate_info.offset("state_entry_time")
        stamp = int.from_bytes(info[at : at + 8], "little")
        in_flux = (stamp | vcpu_abi.XEN_RUNSTATE_UPDATE).to_bytes(8, "little")
        if _try_copy(vcpu, area + at, in_flux) and _try_copy(vcpu, area, info[:at] + in_flux + info[at + 8 :]):
            _try_copy(vcpu, area + at, info[at : at + 8])

    # -- timers ---------------------------------------------------------------------------------------------------

    def _periodic_tick(self, vcpu: VCpu, now: int, period: int) -> None:
        """Raise the tick that came due while the vCPU did not run; arm the next for as long as it runs."""
        if now - vcpu.last_periodic >= period:
            # From now on, not from when it was due: as Xen does, so ticks slip rather than come in bursts.
            vcpu.last_periodic = now
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
        vcpu.next_service = vcpu.quick_until = 0
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
        if timeout >> 63 or timeout - now >= FAR_FUTURE_NS:
            timeout = now + RETRY_NS
        self.set_singleshot(vcpu, timeout)
        return 0

    # -- polling --------------------------------------------------------------------------------------------------

    def start_poll(self, vcpu: VCpu, ports: tuple[int, ...], deadline: int) -> None:
        """Put a vCPU to sleep until one of the ports is pending, or until `deadline` (0 = for ever).

        A guest that polls again before it has left the processor sleeps by its latest words.
        """
        self.hv.sched.end_poll(vcpu)
        vcpu.poll_ports = ports
        vcpu.domain.pollers += 1
        self.hv.sched.pollers.add(vcpu)
        vcpu.pause_flags |= VPF_BLOCKED | VPF_POLLING
        if deadline:
            vcpu.poll_timer = self.hv.timers.add(deadline, lambda: self.hv.sched.wake(vcpu))

    def stop(self, vcpu: VCpu) -> None:
        """Disarm every timer of a vCPU that goes away."""
        self.stop_singleshot(vcpu)
        self.hv.sched.runstate_areas.pop(vcpu, None)
        vcpu.runstate_area = vcpu.time_area = 0
        vcpu.periodic_ns = 0
        if vcpu.periodic_timer is not None:
            vcpu.periodic_timer.cancel()
            vcpu.periodic_timer = None
        if vcpu.poll_timer is not None:
            vcpu.poll_timer.cancel()
            vcpu.poll_timer = None


_RUNSTATE = vcpu_abi.vcpu_runstate_info.codec


def runstate_fields(vcpu: VCpu, state: int, now: int) -> bytes:
    """Return a vcpu_runstate_info for a vCPU that is in `state` at `now`.

    The vCPU keeps how long it has run, waited for a processor and been offline; the rest of its age it was blocked.
    """
    since = vcpu.ready_at if state == vcpu_abi.RUNSTATE_runnable else vcpu.since
    since = min(since, now)
    known = vcpu.time_running + vcpu.time_runnable + vcpu.time_offline
    times = [vcpu.time_running, vcpu.time_runnable, max(since - vcpu.created - known, 0), vcpu.time_offline]
    times[state] += now - since
    return _RUNSTATE.pack(state, since, *times)


def _try_copy(vcpu: VCpu, va: int, data: bytes) -> bool:
    """Write into an area that the guest has registered; False if it is not mapped now."""
    try:
        copy_to_guest(vcpu, va, data)
    except HypercallError:
        return False
    return True


def unknown_op(_vcpu: VCpu, _a1: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
    """Answer a hypercall that this Xen does not have."""
    return -errno.ENOSYS
