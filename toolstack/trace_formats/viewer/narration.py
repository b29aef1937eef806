"""What a record means, in a sentence, and where that is laid down.

    narrator = Narrator()
    sentence, source = narrator.tell(record)

Sources are Xen's public headers (`xen/include/public/…`, by their names) and the documents of its tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from hypervisor.abi import (
    errno,
    grant_table,
    sched,
    xen,
)
from hypervisor.abi import tracepoints as tp
from hypervisor.abi.io import xenbus, xs_wire
from toolstack.trace_formats.text import COMMANDS, describe
from toolstack.trace_formats.viewer.operations import OPERATIONS, UNKNOWN

_U32: Final = 0xFFFFFFFF

Told = tuple[str, str]
"""A sentence and its source."""


class Narrator:
    """Tells the records of one trace. It learns the names of domains from xenstore, where a trace shows it."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {0: "dom0"}

    def tell(self, record: Sequence[Any]) -> Told:
        """Return what one record means, and where it is laid down."""
        _, domid, vcpu_id, kind, *fields = record
        if kind == tp.STATE_NODE:
            self._learn(*fields)
        teller = _TELLERS.get(kind)
        if teller is None:
            name, _ = tp.KINDS.get(kind, (f"kind-{kind}", ()))
            return f"{self._name(domid)}: {name} {describe(kind, fields)}.", "docs/trace.md"
        return teller(self, domid, vcpu_id, *fields)

    def _learn(self, path: Any, value: Any, _permissions: Any) -> None:
        parts = _text(path).split("/")
        if len(parts) == 5 and parts[1:3] == ["local", "domain"] and parts[4] == "name" and value is not None:
            self._names[int(parts[3])] = _text(value)

    def _name(self, domid: int) -> str:
        known = self._names.get(domid)
        return f"domain {domid}" if known is None else known if domid == 0 else f"{known} (d{domid})"

    # -- hypercalls -----------------------------------------------------------------------------------------------

    def _hypercall(self, domid: int, _vcpu: int, nr: int, *rest: int) -> Told:
        *arguments, rc = rest
        name = xen.HYPERCALL_NAMES.get(nr, f"hypercall-{nr}")
        command = COMMANDS.get(nr, {}).get(arguments[0] & _U32, name) if arguments else name
        what, source = OPERATIONS.get(command) or OPERATIONS.get(name, UNKNOWN)
        end = f" Xen refuses: -{errno.name(-rc)}." if rc < 0 else ""
        return f"{self._name(domid)} {what.format(*arguments)}.{end}", source

    # -- events ---------------------------------------------------------------------------------------------------

    def _pending(self, domid: int, vcpu_id: int, port: int) -> Told:
        return (
            f"Xen sets the pending bit of port {port} of {self._name(domid)}. Unless the port is masked, vCPU "
            f"{vcpu_id} is to be told by an upcall.",
            "event_channel.h; xen.h, struct shared_info",
        )

    def _upcall(self, domid: int, vcpu_id: int, ready: int) -> Told:
        return (
            f"vCPU {vcpu_id} of {self._name(domid)} enters its event callback (selector {ready:#x}) and looks "
            "which ports are pending.",
            "xen.h, struct vcpu_info (evtchn_upcall_pending, evtchn_pending_sel)",
        )

    def _timer(self, domid: int, vcpu_id: int, virq: int) -> Told:
        return (
            f"{xen.VIRQ_NAMES.get(virq, virq)} is raised for vCPU {vcpu_id} of {self._name(domid)}.",
            "xen.h, Virtual interrupts",
        )

    def _irq(self, domid: int, _vcpu: int, line: int, port: int) -> Told:
        return (
            f"A device raises interrupt line {line}; {self._name(domid)} hears of it through port {port}, as a PIRQ.",
            "physdev.h; event_channel.h, EVTCHNOP_bind_pirq",
        )

    # -- processors -----------------------------------------------------------------------------------------------

    def _schedule(self, domid: int, vcpu_id: int, pcpu: int) -> Told:
        return f"pCPU {pcpu} begins to run vCPU {vcpu_id} of {self._name(domid)}.", "vcpu.h, RUNSTATE_running"

    def _deschedule(self, domid: int, vcpu_id: int, pcpu: int, ran_ns: int, flags: int) -> Told:
        why = "it is blocked" if flags & 1 else "it may not run" if flags else "its turn is over"
        return (
            f"pCPU {pcpu} stops running vCPU {vcpu_id} of {self._name(domid)} after {ran_ns / 1000:.3f} µs: {why}.",
            "vcpu.h, RUNSTATE_runnable, RUNSTATE_blocked",
        )

    def _wake(self, domid: int, vcpu_id: int) -> Told:
        return (
            f"vCPU {vcpu_id} of {self._name(domid)} has something to do: it is runnable.",
            "vcpu.h, RUNSTATE_runnable",
        )

    # -- lives ----------------------------------------------------------------------------------------------------

    def _create(self, domid: int, _vcpu: int, max_vcpus: int) -> Told:
        return f"Domain {domid} comes into being, with {max_vcpus} vCPU at most.", "domctl.h, XEN_DOMCTL_createdomain"

    def _shutdown(self, domid: int, _vcpu: int, reason: int) -> Told:
        return f"{self._name(domid)} shuts down: {sched.SHUTDOWN_NAMES.get(reason, reason)}.", "sched.h, SHUTDOWN_*"

    def _crash(self, domid: int, _vcpu: int, why: str) -> Told:
        return f"{self._name(domid)} crashes: {_text(why)}.", "sched.h, SHUTDOWN_crash"

    def _destroy(self, domid: int, _vcpu: int) -> Told:
        return f"{self._name(domid)} is gone; its memory is free again.", "domctl.h, XEN_DOMCTL_destroydomain"

    def _up(self, domid: int, vcpu_id: int) -> Told:
        return f"vCPU {vcpu_id} of {self._name(domid)} comes up.", "vcpu.h, VCPUOP_up"

    def _down(self, domid: int, vcpu_id: int) -> Told:
        return f"vCPU {vcpu_id} of {self._name(domid)} goes down.", "vcpu.h, VCPUOP_down"

    # -- grants ---------------------------------------------------------------------------------------------------

    def _map(self, domid: int, _vcpu: int, granter: int, ref: int, flags: int, handle: int, status: int) -> Told:
        what = "read-only" if flags & grant_table.GNTMAP_readonly else "writable"
        result = (
            f"its handle is {handle}" if not status else f"Xen refuses: {grant_table.STATUS_NAMES.get(status, status)}"
        )
        return (
            f"{self._name(domid)} maps the page that {self._name(granter)} grants by reference {ref}, "
            f"{what}; {result}.",
            "grant_table.h, GNTTABOP_map_grant_ref",
        )

    def _unmap(self, domid: int, _vcpu: int, handle: int, status: int) -> Told:
        result = "" if not status else f" Xen refuses: {grant_table.STATUS_NAMES.get(status, status)}."
        return (
            f"{self._name(domid)} unmaps what its handle {handle} stands for.{result}",
            "grant_table.h, GNTTABOP_unmap_grant_ref",
        )

    def _copy(self, domid: int, _vcpu: int, source: int, dest: int, length: int, status: int) -> Told:
        result = "" if not status else f" Xen refuses: {grant_table.STATUS_NAMES.get(status, status)}."
        return (
            f"{self._name(domid)} has Xen copy {length} bytes from {source} to {dest} (references of grants, "
            f"or frames of its own).{result}",
            "grant_table.h, GNTTABOP_copy",
        )

    def _transfer(self, domid: int, _vcpu: int, to: int, ref: int, status: int) -> Told:
        result = "" if not status else f" Xen refuses: {grant_table.STATUS_NAMES.get(status, status)}."
        return (
            f"{self._name(domid)} gives a page away, to {self._name(to)}, which offers reference {ref} for it.{result}",
            "grant_table.h, GNTTABOP_transfer",
        )

    # -- drivers --------------------------------------------------------------------------------------------------

    def _push(self, domid: int, _vcpu: int, device: str, what: str, prod: int, notify: bool, cons: int = 0) -> Told:
        told = "the other end asked to be told, so it is notified" if notify else "the other end did not ask to be told"
        return (
            f"{self._name(domid)} shows what it has put into ring {what} of {device}: its producer index is {prod} "
            f"now; {told}. It has consumed up to {cons}.",
            "io/ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY",
        )

    def _connect(self, domid: int, _vcpu: int, device: str, ring: str, layout: str, front: int, refs: Any) -> Told:
        return (
            f"{self._name(domid)} has mapped ring {ring} of {device} ({layout}), which {self._name(front)} grants by "
            f"{', '.join(map(str, refs))}.",
            "io/blkif.h and io/netif.h, ring-ref; docs/misc/xenstore-ring.txt",
        )

    def _xenbus(self, domid: int, _vcpu: int, path: str, old: int, new: int) -> Told:
        before, after = (xenbus.NAMES.get(state, str(state)).removeprefix("XenbusState") for state in (old, new))
        return f"{self._name(domid)} takes {path} from {before} to {after}.", "io/xenbus.h, enum xenbus_state"

    def _store_op(self, _domid: int, _vcpu: int, connection: str, op: Any, path: str, result: str) -> Told:
        name = str(xs_wire.NAMES.get(op, op)).removeprefix("XS_")
        end = f" The answer is {result}." if result else ""
        return f"{connection} asks xenstored: {name} {path}.{end}", "docs/misc/xenstore.txt; io/xs_wire.h"

    def _store_event(self, _domid: int, _vcpu: int, connection: str, path: str, token: str) -> Told:
        return (
            f"xenstored tells {connection} that {path} has changed, by its watch with token {token}.",
            "docs/misc/xenstore.txt, WATCH",
        )

    def _console(self, _domid: int, _vcpu: int, domain: Any, data: Any) -> Told:
        text = _text(data)
        return f"xenconsoled takes what {_text(domain)} prints: {text!r}.", "io/console.h"

    def _block(self, domid: int, _vcpu: int, device: str, op: int, sector: int, sectors: int, status: int) -> Told:
        name = _BLOCK.get(op, f"operation {op}")
        result = "done" if not status else f"failed ({status})"
        return (
            f"{self._name(domid)}: {name} of {sectors} sectors from {sector} on {device} is {result}.",
            "io/blkif.h, struct blkif_response",
        )

    def _packet(self, domid: int, _vcpu: int, device: str, direction: str, size: int, slots: int) -> Told:
        what = "takes a frame from" if direction == "tx" else "gives a frame to"
        return f"{self._name(domid)} {what} {device}: {size} bytes in {slots} slots.", "io/netif.h"

    def _fault(self, domid: int, _vcpu: int, name: str, what: str) -> Told:
        return f"A fault strikes {self._name(domid)}: {_text(name)}. {_text(what)}", "docs/faults.md"

    def _note(self, domid: int, _vcpu: int, text: str) -> Told:
        return f"{self._name(domid)} notes: {_text(text)}", "docs/trace.md"

    def _thread(self, domid: int, vcpu: int, name: str) -> Told:
        return f"{self._name(domid)}'s kernel lets the thread {_text(name)} run on vCPU {vcpu}", "docs/guest-kernel.md"

    def _domain_name(self, _domid: int, _vcpu: int, domain: int, name: str) -> Told:
        told = f"dom0's toolstack calls domain {domain} {_text(name)}", "docs/toolstack.md"
        self._names[domain] = _text(name)
        return told


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


