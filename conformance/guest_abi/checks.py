"""The checks of suite `guest-abi`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from conformance.guest_abi.file_lines import notes_in_words
from conformance.guest_abi.life import Life, ports_are
from conformance.guest_abi.world import Guest
from conformance.kit.check import Level, Skip, check, expect, expect_equal
from conformance.kit.telling import is_telling, note
from hypervisor.abi import errno, xen
from hypervisor.abi.sched import SHUTDOWN_poweroff, SHUTDOWN_reboot, SHUTDOWN_suspend
from hypervisor.kernel_image import PvKernel

NOTES: Final = "elfnote.h"
START: Final = "xen.h, struct start_info"
CONTROL: Final = "docs/misc/xenstore-paths.pandoc, ~/control/shutdown"
PAGE_FAULT, PROTECTION = 14, 13
MEMORY_CALLS: Final = (
    xen.HYPERVISOR_mmu_update,
    xen.HYPERVISOR_update_va_mapping,
    xen.HYPERVISOR_mmuext_op,
    xen.HYPERVISOR_set_gdt,
    xen.HYPERVISOR_stack_switch,
    xen.HYPERVISOR_set_segment_base,
    xen.HYPERVISOR_update_descriptor,
)
"""Calls of which a kernel that knows its own page tables makes none that is refused."""
NAMES: Final = {
    value: name.removeprefix("HYPERVISOR_")
    for name, value in vars(xen).items()
    if name.startswith("HYPERVISOR_") and isinstance(value, int) and value < 64
}


def machine_code(guest: Guest) -> PvKernel:
    """Return the kernel's file. Raises Skip for a kernel in Python, which has none."""
    kernel = guest.subject.kernel
    if kernel is None:
        raise Skip("it is no machine code")
    return kernel


def the_file(guest: Guest) -> PvKernel:
    """Return the kernel's file, of which a check asks; what its notes say is told."""
    kernel = machine_code(guest)
    if is_telling():
        for line in notes_in_words(kernel):
            note(line)
    return kernel


def answers(life: Life, reason: int, name: str) -> None:
    """Raise Failure unless a guest that was asked for something has ended with this reason."""
    expect(life.survived, "It has ended before it is asked to.")
    found = life.recorder.shutdown
    expect(found is not None, f"Asked for {life.asked}, it goes on for half a minute.")
    expect(found == reason, f"Asked for {life.asked}, it ends with reason {found}; it should be {reason} ({name}).")


# ---- the file


@check("GUEST-ABI-001", Level.must, f"{NOTES}: XEN_ELFNOTE_XEN_VERSION, XEN_ELFNOTE_ENTRY, XEN_ELFNOTE_VIRT_BASE")
def notes(guest: Guest) -> None:
    """The file's notes say for which Xen the kernel is, where it begins and where its memory is mapped.

    Without an entry a loader takes that of the ELF header, which is often a physical address; without a base, zero.
    """
    info = the_file(guest).info
    expect_equal(info.xen_version, "xen-3.0", "XEN_VERSION")
    expect(info.entry is not None, "There is no note ENTRY.")
    expect(info.virt_base is not None, "There is no note VIRT_BASE.")


@check("GUEST-ABI-002", Level.must, f"{NOTES}: XEN_ELFNOTE_ENTRY, XEN_ELFNOTE_PADDR_OFFSET")
def addresses(guest: Guest) -> None:
    """The entry lies in what is loaded, and all of that lies behind the base.

    What is loaded below the base is mapped nowhere.
    """
    kernel = the_file(guest)
    inside = any(part.address <= kernel.virt_entry < part.end for part in kernel.segments)
    expect(inside, f"The entry, {kernel.virt_entry:#x}, is in none of the segments that are loaded.")
    expect(
        kernel.start >= kernel.virt_base, f"It is loaded at {kernel.start:#x}, below its base {kernel.virt_base:#x}."
    )


