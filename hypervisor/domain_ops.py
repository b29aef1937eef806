"""The life of a domain: creation, pausing, shutdown, crash, destruction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hypervisor.abi import errno, sched, xen
from hypervisor.abi.tracepoints import DOMAIN_CRASH, DOMAIN_CREATE, DOMAIN_DESTROY, DOMAIN_SHUTDOWN
from hypervisor.crash_dump import show_crash
from hypervisor.domain import DYING_DEAD, DYING_DYING, DYING_NO, NO_SHUTDOWN, Domain
from hypervisor.errors import HypercallError
from hypervisor.machine.firmware import io_frames
from hypervisor.machine.ports import NR_PORTS
from hypervisor.preempt import Restart
from hypervisor.vcpu import VPF_DOWN, VPF_PAUSED, VCpu

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor

INFO_SIZE = xen.vcpu_info.size
BREAKPOINT = 3
"""The vector of `int3`."""
INT_MAX = 0x7FFF_FFFF
"""As many event channels as the ABI has room for: what dom0 may have."""
UPCALL_MASK = xen.vcpu_info.offset("evtchn_upcall_mask")


class DomainOps:
    """Makes and unmakes domains. Callers have checked privilege."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self._next_domid = 1
        self._dummy_frame = 0

    # -- creation -------------------------------------------------------------------------------------------------

    def create(
        self,
        domid: int,
        *,
        max_vcpus: int,
        is_privileged: bool = False,
        max_evtchn_port: int = INT_MAX,
        max_grant_frames: int = -1,
        max_maptrack_frames: int = -1,
        max_grant_version: int = 2,
        handle: bytes = bytes(16),
    ) -> Domain:
        """Make a domain with no memory and no vCPUs, paused once, as XEN_DOMCTL_createdomain leaves it.

        Raises HypercallError: EEXIST, ENOMEM, EINVAL for limits of grants that cannot be; then nothing is left behind.
        """
        hv = self.hv
        if domid in hv.domains:
            raise HypercallError(errno.EEXIST)
        domain = Domain(hv, domid, max_vcpus=max_vcpus, is_privileged=is_privileged)
        domain.max_evtchn_port = max_evtchn_port
        domain.handle = handle
        domain.pause_count = 1
        hv.mm.init_domain(domain)
        try:
            hv.grants.init_domain(domain, max_grant_frames, max_maptrack_frames, max_grant_version)
        except HypercallError:
            hv.mm.free_domain(domain)
            raise
        hv.events.init_domain(domain)
        if is_privileged:
            domain.ioports = [range(NR_PORTS)]
            domain.iomem = io_frames()
        self._init_shared_info(domain)
        hv.domains[domid] = domain
        if hv.trace is not None:
            hv.trace(domid, 0, DOMAIN_CREATE, max_vcpus)
        return domain

    def free_domid(self) -> int:
        """Return the next unused domain number, counting upwards and wrapping before the reserved ones."""
        first = self._next_domid
        while True:
            domid = self._next_domid
            self._next_domid = domid + 1 if domid + 1 < xen.DOMID_FIRST_RESERVED else 1
            if domid not in self.hv.domains:
                return domid
            if self._next_domid == first:
                raise HypercallError(errno.ENOMEM)

    def _init_shared_info(self, domain: Domain) -> None:
        """Upcalls start out masked on every vCPU. (The wall clock is set when vCPU 0 gets its registers.)"""
        memory = self.hv.memory
        base = domain.shared_info_mfn << 12
        for vcpu_id in range(xen.XEN_LEGACY_MAX_VCPUS):
            memory.b[base + vcpu_id * INFO_SIZE + UPCALL_MASK] = 1
        memory.mark(domain.shared_info_mfn)

    def add_vcpu(self, domain: Domain, vcpu_id: int) -> VCpu:
        """Make one vCPU, down. Raises HypercallError(ENOMEM)."""
        self.hv.mm.init_vcpu(domain.domid, vcpu_id)
        vcpu = self.hv.make_vcpu(domain, vcpu_id)
        if vcpu_id < xen.XEN_LEGACY_MAX_VCPUS:
            vcpu.place_info((domain.shared_info_mfn << 12) + vcpu_id * INFO_SIZE)
        else:
            vcpu.place_info(self._dummy_info())
        domain.vcpus[vcpu_id] = vcpu
        if domain.pause_count:
            vcpu.pause_flags |= VPF_PAUSED
        if vcpu_id == 0:
            self.hv.events.init_ports(domain)
        return vcpu

    def _dummy_info(self) -> int:
        """Return where events of a vCPU go that has no vcpu_info yet, as those from number 32 on (dummy_vcpu_info)."""
        if not self._dummy_frame:
            mfn = self.hv.frames.alloc_xen()
            if mfn < 0:
                raise HypercallError(errno.ENOMEM)
            self._dummy_frame = mfn
            self.hv.memory.b[(mfn << 12) + UPCALL_MASK] = 1
        return self._dummy_frame << 12

    @property
    def frames_for_good(self) -> int:
        """How many frames Xen has taken for itself since it started: they are not given back."""
        return int(self._dummy_frame != 0) + self.hv.processor_frames

    def has_dummy_info(self, vcpu: VCpu) -> bool:
        """Whether a vCPU still lacks a vcpu_info, so that it cannot be started."""
        return vcpu.info >> 12 == self._dummy_frame

    # -- pausing --------------------------------------------------------------------------------------------------

    def pause(self, domain: Domain) -> None:
        """Keep all vCPUs of a domain from running (counted)."""
        domain.pause_count += 1
        self.refresh_pause(domain)

    def unpause(self, domain: Domain) -> None:
        """Undo one `pause`."""
        domain.pause_count -= 1
        if not domain.pause_count:
            domain.creation_finished = True
        self.refresh_pause(domain)

    def pause_for_debugger(self, vcpu: VCpu, vector: int) -> bool:
        """Pause a domain whose kernel has run into a breakpoint, if a debugger is attached; False if none is.

        That it was `int3` is kept for the debugger to ask; of others VIRQ_DEBUGGER tells.
        """
        domain = vcpu.domain
        if not (domain.debugger_attached and vcpu.context.in_kernel):
            return False
        if vector == BREAKPOINT:
            vcpu.debug_event = vector
        self.pause(domain)
        if not vcpu.debug_event:
            self.hv.events.send_global_virq(xen.VIRQ_DEBUGGER)
        return True

    def refresh_pause(self, domain: Domain) -> None:
        """Make the vCPUs' flags say what the pause counts say."""
        for vcpu in domain.online_vcpus():
            if domain.pause_count or vcpu.pause_count or domain.shutting_down or domain.is_dying:
                self.hv.sched.stop(vcpu, VPF_PAUSED)
            else:
                self.hv.sched.unpause(vcpu, VPF_PAUSED)

    # -- the end --------------------------------------------------------------------------------------------------

    def shutdown(self, domain: Domain, reason: int) -> None:
        """Stop a domain for good (domain_shutdown): the first reason, or the one a guest announced, sticks."""
        hv = self.hv
        if domain.shutdown_code == NO_SHUTDOWN:
            domain.shutdown_code = reason & 0xFF
        if domain.shutting_down:
            return
        domain.shutting_down = True
        self.refresh_pause(domain)
        if hv.trace is not None:
            hv.trace(domain.domid, 0, DOMAIN_SHUTDOWN, domain.shutdown_code)
        if domain.domid == 0:
            self._say_how_dom0_ended(domain.shutdown_code)
            hv.stop()
            hv.shutdown_reason = domain.shutdown_code
            return
        if domain.shutdown_code == sched.SHUTDOWN_suspend and domain.suspend_evtchn:
            hv.events.notify(domain, domain.suspend_evtchn)
        else:
            hv.events.send_global_virq(xen.VIRQ_DOM_EXC)

    def _say_how_dom0_ended(self, reason: int) -> None:
        """Print what Xen prints when the hardware domain is gone (hwdom_shutdown)."""
        log, restart = self.hv.log, "rebooting machine in 5 seconds."
        if self.hv.options.noreboot:
            restart = "'noreboot' set - not rebooting."
        if reason == sched.SHUTDOWN_poweroff:
            log("Hardware Dom0 halted: halting machine")
        elif reason == sched.SHUTDOWN_reboot:
            log("Hardware Dom0 shutdown: rebooting machine")
        elif reason == sched.SHUTDOWN_watchdog:
            log("Hardware Dom0 shutdown: watchdog rebooting machine")
        elif reason == sched.SHUTDOWN_soft_reset:
            log("Hardware domain 0 did unsupported soft reset, rebooting.")
        elif reason == sched.SHUTDOWN_crash:
            log(f"Hardware Dom0 crashed: {restart}")
        else:
            log(f"Hardware Dom0 shutdown (unknown reason {reason}): {restart}")

    def crash(self, domain: Domain, why: str) -> None:
        """End a domain that did what no domain survives; `why` goes to the host's console and the trace."""
        hv = self.hv
        if hv.trace is not None:
            hv.trace(domain.domid, 0, DOMAIN_CRASH, why)
        hv.log(f"domain_crash called for d{domain.domid}: {why}")
        if not domain.shutting_down:
            domain.crash_reason = why
            show_crash(hv, domain)
        self.shutdown(domain, sched.SHUTDOWN_crash)

    def kill(self, domain: Domain) -> None:
        """Destroy a domain (XEN_DOMCTL_destroydomain): release all it holds; what others still map lives on.

        Raises Restart to make room for others: the next call goes on where this one stopped.
        """
        hv = self.hv
        if domain.is_dying == DYING_NO:
            domain.is_dying = DYING_DYING
            self._stop(domain)
            domain.teardown = self._release(domain)
        if domain.teardown is not None:
            frames = hv.frames
            frames.start_batch()
            try:
                for interrupted in domain.teardown:
                    if interrupted or hv.preempt.check():
                        raise Restart
            finally:
                frames.end_batch()
            domain.teardown = None
            domain.is_dying = DYING_DEAD
            if hv.trace is not None:
                hv.trace(domain.domid, 0, DOMAIN_DESTROY)
            hv.events.send_global_virq(xen.VIRQ_DOM_EXC)
        self.reap(domain)

    def _stop(self, domain: Domain) -> None:
        """Take a domain's vCPUs and devices out of action: nothing of it acts by itself any more."""
        hv = self.hv
        self.refresh_pause(domain)
        for vcpu in domain.online_vcpus():
            hv.time.stop(vcpu)
            hv.sched.forget(vcpu)
            hv.sched.remove(vcpu)
            vcpu.pause_flags |= VPF_DOWN
            vcpu.halt()
        image, domain.image = domain.image, None
        if image is not None:
            image.unload()
        for index, watchdog in enumerate(domain.watchdogs):
            if watchdog is not None:
                watchdog.cancel()
                domain.watchdogs[index] = None
        for line in domain.irqs:
            hv.iommu.release(line, domain)

    def _release(self, domain: Domain) -> Iterator[bool]:
        """Release what a dying domain holds, a step at a time: True if something was interrupted inside that step.

        Any part may be done at once, or be an iterator over steps of its own.
        """
        hv = self.hv
        parts: tuple[Callable[[Domain], Iterator[bool] | None], ...] = (
            hv.events.destroy_domain,
            hv.grants.destroy_domain,
            hv.mm.relinquish,
        )
        for part in parts:
            steps = part(domain)
            if steps is not None:
                yield from steps
            yield False

    def reap(self, domain: Domain) -> None:
        """Forget a dead domain once nobody maps a page of it any more."""
        hv = self.hv
        if domain.is_dying == DYING_DEAD and not hv.mm.holds_pages(domain):
            # First of all nobody finds it any more: freeing its last frames would call this again.
            del hv.domains[domain.domid]
            hv.sched.retired += sum(vcpu.time_running for vcpu in domain.online_vcpus())
            hv.grants.free_domain(domain)
            hv.mm.free_domain(domain)
            domain.text.clear()
            domain.image = None