_BLOCK: Final = {0: "the read", 1: "the write", 2: "the write barrier", 3: "the flush", 5: "the discard"}

_TELLERS: Final[dict[int, Callable[..., Told]]] = {
    tp.HYPERCALL: Narrator._hypercall,
    tp.EVTCHN_PENDING: Narrator._pending,
    tp.UPCALL: Narrator._upcall,
    tp.SCHEDULE: Narrator._schedule,
    tp.DESCHEDULE: Narrator._deschedule,
    tp.WAKE: Narrator._wake,
    tp.TIMER: Narrator._timer,
    tp.IRQ: Narrator._irq,
    tp.DOMAIN_CREATE: Narrator._create,
    tp.DOMAIN_SHUTDOWN: Narrator._shutdown,
    tp.DOMAIN_CRASH: Narrator._crash,
    tp.DOMAIN_DESTROY: Narrator._destroy,
    tp.VCPU_UP: Narrator._up,
    tp.VCPU_DOWN: Narrator._down,
    tp.FAULT: Narrator._fault,
    tp.GNTTAB_MAP: Narrator._map,
    tp.GNTTAB_UNMAP: Narrator._unmap,
    tp.GNTTAB_COPY: Narrator._copy,
    tp.GNTTAB_TRANSFER: Narrator._transfer,
    tp.RING_PUSH: Narrator._push,
    tp.RING_CONNECT: Narrator._connect,
    tp.XENBUS_STATE: Narrator._xenbus,
    tp.XENSTORE_OP: Narrator._store_op,
    tp.XENSTORE_EVENT: Narrator._store_event,
    tp.CONSOLE: Narrator._console,
    tp.BLOCK_REQUEST: Narrator._block,
    tp.NET_PACKET: Narrator._packet,
    tp.GUEST_NOTE: Narrator._note,
    tp.THREAD: Narrator._thread,
    tp.DOMAIN_NAME: Narrator._domain_name,
}