@check("GUEST-ABI-003", Level.must, f"{NOTES}: XEN_ELFNOTE_HYPERCALL_PAGE; XSA-466")
def hypercall_page(guest: Guest) -> None:
    """If the kernel names a page for Xen's hypercall stubs, it is a whole page of what is loaded.

    Xen fills the page that the address lies in: whatever else is there is gone. Linux names none since XSA-466: it
    makes its hypercalls itself, since the stubs were indirect jumps that a processor could be made to mispredict.
    """
    kernel = the_file(guest)
    page = kernel.hypercall_page
    if page is None:
        raise Skip("it makes its hypercalls without Xen's stubs")
    expect(page % 4096 == 0, f"The hypercall page, {page:#x}, does not begin at a page.")
    inside = kernel.start <= page and page + 4096 <= (kernel.end + 4095) & -4096
    expect(inside, f"The hypercall page, {page:#x}, is not in what is loaded.")


@check("GUEST-ABI-004", Level.should, f"{NOTES}: XEN_ELFNOTE_GUEST_OS, XEN_ELFNOTE_LOADER")
def what_it_is(guest: Guest) -> None:
    """The notes say what system it is, and that any loader will do.

    Toolstacks show the first and choose by the second.
    """
    info = the_file(guest).info
    expect(info.guest_os, "There is no note GUEST_OS.")
    expect_equal(info.loader, "generic", "LOADER")


# ---- coming up


@check("GUEST-ABI-010", Level.must, f"{START}; xen-x86_64.h, the start-of-day memory layout")
def it_runs(guest: Guest) -> None:
    """The kernel comes up in a domain of this size, and does not crash.

    What it finds at first is what the header says, and nothing else: a stack of half a kilobyte, no trap handler, pages
    up to the end of the mapping and not a byte more.
    """
    life = guest.life()
    crash = life.recorder.crash or (life.message if life.recorder.shutdown == 3 else "")
    expect(not crash, f"It crashes: {crash}.")
    expect(life.recorder.calls, "It makes no hypercall in a minute.")


@check("GUEST-ABI-011", Level.must, "callback.h, CALLBACKTYPE_event; xen.h, evtchn_upcall_mask")
def callback_before_events(guest: Guest) -> None:
    """The event callback is registered before the first event is let in.

    The first event may have waited since the domain was built. Xen cannot deliver it, and crashes the domain.
    """
    first = guest.life().recorder.at_first
    if first is None:
        raise Skip("it never lets events in")
    expect(first.event_callback, "It clears evtchn_upcall_mask, and has registered no event callback.")


@check("GUEST-ABI-012", Level.must, "xen.h, HYPERVISOR_set_trap_table")
def traps_before_events(guest: Guest) -> None:
    """The trap table has handlers for page faults and protection faults before the first event is let in.

    From then on anything of the kernel may run; a trap without a handler crashes the domain without a word.
    """
    machine_code(guest)
    first = guest.life().recorder.at_first
    if first is None:
        raise Skip("it never lets events in")
    missing = [str(vector) for vector in (PROTECTION, PAGE_FAULT) if vector not in first.traps]
    expect(not missing, f"It lets events in without a handler for trap {' and '.join(missing)}.")


@check("GUEST-ABI-013", Level.should, "callback.h, CALLBACKTYPE_failsafe")
def failsafe(guest: Guest) -> None:
    """A failsafe callback is registered before the first event is let in.

    Xen calls it when a segment register cannot be loaded on the way back to the guest, which a process can bring about.
    """
    machine_code(guest)
    first = guest.life().recorder.at_first
    if first is None:
        raise Skip("it never lets events in")
    expect(first.failsafe_callback, "It lets events in without a failsafe callback.")


@check("GUEST-ABI-014", Level.must, f"{START}: shared_info")
def shared_info(guest: Guest) -> None:
    """Before the first event is let in, the page that start_info names as shared_info is mapped.

    Pending bits, masks and the time are there, and nowhere else; the address is that of a machine frame, and no pseudo-
    physical one.
    """
    first = guest.life().recorder.at_first
    if first is None:
        raise Skip("it never lets events in")
    expect(first.shared_info, "Nothing maps the frame of shared_info.")


@check("GUEST-ABI-015", Level.must, "xen.h, HYPERVISOR_mmu_update; xen-x86_64.h")
def no_refused_mapping(guest: Guest) -> None:
    """Xen refuses none of what the kernel asks of its page tables, descriptor tables and stacks.

    Page tables are mapped read-only before they are pinned, hold machine frames, and are given up in the right order.
    A kernel that has this wrong finds out here, or when its memory is somebody else's.
    """
    refused = [(key, count) for key, count in guest.life().recorder.refused.items() if key[0] in MEMORY_CALLS]
    expect(not refused, f"Xen refuses {_told(refused)}.")


