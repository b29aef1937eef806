"""`cpuid = "host,aes=0,..."` of a configuration: features that a guest is to be told of, or not (xl.cfg(5)).

Names are libxl's, or those of Xen's own list of features (arch-x86/cpufeatureset.h; `-` and `_` are the same). A
feature that others stand on takes them with it. Which the machine has is checked before anything runs.
"""

from __future__ import annotations

import re

import attrs

from hypervisor.abi.cpufeatureset import NAMES
from hypervisor.cpu_policy import PV_MAX
from hypervisor.cpu_policy import features as fs
from toolstack.errors import SpecError, did_you_mean

POLICY = "host"
"""The word with which such a text begins: all that is not mentioned is as the host has it."""
OFF, ON, DEFAULTS = "0", "1", frozenset("xks")
"""Values of a feature; those of the last are what the host says."""
LIBXL_NAMES = {
    "3dnowprefetch": "3DNOWPREFETCH",
    "aes": "AESNI",
    "altmovcr8": "CR8_LEGACY",
    "avx512-4fmaps": "AVX512_4FMAPS",
    "avx512-4vnniw": "AVX512_4VNNIW",
    "avx512ifma": "AVX512_IFMA",
    "avx512vbmi": "AVX512_VBMI",
    "clfsh": "CLFLUSH",
    "cmplegacy": "CMP_LEGACY",
    "cmpxchg16": "CX16",
    "cmpxchg8": "CX8",
    "est": "EIST",
    "invtsc": "ITSC",
    "lahfsahf": "LAHF_LM",
    "sse4.1": "SSE4_1",
    "sse4.2": "SSE4_2",
    "sysenter": "SEP",
    "tm": "TM1",
    "tscdeadline": "TSC_DEADLINE",
}
"""Where libxl's name is not Xen's."""
_XEN_NAMES = {name.lower().replace("_", "-"): number for number, name in NAMES.items()}
FEATURES = {**_XEN_NAMES, **{name: fs.numbers(xen_name)[0] for name, xen_name in LIBXL_NAMES.items()}}
"""Feature numbers by name."""
MAX_LEAF, MAX_XEN_LEAF = "maxleaf", "maxhvleaf"
_LIBXL_ONLY = frozenset(
    ("brandid", "clflush-size", "family", "localapicid", "model", "nc", "proccount", "procpkg", "stepping")
)
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10}")
U32 = 0xFFFFFFFF


@attrs.frozen
class CpuidSpec:
    """What a configuration says of CPUID."""

    off: tuple[int, ...] = ()
    """Numbers of features that the guest is not to see."""
    on: tuple[int, ...] = ()
    """Those that it must."""
    max_leaf: int | None = None
    """The last basic leaf."""
    max_xen_leaf: int | None = None
    """The last of Xen's own leaves, as a full number (0x4000000N) or N."""


def parse_cpuid(text: str) -> CpuidSpec:
    """Read the value of `cpuid`. Raises SpecError."""
    policy, *words = (word.strip() for word in text.split(","))
    if policy != POLICY:
        raise SpecError(f"cpuid begins with 'host' (as in \"host,aes=0\"), not {policy!r}")
    wanted: dict[int, str] = {}
    limits: dict[str, int] = {}
    for word in words:
        key, equals, value = (part.strip().lower() for part in word.partition("="))
        if not equals:
            raise SpecError(f"{word!r} in cpuid is not of the form feature=0 or feature=1")
        if key in (MAX_LEAF, MAX_XEN_LEAF):
            limits[key] = _number(key, value)
        else:
            number = _feature(key)
            wanted[number] = _value(key, value)
    on = tuple(number for number, value in wanted.items() if value == ON)
    for number in on:
        _check_there(number)
    return CpuidSpec(
        off=tuple(number for number, value in wanted.items() if value == OFF),
        on=on,
        max_leaf=limits.get(MAX_LEAF),
        max_xen_leaf=limits.get(MAX_XEN_LEAF),
    )


def _feature(key: str) -> int:
    if key in _LIBXL_ONLY:
        raise SpecError(f"{key!r} in cpuid is not supported here: features and the numbers of leaves are")
    number = FEATURES.get(key, FEATURES.get(key.replace("_", "-")))
    if number is None or number >> 5 in fs.ARCH_CAPS_WORDS:
        raise SpecError(f"cpuid knows no feature {key!r}{did_you_mean(key, FEATURES)}")
    return number


def _value(key: str, value: str) -> str:
    if value in DEFAULTS or value in (OFF, ON):
        return value
    raise SpecError(f"the feature {key!r} in cpuid is 0, 1, or one of x, k and s for the host's, not {value!r}")


def _number(key: str, value: str) -> int:
    if not _NUMBER.fullmatch(value) or int(value, 0) > U32:
        raise SpecError(f"{key!r} in cpuid is a number, not {value!r}")
    number = int(value, 0)
    if key == MAX_LEAF and number > PV_MAX.last:
        raise SpecError(f"the last leaf of cpuid is at most {PV_MAX.last:#x} on this machine, not {number:#x}")
    return number


def _check_there(number: int) -> None:
    if not fs.has(PV_MAX.features(), number):
        name = NAMES[number].lower()
        raise SpecError(f"{name!r} in cpuid cannot be 1: the machine has it not, or no PV guest may")
