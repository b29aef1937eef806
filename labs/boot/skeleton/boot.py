"""Lab 2: start_info and shared_info. Replace each `raise NotImplementedError`."""

from __future__ import annotations

import struct  # noqa: F401
from collections.abc import Callable
from dataclasses import dataclass

from hypervisor.abi import event_channel, xen  # noqa: F401
from hypervisor.abi.cpu import Cpu

PAGE_SIZE = 4096
PRESENT, WRITABLE = 0x1, 0x2
NANOSECONDS = 1_000_000_000

# Offsets in shared_info.
UPCALL_MASK = 1
TIME = 32
"""vcpu_info[0].time: version u32, pad u32, tsc_timestamp u64, system_time u64, tsc_to_system_mul u32, tsc_shift s8."""
EVTCHN_MASK = 2560
WC_VERSION, WC_SEC, WC_NSEC, WC_SEC_HI = 3072, 3076, 3080, 3084

# Offsets in the console's page.
OUT, OUT_SIZE = 1024, 2048
OUT_CONS, OUT_PROD = 3080, 3084

Load = Callable[[int, int], int]
"""`load(offset, size)` reads an unsigned number of `size` bytes of shared_info. Each call reads anew."""


@dataclass
class StartInfo:
    """What the builder tells a kernel, as far as we use it."""

    magic: str
    nr_pages: int
    shared_info: int
    """A machine address."""
    flags: int
    store_mfn: int
    store_evtchn: int
    console_mfn: int
    console_evtchn: int
    pt_base: int
    nr_pt_frames: int
    mfn_list: int
    cmd_line: str


def read_start_info(cpu: Cpu, address: int) -> StartInfo:
    """Read start_info at a virtual address.

    Strings end at their first zero byte. Raises ValueError if the magic does not begin with "xen-3.".
    """
    raise NotImplementedError("the members are those of struct start_info in xen.h, in that order")


def map_shared_info(cpu: Cpu, info: StartInfo, va: int) -> memoryview:
    """Map shared_info at `va`, writable, and return the page. Raises OSError with the errno if Xen refuses."""
    raise NotImplementedError("update_va_mapping, then look at the address again")


def silence(shared: memoryview) -> None:
    """Mask all 4096 event channels, and the upcalls of vCPU 0."""
    raise NotImplementedError("two stores: the words of evtchn_mask, and a byte of vcpu_info")


def system_time(load: Load, tsc: int) -> int:
    """Return nanoseconds since the host's boot, by vCPU 0's vcpu_time_info, for the time stamp `tsc`.

    Xen may update the structure between any two loads. `load` gives unsigned numbers; tsc_shift is signed.
    """
    raise NotImplementedError("version, the members, version again")


def wall_clock(load: Load, now: int) -> int:
    """Return nanoseconds since 1970, where `now` is the system time.

    wc_version is a seqlock as vcpu_time_info's; wc_sec_hi has the upper 32 bits of the seconds.
    """
    raise NotImplementedError("the wall clock at boot, and what has passed since")


def console_write(cpu: Cpu, page: int, ring: memoryview, port: int, data: bytes) -> int:
    """Put bytes into the console's ring, as many as there is room for; return how many those were.

    Notifies the other end on `port` if there were any. `page` is a free page, for the hypercall's argument
    (evtchn_send: one u32, the port).
    """
    raise NotImplementedError("bytes, then out_prod, then EVTCHNOP_send")