def _told(refused: Iterable[tuple[tuple[int, int], int]]) -> str:
    """Return what was refused how often, in words."""
    parts = [
        f"{NAMES.get(nr, str(nr))} {'once' if count == 1 else f'{count} times'} with -{errno.name(-rc)}"
        for (nr, rc), count in sorted(refused)
    ]
    return ", ".join(parts)


@check("GUEST-ABI-016", Level.may, "xen.h")
def no_refused_call(guest: Guest) -> None:
    """Xen refuses none of the kernel's hypercalls at all.

    Many kernels try whether something is there, which is no fault. What is refused every time is worth a look.
    """
    refused = guest.life().recorder.refused.items()
    expect(not refused, f"Xen refuses {_told(refused)}.")


# ---- running


@check("GUEST-ABI-020", Level.must, "event_channel.h; xen.h, evtchn_pending, evtchn_pending_sel")
def no_event_is_lost(guest: Guest) -> None:
    """While the kernel rests no event waits that it has not masked.

    A flag is cleared before what it stands for is looked at, and the selector before the flags below it; the other way
    round an event that comes in between is never seen, and whoever waits for it waits for ever.
    """
    life = guest.at_rest()
    assert life.rest is not None
    lost = life.rest.lost
    expect(not lost, f"{ports_are(lost).capitalize()} pending and not masked, and the kernel sleeps.")


@check("GUEST-ABI-021", Level.must, "event_channel.h; xen.h, evtchn_pending, evtchn_pending_sel")
def events_without_a_cause(guest: Guest) -> None:
    """Events without a cause, at all ports, do not bring the kernel down, and it answers afterwards.

    The other end of a port may be anybody's, and raises events as it likes.
    """
    guest.at_rest()
    life = guest.life("events")
    expect(life.survived, f"Two hundred events at each of its ports bring it down: {life.message}.")
    if guest.life().recorder.shutdown == SHUTDOWN_poweroff and guest.life().asked:
        answers(life, SHUTDOWN_poweroff, "SHUTDOWN_poweroff")


@check("GUEST-ABI-022", Level.should, "sched.h, SCHEDOP_block")
def it_rests(guest: Guest) -> None:
    """A kernel that has nothing to do gives its processor up.

    One that turns in a circle takes it from all others, and makes a host of twenty guests slower than one of two.
    """
    life = guest.life()
    if life.recorder.shutdown is not None and not life.asked:
        raise Skip("it ends by itself")
    expect(life.rested, "It takes more than half a processor all the time.")


@check("GUEST-ABI-023", Level.must, "vcpu.h, VCPUOP_set_singleshot_timer; xen.h, struct vcpu_time_info")
def time_that_jumps(guest: Guest) -> None:
    """A kernel that gets no processor for some seconds goes on afterwards.

    `xl pause`, a host that is suspended, or merely busy. Timers are late, and the clock has jumped.
    """
    guest.at_rest()
    life = guest.life("paused")
    expect(life.survived, f"After five seconds without a processor it ends: {life.message}.")
    if guest.life().recorder.shutdown == SHUTDOWN_poweroff and guest.life().asked:
        answers(life, SHUTDOWN_poweroff, "SHUTDOWN_poweroff")


@check("GUEST-ABI-024", Level.may, "grant_table.h")
def grants(guest: Guest) -> None:
    """The kernel lets nobody at its pages but domain 0.

    This guest has no device of any other domain: an entry that names another is one that was filled in wrongly.
    """
    life = guest.at_rest()
    assert life.rest is not None
    others = [domid for domid in life.rest.granted_to if domid]
    expect(not others, f"It grants pages to domain {', '.join(map(str, others))}.")


# ---- console and store


@check("GUEST-ABI-030", Level.must, "io/console.h; xen.h, start_info.console")
def console_indices(guest: Guest) -> None:
    """At no time does the console's output ring claim to hold more than there is room for.

    A ring that has run over shows the end of what was printed and hides the beginning, or nothing at all.
    """
    recorder = guest.life().recorder
    if not recorder.said:
        raise Skip("it prints nothing")
    expect(not recorder.console_troubles, f"The ring has run over: {', '.join(recorder.console_troubles[:1])}.")


