"""Xen's policies for this machine: what its processor says, what Xen makes of it, what PV guests may have and get.

    RAW ── what Xen knows, tidied ──▶ HOST ── PV features, and what migration wants ──▶ PV_MAX ──▶ PV_DEFAULT

A domain begins with PV_DEFAULT made consistent (`DOMAIN`). What its toolstack asks for is checked against PV_MAX and
made consistent in the same way. How, is Xen's cpu-policy.c. The machine has no hardware virtualization, so that the
policies of HVM guests are empty (`NONE`).
"""

from __future__ import annotations

from hypervisor.abi import errno
from hypervisor.cpu_policy import features as fs
from hypervisor.cpu_policy.features import A, B, C, D
from hypervisor.cpu_policy.policy import (
    EMPTY,
    EXTENDED,
    NR_BASIC,
    NR_EXTENDED,
    PLATFORM_INFO,
    SUBLEAVES,
    CpuPolicy,
    PolicyError,
)
from hypervisor.machine.processor import CPUID

LAST_SUBLEAF = SUBLEAVES[7] - 1
NR_EXTENDED_INTEL = 9
VENDORS = {b"GenuineIntel": "intel", b"AuthenticAMD": "amd", b"HygonGenuine": "amd"}
"""Which rules hold for whose processors; others have none of their own."""
FAMILY_BITS = 0x0FFF0FFF
"""Of leaf 1's eax, what says family, model and stepping."""
CACHE_A, CACHE_D = 0xFFFFC3FF, 7
"""Of the leaves about caches, what is not reserved."""
LINEAR_BITS, LEAST_PHYSICAL_BITS = 48, 36


def _vendor(policy: CpuPolicy) -> str:
    _, b, c, d = policy.get(0)
    return VENDORS.get(b"".join(word.to_bytes(4, "little") for word in (b, d, c)), "")


def _tidy(policy: CpuPolicy) -> None:
    """Clear what no guest is told, and what depends on where it runs (recalculate_misc)."""
    one = policy.get(1)
    policy.set(1, a=one[A] & FAMILY_BITS, b=one[B] & 0x00FFFFFF)
    # MONITOR, power, the topology: nothing that a guest has.
    for leaf in (5, 6, 8, 0xC):
        policy.leaves.pop((leaf, fs.NO_SUBLEAF), None)
    for subleaf in range(SUBLEAVES[0xB]):
        policy.leaves.pop((0xB, subleaf), None)
    policy.set(EXTENDED | 1, d=policy.get(EXTENDED | 1)[D] & ~fs.COMMON_1D)
    policy.set(EXTENDED | 7, a=0, b=0, c=0)
    policy.set(EXTENDED | 8, d=0)
    vendor = _vendor(policy)
    if vendor == "intel":
        _tidy_intel(policy)
    elif vendor == "amd":
        _tidy_amd(policy)


def _tidy_intel(policy: CpuPolicy) -> None:
    if policy.last >= 2:
        policy.set(2, a=policy.get(2)[A] & ~0xFF | 1)
    for leaf in (3, 9, EXTENDED | 5):
        policy.leaves.pop((leaf, fs.NO_SUBLEAF), None)
    policy.set(EXTENDED, b=0, c=0, d=0)
    policy.set(EXTENDED | 1, a=0, b=0)
    policy.set(EXTENDED | 6, a=0, b=0, d=0)
    policy.set(EXTENDED | 8, a=policy.get(EXTENDED | 8)[A] & 0xFFFF, c=0)


def _tidy_amd(policy: CpuPolicy) -> None:
    for leaf in (2, 3, 9, 0xA, *(EXTENDED | index for index in (9, *range(0xB, 0x19), *range(0x1B, 0x21)))):
        policy.leaves.pop((leaf, fs.NO_SUBLEAF), None)
    for subleaf in range(SUBLEAVES[4]):
        policy.leaves.pop((4, subleaf), None)
    _, b, c, d = policy.get(0)
    policy.set(EXTENDED, b=b, c=c, d=d)
    one, extended = policy.get(1), policy.get(EXTENDED | 1)
    policy.set(EXTENDED | 1, a=one[A], b=extended[B] & 0xFF00FFFF, d=extended[D] | one[D] & fs.COMMON_1D)
    eight = policy.get(EXTENDED | 8)
    policy.set(EXTENDED | 8, a=eight[A] & 0xFFFF, c=eight[C] & 0x0003F0FF)
    policy.set(EXTENDED | 0x21, b=0, d=0)


def _without_states(policy: CpuPolicy) -> None:
    """Clear the extended states: without XSAVE, which this machine has not, there are none (recalculate_xstate)."""
    for subleaf in range(SUBLEAVES[0xD]):
        policy.leaves.pop((0xD, subleaf), None)


def _host() -> CpuPolicy:
    policy = RAW.copy()
    policy.set(0, a=min(policy.last, NR_BASIC - 1))
    policy.set(7, 0, a=min(policy.last_subleaf, LAST_SUBLEAF))
    policy.set(EXTENDED, a=EXTENDED | min(policy.last_extended & 0xFFFF, NR_EXTENDED - 1))
    policy.set_features(fs.sane(policy.features()))
    _without_states(policy)
    _tidy(policy)
    # Performance counters are off (vpmu).
    policy.leaves.pop((0xA, fs.NO_SUBLEAF), None)
    return policy


