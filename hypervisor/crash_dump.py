"""The dump that Xen prints of a domain that crashed: who, where, the registers, the top of its stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.callback import is_canonical
from hypervisor.errors import HypercallError
from hypervisor.guest_access import access_ok, read_u64
from hypervisor.log import ERROR
from hypervisor.mm.pte import FRAME_MASK, PRESENT, PSE
from hypervisor.vcpu import CR4_START
from hypervisor.version import EXTRAVERSION, MAJOR, MINOR

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.log import ERROR
from hypervisor.vcpu import Context, VCpu

_STACK_LINES, _WORDS_PER_LINE = 20, 4
_STACK_SIZE = 8 * 4096
"""Xen shows the stack up to the next boundary of its own stacks' size."""
_MASK_BYTE = 1
_ROWS = ("rax rbx rcx", "rdx rsi rdi", "rbp rsp r8", "r9 r10 r11", "r12 r13 r14")


VECTORS = (
    *("#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "CSO", "#TS", "#NP", "#SS", "#GP", "#PF", "SPV"),
    *("#MF", "#AC", "#MC", "#XM", "#VE", "#CP", "???", "???", "???", "???", "???", "???", "#HV", "#VC", "#SX"),
)
"""Xen's names of the exceptions."""
PAGE_FAULT = 14


def say_unhandled(vcpu: VCpu, vector: int, error: int) -> None:
    """Print what Xen prints of an exception for which a guest has no handler (pv_inject_event)."""
    name = VECTORS[vector] if vector < len(VECTORS) else "???"
    hv = vcpu.hv
    hv.log(f"d{vcpu.domain.domid}v{vcpu.vcpu_id} Unhandled: vec {vector}, {name}[{error:04x}]", ERROR, guest=True)
    if vector == PAGE_FAULT:
        for line in _page_walk(vcpu, vcpu.context.cr2):
            hv.log(line)


def _page_walk(vcpu: VCpu, address: int) -> list[str]:
    """Return the entries that lead to an address, each with the page that Xen knows behind it (show_page_walk)."""
    lines = [f"Pagetable walk from {address:016x}:"]
    if not is_canonical(address):
        return lines
    frames = vcpu.hv.frames
    table = vcpu.kernel_cr3 if vcpu.context.in_kernel else vcpu.user_cr3
    for level, shift in ((4, 39), (3, 30), (2, 21), (1, 12)):
        index = address >> shift & 0x1FF
        entry = frames.memory.q[(table << 9) + index]
        table = (entry & FRAME_MASK) >> 12
        valid = table < frames.frames
        pfn = frames.m2p[table] if valid else (1 << 64) - 1
        is_superpage = bool(entry & PSE) and 1 < level < 4
        lines.append(f" L{level}[0x{index:03x}] = {entry:016x} {pfn:016x}{' (PSE)' if is_superpage else ''}")
        if not entry & PRESENT or is_superpage or not valid:
            break
    return lines


def show_crash(hv: Hypervisor, domain: Domain) -> None:
    """Print what Xen prints when it crashes a domain (__domain_crash)."""
    vcpu = hv.sched.running
    if vcpu is None or vcpu.domain is not domain:
        by = 0 if vcpu is None else vcpu.domain.domid
        cpu = 0 if vcpu is None else vcpu.processor
        hv.log(f"Domain {domain.domid} reported crashed by domain {by} on cpu#{cpu}:")
        return
    hv.log(f"Domain {domain.domid} (vcpu#{vcpu.vcpu_id}) crashed on cpu#{vcpu.processor}:")
    context = vcpu.registers()
    if context is None:
        return  # A guest in Python has no registers; its traceback has been printed.
    hv.log(f"----[ Xen-{MAJOR}.{MINOR}{EXTRAVERSION.decode()}  x86_64  debug=n  Not tainted ]----")
    hv.log(f"CPU:    {vcpu.processor}")
    for line in _registers(vcpu, context):
        hv.log(line)
    for line in _stack(vcpu, context.rsp):
        hv.log(line)


def _registers(vcpu: VCpu, context: Context) -> list[str]:
    b, q = vcpu.hv.memory.b, vcpu.hv.memory.q
    mode = f"EM: {int(b[vcpu.info + _MASK_BYTE] != 0)}   CONTEXT: pv guest (d{vcpu.domain.domid}v{vcpu.vcpu_id})"
    lines = [f"RIP:    {context.cs:04x}:[<{context.rip:016x}>]", f"RFLAGS: {context.rflags:016x}   {mode}"]
    for row in _ROWS:
        lines.append("   ".join(f"{name + ':':4} {getattr(context, name):016x}" for name in row.split()))
    root = vcpu.kernel_cr3 if context.in_kernel else vcpu.user_cr3
    cr2 = q[vcpu.info + 16 >> 3]
    lines.append(f"r15: {context.r15:016x}   cr0: {context.cr0:016x}   cr4: {CR4_START:016x}")
    lines.append(f"cr3: {root << 12:016x}   cr2: {cr2:016x}")
    here, other = context.gs_base_kernel, context.gs_base_user
    if not context.in_kernel:
        here, other = other, here
    lines.append(f"fsb: {context.fs_base:016x}   gsb: {here:016x}   gss: {other:016x}")
    selectors = ("ds", "es", "fs", "gs", "ss", "cs")
    lines.append("   ".join(f"{name}: {getattr(context, name):04x}" for name in selectors))
    return lines


def _stack(vcpu: VCpu, pointer: int) -> list[str]:
    lines = [f"Guest stack trace from rsp={pointer:016x}:"]
    if not access_ok(pointer):
        return [*lines, "  Guest-inaccessible memory."]
    words: list[str] = []
    fault = False
    for _ in range(_STACK_LINES * _WORDS_PER_LINE):
        if ((pointer - 1) ^ (pointer + 7)) & _STACK_SIZE:
            break
        try:
            words.append(f"{read_u64(vcpu, pointer):016x}")
        except HypercallError:
            fault = True
            break
        pointer += 8
    for first in range(0, len(words), _WORDS_PER_LINE):
        lines.append("   " + " ".join(words[first : first + _WORDS_PER_LINE]))
    if fault:
        lines.append("  Fault while accessing guest memory.")
    elif not words:
        lines.append("  Stack empty.")
    return lines