@check("GUEST-ABI-031", Level.must, "io/console.h; docs/console.md")
def console_is_notified(guest: Guest) -> None:
    """The daemon is notified of what is printed.

    It sleeps until then. A kernel that forgets it is heard when something else happens, or never.
    """
    recorder = guest.life().recorder
    if not recorder.said:
        raise Skip("it prints nothing")
    expect(
        recorder.console_port in recorder.notified, f"It prints {recorder.said} bytes and does not notify the daemon."
    )


@check("GUEST-ABI-032", Level.must, "io/console.h; docs/console.md")
def console_that_lies(guest: Guest) -> None:
    """A daemon that lies about what it has read and put does not bring the kernel down.

    dom0 is trusted with much, but a driver domain may run the daemon.
    """
    guest.at_rest()
    life = guest.life("liar")
    expect(life.survived, f"Indices that cannot be bring it down: {life.message}.")


@check("GUEST-ABI-033", Level.must, "io/xs_wire.h")
def store_ring(guest: Guest) -> None:
    """xenstored has not given the kernel's ring up.

    It does so for a message that is too long, and for indices that cannot be.
    """
    life = guest.at_rest()
    expect(not life.store_error, f"xenstored has given its ring up: error {life.store_error}.")
    if not life.watches and not life.answered:
        raise Skip("it does not use xenstore")


# ---- the end


@check("GUEST-ABI-040", Level.should, CONTROL)
def poweroff(guest: Guest) -> None:
    """Asked to power off, the kernel ends with SHUTDOWN_poweroff.

    `xl shutdown` waits for it; then comes the day when somebody loses patience, and a file system.
    """
    answers(guest.at_rest(), SHUTDOWN_poweroff, "SHUTDOWN_poweroff")


@check("GUEST-ABI-041", Level.should, CONTROL)
def acknowledges(guest: Guest) -> None:
    """A request is acknowledged: the node is empty before the end.

    The toolstack takes a node that still holds the request for a guest that has not seen it.
    """
    life = guest.at_rest()
    expect(life.recorder.shutdown is not None, "It does not answer the request at all.")
    expect(life.answered, "It ends and has not emptied control/shutdown.")


@check("GUEST-ABI-042", Level.should, CONTROL)
def reboot(guest: Guest) -> None:
    """Asked to reboot, the kernel ends with SHUTDOWN_reboot.

    The reason is all that the toolstack sees: it decides whether the domain is built again.
    """
    guest.at_rest()
    answers(guest.life("reboot"), SHUTDOWN_reboot, "SHUTDOWN_reboot")


@check("GUEST-ABI-043", Level.must, CONTROL)
def unknown_requests(guest: Guest) -> None:
    """A request that it does not know is not the kernel's end, and the next one is answered.

    New words are added; an old guest has to live with them.
    """
    guest.at_rest()
    life = guest.life("nonsense")
    expect(life.survived, f"It ends at a request that nobody knows: {life.message}.")
    if guest.life().recorder.shutdown == SHUTDOWN_poweroff and guest.life().asked:
        answers(life, SHUTDOWN_poweroff, "SHUTDOWN_poweroff")


@check("GUEST-ABI-044", Level.must, "docs/misc/xenstore-paths.pandoc, ~/control/feature-suspend; sched.h")
def suspends_if_it_says_so(guest: Guest) -> None:
    """A kernel that offers to be suspended ends with SHUTDOWN_suspend when it is asked to.

    A migration that begins and cannot go on is worse than one that is refused.
    """
    if not guest.at_rest().can_suspend:
        raise Skip("it does not offer to be suspended")
    answers(guest.life("suspend"), SHUTDOWN_suspend, "SHUTDOWN_suspend")


@check("GUEST-ABI-045", Level.must, "sched.h, SCHEDOP_shutdown")
def ends_with_a_reason(guest: Guest) -> None:
    """When it ends, the kernel ends with a reason, and not by a fault.

    A triple fault powers a PC off. Here it is a crash, and the toolstack treats it so.
    """
    life = guest.life()
    expect(not life.recorder.crash, f"It ends by a fault: {life.recorder.crash}.")
    if life.recorder.shutdown is None:
        raise Skip("it does not end")
