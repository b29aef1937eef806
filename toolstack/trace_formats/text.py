"""A trace as text: one line an event, names not numbers.

0.000123400 d1v0 hypercall event_channel_op EVTCHNOP_send 0xffffffff80041ffc = 0
0.000123400 d0v0 evtchn_pending port=5
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from hypervisor.abi import (
    callback,
    errno,
    event_channel,
    grant_table,
    memory,
    physdev,
    sched,
    tracepoints,
    vcpu,
    version,
    xen,
)
from hypervisor.abi.io import xenbus, xs_wire

COMMANDS: dict[int, dict[int, str]] = {
    xen.HYPERVISOR_event_channel_op: event_channel.NAMES,
    xen.HYPERVISOR_grant_table_op: grant_table.NAMES,
    xen.HYPERVISOR_memory_op: memory.NAMES,
    xen.HYPERVISOR_physdev_op: physdev.NAMES,
    xen.HYPERVISOR_sched_op: sched.NAMES,
    xen.HYPERVISOR_vcpu_op: vcpu.NAMES,
    xen.HYPERVISOR_xen_version: version.NAMES,
    xen.HYPERVISOR_callback_op: callback.NAMES,
}
"""Hypercalls whose first argument says what to do."""

_ARGUMENTS: dict[int, int] = {
    xen.HYPERVISOR_event_channel_op: 2,
    xen.HYPERVISOR_grant_table_op: 3,
    xen.HYPERVISOR_memory_op: 2,
    xen.HYPERVISOR_physdev_op: 2,
    xen.HYPERVISOR_sched_op: 2,
    xen.HYPERVISOR_vcpu_op: 3,
    xen.HYPERVISOR_xen_version: 2,
    xen.HYPERVISOR_callback_op: 2,
    xen.HYPERVISOR_mmu_update: 4,
    xen.HYPERVISOR_mmuext_op: 4,
    xen.HYPERVISOR_update_va_mapping: 3,
    xen.HYPERVISOR_update_va_mapping_otherdomain: 4,
    xen.HYPERVISOR_set_timer_op: 1,
    xen.HYPERVISOR_multicall: 2,
    xen.HYPERVISOR_console_io: 3,
    xen.HYPERVISOR_domctl: 1,
    xen.HYPERVISOR_sysctl: 1,
    xen.HYPERVISOR_vm_assist: 2,
}
"""How many arguments a hypercall takes; all five are shown for the others."""

_U32 = 0xFFFFFFFF


def format_record(record: Sequence[Any]) -> str:
    """Return the line for one record, without line end."""
    time_ns, domid, vcpu_id, kind, *fields = record
    name, _ = tracepoints.KINDS.get(kind, (f"kind-{kind}", ()))
    where = f"d{domid}v{vcpu_id}"
    head = f"{time_ns // 1_000_000_000}.{time_ns % 1_000_000_000:09} {where:<6} {name}"
    details = describe(kind, fields)
    return f"{head} {details}" if details else head


def describe(kind: int, fields: Sequence[Any]) -> str:
    """Return the fields of a record in words."""
    if kind == tracepoints.HYPERCALL and len(fields) == 7:
        return _hypercall(*fields)
    _, labels = tracepoints.KINDS.get(kind, ("", ()))
    parts = [_field(kind, label, value) for label, value in zip(labels, fields, strict=False)]
    parts += [str(value) for value in fields[len(labels) :]]
    return " ".join(parts)


def format_trace(records: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield the lines of a trace."""
    return map(format_record, records)


def _hypercall(nr: int, *rest: int) -> str:
    *arguments, rc = rest
    words = [operation_name(nr, arguments[0])]
    shown = arguments[nr in COMMANDS : _ARGUMENTS.get(nr, len(arguments))]
    words += [hex(argument) for argument in shown]
    words += ["=", _result(nr, rc)]
    return " ".join(words)


def operation_name(nr: int, command: int) -> str:
    """Return the name of a hypercall, and of what it is to do if its first argument says that."""
    name = xen.HYPERCALL_NAMES.get(nr, f"hypercall-{nr}")
    operations = COMMANDS.get(nr)
    if operations is None:
        return name
    return f"{name} {operations.get(command & _U32, f'op-{command & _U32}')}"


def _result(nr: int, rc: int) -> str:
    if rc < 0:
        return f"-{errno.name(-rc)}"
    return hex(rc) if nr == xen.HYPERVISOR_xen_version and rc > _U32 >> 16 else str(rc)


def _status(value: Any) -> str:
    return grant_table.STATUS_NAMES.get(value, str(value)) if isinstance(value, int) else str(value)


def _state(value: Any) -> str:
    return xenbus.NAMES.get(value, str(value)).removeprefix("XenbusState")


def _operation(value: Any) -> str:
    return str(xs_wire.NAMES.get(value, value)).removeprefix("XS_")


_NAMED: dict[tuple[int, str], Callable[[Any], str]] = {
    (tracepoints.TIMER, "virq"): lambda value: xen.VIRQ_NAMES.get(value, str(value)),
    (tracepoints.DOMAIN_SHUTDOWN, "reason"): lambda value: sched.SHUTDOWN_NAMES.get(value, str(value)),
    (tracepoints.XENBUS_STATE, "old"): _state,
    (tracepoints.XENBUS_STATE, "new"): _state,
    (tracepoints.XENSTORE_OP, "op"): _operation,
    **{
        (kind, "status"): _status
        for kind in (
            tracepoints.GNTTAB_MAP,
            tracepoints.GNTTAB_UNMAP,
            tracepoints.GNTTAB_COPY,
            tracepoints.GNTTAB_TRANSFER,
        )
    },
}


def _field(kind: int, label: str, value: Any) -> str:
    named = _NAMED.get((kind, label))
    if named is not None:
        return f"{label}={named(value)}"
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return f"{label}={value!r}" if not value.isprintable() or " " in value or not value else f"{label}={value}"
    if label in ("flags", "ready"):
        return f"{label}={value:#x}"
    return f"{label}={value}"