def _pv_max() -> CpuPolicy:
    """What a PV guest may have; some of it only so that one can come here that saw it elsewhere."""
    policy = HOST.copy()
    policy.set(7, 0, a=LAST_SUBLEAF)
    words = fs.masked(policy.features(), fs.PV_MAX)
    # Nothing speculates here: MSR_SPEC_CTRL is not for guests.
    fs.exclude(words, "IBRSB IBRS SRSO_US_NO")
    fs.include(words, "X2APIC HTT CMP_LEGACY HYPERVISOR")
    if _vendor(policy) == "intel":
        fs.include(words, "ARCH_CAPS RSBA RRSBA MD_CLEAR FB_CLEAR RFDS_CLEAR")
    policy.set_features(fs.sane(words))
    _without_states(policy)
    policy.leaves.pop((EXTENDED | 0xA, fs.NO_SUBLEAF), None)
    return policy


def _pv_default() -> CpuPolicy:
    policy = PV_MAX.copy()
    policy.set(7, 0, a=HOST.last_subleaf)
    words = fs.masked(policy.features(), fs.PV_DEFAULT)
    fs.include(words, "HYPERVISOR")
    host = HOST.features()
    for name in ("MD_CLEAR", "FB_CLEAR", "RFDS_CLEAR", "HTT", "CMP_LEGACY"):
        if not fs.has(host, *fs.numbers(name)):
            fs.exclude(words, name)
    policy.set_features(fs.sane(words))
    _without_states(policy)
    return policy


def recalculate(policy: CpuPolicy) -> None:
    """Make a PV domain's policy consistent, and no more than the machine can (recalculate_cpuid_policy)."""
    policy.set(0, a=min(policy.last, PV_MAX.last))
    policy.set(7, 0, a=min(policy.last_subleaf, PV_MAX.last_subleaf))
    most = (NR_EXTENDED if _vendor(policy) == "amd" else NR_EXTENDED_INTEL) - 1
    policy.set(EXTENDED, a=EXTENDED | min(policy.last_extended & 0xFFFF, most))
    words = fs.sane(fs.masked(policy.features(), PV_MAX.features()))
    policy.set_features(words)
    one, eight = policy.get(1), policy.get(EXTENDED | 8)
    policy.set(1, b=one[B] & ~0xFF00 | PV_MAX.get(1)[B] & 0xFF00)
    physical = max(min(eight[A] & 0xFF, PV_MAX.get(EXTENDED | 8)[A] & 0xFF), LEAST_PHYSICAL_BITS)
    linear = LINEAR_BITS if fs.has(words, *fs.numbers("LM")) else 32
    policy.set(EXTENDED | 8, a=eight[A] & ~0xFFFF | linear << 8 | physical)
    _without_states(policy)
    _tidy(policy)
    _tidy_caches(policy)
    policy.leaves.pop((0xA, fs.NO_SUBLEAF), None)
    policy.leaves.pop((EXTENDED | 0xA, fs.NO_SUBLEAF), None)
    if not fs.has(words, *fs.numbers("PAGE1GB")):
        policy.leaves.pop((EXTENDED | 0x19, fs.NO_SUBLEAF), None)


def _tidy_caches(policy: CpuPolicy) -> None:
    """Clear the reserved bits of what is said about caches, and all behind the first one that is none."""
    ended = False
    for subleaf in range(SUBLEAVES[4]):
        cache = policy.get(4, subleaf)
        ended = ended or not 1 <= cache[A] & 0x1F <= 3
        if ended:
            policy.leaves.pop((4, subleaf), None)
        else:
            policy.set(4, subleaf, a=cache[A] & CACHE_A, d=cache[D] & CACHE_D)


def check(policy: CpuPolicy) -> None:
    """Judge what a toolstack wants for a PV domain (x86_cpu_policies_are_compatible). Raises PolicyError(EINVAL)."""
    if policy.last > PV_MAX.last:
        raise PolicyError(errno.EINVAL, leaf=0)
    if policy.last_subleaf > PV_MAX.last_subleaf:
        raise PolicyError(errno.EINVAL, leaf=7, subleaf=0)
    if policy.last_extended > PV_MAX.last_extended:
        raise PolicyError(errno.EINVAL, leaf=EXTENDED)
    if policy.msrs[PLATFORM_INFO] & ~PV_MAX.msrs[PLATFORM_INFO]:
        raise PolicyError(errno.EINVAL, msr=PLATFORM_INFO)


def _domain() -> CpuPolicy:
    policy = PV_DEFAULT.copy()
    recalculate(policy)
    return policy


RAW = CpuPolicy({key: leaf for key, leaf in CPUID.items() if leaf != EMPTY})
HOST = _host()
PV_MAX = _pv_max()
PV_DEFAULT = _pv_default()
DOMAIN = _domain()
NONE = CpuPolicy()
