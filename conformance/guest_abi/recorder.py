"""What a guest asks of Xen, taken down as it happens, with what its memory says at that moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final, final

import attrs

from hypervisor.abi import tracepoints, xen
from hypervisor.abi.event_channel import EVTCHNOP_send
from hypervisor.abi.io.console import xencons_interface
from hypervisor.errors import HypercallError
from hypervisor.guest_access import read_u32
from hypervisor.hypervisor import Hypervisor
from hypervisor.vcpu import VCpu

OUT_SIZE: Final = 2048
U32: Final = 0xFFFF_FFFF
MAX_ERRNO: Final = 4095
MASK_AT: Final = xen.vcpu_info.offset("evtchn_upcall_mask")
_OUT_CONS, _OUT_PROD = (xencons_interface.offset(name) >> 2 for name in ("out_cons", "out_prod"))


@attrs.frozen
class Readiness:
    """What a vCPU had told Xen when it first let events in."""

    event_callback: bool
    failsafe_callback: bool
    traps: frozenset[int]
    """Vectors with a handler."""
    shared_info: bool
    """The frame of shared_info was mapped."""


@final
class Recorder:
    """Looks at one domain. `domid` is 0 until it is known."""

    def __init__(self) -> None:
        self.hv: Hypervisor | None = None
        self.domid = 0
        self.unmapped_count = 0
        """References to the frame of shared_info when nobody has mapped it yet."""
        self.calls = 0
        """How many hypercalls it has made."""
        self.refused: Counter[tuple[int, int]] = Counter()
        """How often Xen has answered with an errno, by the hypercall's number and the (negative) errno."""
        self.notified: set[int] = set()
        """The ports at which it has notified somebody."""
        self.upcalls = 0
        self.faults: list[str] = []
        self.crash = ""
        self.shutdown: int | None = None
        """The reason that it gave itself."""
        self.at_first: Readiness | None = None
        """Of the boot vCPU; None as long as it has let no event in."""
        self.console_mfn = self.console_port = 0
        self.console_troubles: list[str] = []
        self.said = 0
        """Bytes that it has printed."""
        self.at_first_call: Callable[[], None] = lambda: None
        """Called when it makes its first hypercall."""
        self.at_end: Callable[[], None] = lambda: None
        """Called in the moment in which it shuts down."""
        self._was_masked = False

    def observe(self, domid: int, vcpu_id: int, kind: int, *fields: Any) -> None:
        """Take a record."""
        if domid != self.domid or not domid:
            return
        take = _TAKE.get(kind)
        if take is not None:
            take(self, vcpu_id, fields)
        if kind == tracepoints.HYPERCALL and self.hv is not None:
            domain = self.hv.domains.get(domid)
            vcpu = None if domain is None else domain.vcpus[vcpu_id]
            if vcpu is not None:
                self._look(vcpu)

    def _look(self, vcpu: VCpu) -> None:
        """See what the guest's memory says now."""
        assert self.hv is not None
        if vcpu.vcpu_id == 0 and self.at_first is None and vcpu.info:
            masked = bool(self.hv.memory.b[vcpu.info + MASK_AT])
            if self._was_masked and not masked:
                context = vcpu.context
                mapped = self.hv.frames.count[vcpu.domain.shared_info_mfn] > self.unmapped_count
                self.at_first = Readiness(
                    bool(context.event_callback), bool(context.failsafe_callback), frozenset(context.trap_table), mapped
                )
            self._was_masked = masked
        if self.console_mfn:
            self._look_at_console()

    def _look_at_console(self) -> None:
        assert self.hv is not None
        base = self.console_mfn << 10
        consumed, produced = self.hv.memory.i[base + _OUT_CONS], self.hv.memory.i[base + _OUT_PROD]
        if (produced - consumed) & U32 > OUT_SIZE and len(self.console_troubles) < 10:
            self.console_troubles.append(f"out_prod is {produced:#x} and out_cons {consumed:#x}")
        self.said = max(self.said, produced)

    def _take_call(self, vcpu_id: int, fields: tuple[Any, ...]) -> None:
        if not self.calls:
            self.at_first_call()
        self.calls += 1
        nr, command, rc = fields[0], fields[1], fields[6]
        # (What iret leaves in rax is what was there before an interrupt, and no answer.)
        if -MAX_ERRNO <= rc < 0 and nr != xen.HYPERVISOR_iret:
            self.refused[nr, rc] += 1
        if nr == xen.HYPERVISOR_event_channel_op and command == EVTCHNOP_send:
            self._take_send(vcpu_id, fields[2])

    def _take_send(self, vcpu_id: int, argument: int) -> None:
        assert self.hv is not None
        vcpu = self.hv.domains[self.domid].vcpus[vcpu_id]
        assert vcpu is not None
        try:
            self.notified.add(read_u32(vcpu, argument))
        except HypercallError:
            # An address that Xen could not read either.
            return

    def _take_upcall(self, vcpu_id: int, fields: tuple[Any, ...]) -> None:
        self.upcalls += 1

    def _take_shutdown(self, vcpu_id: int, fields: tuple[Any, ...]) -> None:
        self.shutdown = fields[0]
        self.at_end()

    def _take_crash(self, vcpu_id: int, fields: tuple[Any, ...]) -> None:
        self.crash = str(fields[0])

    def _take_fault(self, vcpu_id: int, fields: tuple[Any, ...]) -> None:
        self.faults.append(" ".join(map(str, fields)))


_TAKE: Final = {
    tracepoints.HYPERCALL: Recorder._take_call,
    tracepoints.UPCALL: Recorder._take_upcall,
    tracepoints.DOMAIN_SHUTDOWN: Recorder._take_shutdown,
    tracepoints.DOMAIN_CRASH: Recorder._take_crash,
    tracepoints.FAULT: Recorder._take_fault,
}
