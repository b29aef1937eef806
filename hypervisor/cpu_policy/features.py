"""Feature sets: bitmaps of what a processor can do, which of that Xen knows, and which it lets PV guests have.

A set is `NR_WORDS` words of 32 bits, numbered as in arch-x86/cpufeatureset.h; its remarks say of each feature who may
have it, and the tests compare the tables here with them.
"""

from __future__ import annotations

from hypervisor.abi import cpufeatureset as abi

NR_WORDS = 19
A, B, C, D = range(4)
"""Registers of a CPUID leaf."""
NO_SUBLEAF = 0xFFFFFFFF
Place = tuple[int, int, int]
"""(leaf, sub-leaf or NO_SUBLEAF, register)"""
WORDS: dict[int, Place] = {
    0: (1, NO_SUBLEAF, D),
    1: (1, NO_SUBLEAF, C),
    2: (0x80000001, NO_SUBLEAF, D),
    3: (0x80000001, NO_SUBLEAF, C),
    4: (0xD, 1, A),
    5: (7, 0, B),
    6: (7, 0, C),
    7: (0x80000007, NO_SUBLEAF, D),
    8: (0x80000008, NO_SUBLEAF, B),
    9: (7, 0, D),
    10: (7, 1, A),
    11: (0x80000021, NO_SUBLEAF, A),
    12: (7, 1, B),
    13: (7, 2, D),
    14: (7, 1, C),
    15: (7, 1, D),
    18: (0x80000021, NO_SUBLEAF, C),
}
"""Where each word is. Words 16 and 17 are the halves of MSR_ARCH_CAPABILITIES."""
ARCH_CAPS_WORDS = (16, 17)

Words = list[int]
KNOWN = (
    *(0xBFEBFBFF, 0xFFFEF3FF, 0xEE500800, 0x2469BFFF, 0x0000000F, 0xFFBFFFFF, 0x3A405FDF, 0x00000780, 0x779FD205),
    *(0xFC91EF1C, 0x00001C30, 0xF8000164, 0x00000001, 0x00000037, 0x00000000, 0x00040000, 0x1FBEFFFF, 0x40000000),
    0x00000006,
)
"""All features that the header names."""
PV_DEFAULT = (
    *(0x1FC9CBF5, 0xF6D83203, 0xEA500800, 0x042109E3, 0x00000007, 0xFDAF0B29, 0x02405F43, 0x00000000, 0x64001005),
    *(0xAC00441C, 0x00001C30, 0x78000064, 0x00000000, 0x00000021, 0x00000000, 0x00000000, 0x1D12E173, 0x40000000),
    0x00000006,
)
"""Those that a PV guest gets if the machine has them ("A" in the header)."""
PV_MAX = (
    *(0x1FC9CBF5, 0xF6D83203, 0xEA500800, 0x042109E3, 0x00000007, 0xFDAF0B39, 0x1A405F43, 0x00000100, 0x64001005),
    *(0xAC01451C, 0x00001C30, 0x78000064, 0x00000000, 0x00000021, 0x00000000, 0x00000000, 0x1D12E173, 0x40000000),
    0x00000006,
)
"""Those that it can get if its toolstack asks ("A" or "a")."""


def _number(name: str) -> int:
    number: int = getattr(abi, f"XEN_X86_FEATURE_{name}")
    return number


def numbers(names: str) -> tuple[int, ...]:
    """Return the numbers of features, given their names."""
    return tuple(_number(name) for name in names.split())


COMMON_1D = sum(
    1 << number for number in numbers("FPU VME DE PSE TSC MSR PAE MCE CX8 APIC MTRR PGE MCA CMOV PAT PSE36 MMX FXSR")
)
"""What an AMD processor says in leaf 0x80000001 as well as in leaf 1."""

NEEDED_BY = {
    "FPU": "MMX RSTR_FP_ERR_PTRS",
    "PSE": "PSE36",
    "PAE": "LM NX",
    "TSC": "TSC_DEADLINE RDTSCP TSC_ADJUST ITSC",
    "APIC": "X2APIC TSC_DEADLINE EXTAPIC",
    "MMX": "MMXEXT 3DNOW",
    "FXSR": "FFXSR SSE",
    "SSE": "SSE2 MISALIGNSSE",
    "SSE2": "SSE3 LM AESNI PCLMULQDQ SHA GFNI",
    "SSE3": "SSSE3 SSE4A",
    "SSSE3": "SSE4_1",
    "SSE4_1": "SSE4_2",
    "XSAVE": "XSAVEOPT XSAVEC XGETBV1 XSAVES AVX MPX PKU LWP",
    "AVX": "FMA FMA4 F16C AVX2 XOP",
    "NX": "SMAP",
    "LM": "CX16 PCID LAHF_LM PAGE1GB PKU NO_LMSL",
    "3DNOW": "3DNOWEXT",
    "PCLMULQDQ": "VPCLMULQDQ",
    "AESNI": "VAES",
    "AVX2": "AVX512F VAES VPCLMULQDQ AVX_VNNI",
    "IBRSB": "STIBP SSBD INTEL_PSFD EIBRS IPRED_CTRL RRSBA_CTRL BHI_CTRL",
    "IBRS": "AMD_STIBP AMD_SSBD PSFD IBRS_ALWAYS IBRS_FAST IBRS_SAME_MODE",
    "IBPB": "IBPB_RET SBPB IBPB_BRTYPE",
    "AMD_STIBP": "STIBP_ALWAYS",
    "RTM": "TSXLDTRK",
    "EIBRS": "RRSBA",
}
"""What is nothing without the feature: the vendors' manuals."""
_DEPENDENTS = {_number(feature): set(numbers(needing)) for feature, needing in NEEDED_BY.items()}
_DEPENDENTS[_number("ARCH_CAPS")] = set(range(16 * 32, 18 * 32))


def has(words: Words, number: int) -> bool:
    """Whether a set has a feature."""
    return bool(words[number >> 5] >> (number & 31) & 1)


def include(words: Words, names: str) -> None:
    """Put features into a set."""
    for number in numbers(names):
        words[number >> 5] |= 1 << (number & 31)


def exclude(words: Words, names: str) -> None:
    """Take features out of a set."""
    _drop(words, numbers(names))


def _drop(words: Words, features: tuple[int, ...]) -> None:
    for number in features:
        words[number >> 5] &= ~(1 << (number & 31))


def masked(words: Words, mask: tuple[int, ...] | Words) -> Words:
    """Return what two sets have in common."""
    return [word & other for word, other in zip(words, mask, strict=True)]


def sane(words: Words) -> Words:
    """Return a set without what Xen does not know, and without features whose ground is missing."""
    words = masked(words, KNOWN)
    missing = [feature for feature in _DEPENDENTS if not has(words, feature)]
    seen = set(missing)
    while missing:
        dependents = _DEPENDENTS.get(missing.pop(), set()) - seen
        _drop(words, tuple(dependents))
        seen |= dependents
        missing += dependents
    return words
