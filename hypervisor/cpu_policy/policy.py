"""A CPU policy: CPUID leaves and model-specific registers, as data; and the list that toolstacks exchange it in.

Facts: domctl.h, arch-x86/xen.h (xen_cpuid_leaf, xen_msr_entry); which leaves have how many sub-leaves, and the errors:
Xen's lib/x86/cpuid.c and msr.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from hypervisor.abi import errno
from hypervisor.cpu_policy.features import ARCH_CAPS_WORDS, NO_SUBLEAF, NR_WORDS, WORDS, A, Words

Leaf = tuple[int, int, int, int]
"""eax, ebx, ecx, edx."""
EMPTY: Leaf = (0, 0, 0, 0)
NR_BASIC, NR_EXTENDED = 0xE, 0x22
EXTENDED = 0x80000000
SUBLEAVES = {4: 6, 7: 3, 0xB: 2, 0xD: 63}
"""How many sub-leaves a policy has room for, of the leaves that have some."""
XEN, OTHER = 0x40000000, 0x40000100
"""Xen's leaves; of these a policy says only how many there are."""
MAX_LEAVES = NR_BASIC + sum(count - 1 for count in SUBLEAVES.values()) + NR_EXTENDED + 2
PLATFORM_INFO, ARCH_CAPABILITIES = 0xCE, 0x10A
MSRS = (PLATFORM_INFO, ARCH_CAPABILITIES)
WIDTHS = {PLATFORM_INFO: 32, ARCH_CAPABILITIES: 64}
U32 = 0xFFFF_FFFF


class PolicyError(Exception):
    """A list cannot be taken, or what it says cannot be: an errno, and the place that is to blame, if it is one."""

    def __init__(self, number: int, *, leaf: int = U32, subleaf: int = U32, msr: int = U32) -> None:
        super().__init__(number, leaf, subleaf, msr)
        self.errno = number
        self.leaf, self.subleaf, self.msr = leaf, subleaf, msr


class CpuPolicy:
    """One policy. Leaves that are not there are zeros."""

    __slots__ = ("hv_limits", "leaves", "msrs")

    def __init__(self, leaves: dict[tuple[int, int], Leaf] | None = None) -> None:
        """`leaves` is keyed by leaf and sub-leaf, NO_SUBLEAF for those that have none."""
        self.leaves = dict(leaves or {})
        self.hv_limits = {XEN: 0, OTHER: 0}
        self.msrs = dict.fromkeys(MSRS, 0)

    def copy(self) -> CpuPolicy:
        """Return a policy that says the same."""
        other = CpuPolicy(self.leaves)
        other.hv_limits, other.msrs = dict(self.hv_limits), dict(self.msrs)
        return other

    # -- looking ------------------------------------------------------------------------------------------------------

    def get(self, leaf: int, subleaf: int = NO_SUBLEAF) -> Leaf:
        """Return a leaf."""
        return self.leaves.get((leaf, subleaf), EMPTY)

    def set(self, leaf: int, subleaf: int = NO_SUBLEAF, **registers: int) -> None:
        """Change registers (a, b, c, d) of a leaf."""
        values = dict(zip("abcd", self.get(leaf, subleaf), strict=True)) | registers
        self.leaves[leaf, subleaf] = values["a"], values["b"], values["c"], values["d"]

    @property
    def last(self) -> int:
        """Return the number of the last basic leaf, as the policy claims."""
        return self.get(0)[A]

    @property
    def last_subleaf(self) -> int:
        """Return the number of the last sub-leaf of leaf 7."""
        return self.get(7, 0)[A]

    @property
    def last_extended(self) -> int:
        """Return the number of the last extended leaf."""
        return self.get(EXTENDED)[A]

    def answer(self, leaf: int, subleaf: int) -> Leaf:
        """Return what CPUID says of a leaf that is not Xen's: beyond the last one, zeros."""
        if leaf < EXTENDED:
            if leaf > min(self.last, NR_BASIC - 1) or (leaf == 7 and subleaf > self.last_subleaf):
                return EMPTY
        elif leaf - EXTENDED > min(self.last_extended & 0xFFFF, NR_EXTENDED - 1):
            return EMPTY
        return self.get(leaf, subleaf if leaf in SUBLEAVES else NO_SUBLEAF)

    def features(self) -> Words:
        """Return the feature set."""
        words = [0] * NR_WORDS
        for word, (leaf, subleaf, register) in WORDS.items():
            words[word] = self.get(leaf, subleaf)[register]
        capabilities = self.msrs[ARCH_CAPABILITIES]
        for index, word in enumerate(ARCH_CAPS_WORDS):
            words[word] = capabilities >> 32 * index & U32
        return words

    def set_features(self, words: Words) -> None:
        """Put a feature set in the place of the present one."""
        for word, (leaf, subleaf, register) in WORDS.items():
            if words[word] or (leaf, subleaf) in self.leaves:
                self.set(leaf, subleaf, **{"abcd"[register]: words[word]})
        low, high = (words[word] for word in ARCH_CAPS_WORDS)
        self.msrs[ARCH_CAPABILITIES] = high << 32 | low

    # -- lists --------------------------------------------------------------------------------------------------------

    def serialise(self) -> Iterator[tuple[int, int, Leaf]]:
        """Iterate over (leaf, sub-leaf, registers), in the order in which Xen lists them."""
        for leaf in range(min(self.last, NR_BASIC - 1) + 1):
            for subleaf in self._subleaves(leaf):
                yield leaf, subleaf, self.get(leaf, subleaf)
        for base, limit in self.hv_limits.items():
            yield base, NO_SUBLEAF, (limit, 0, 0, 0)
        for index in range(min(self.last_extended & 0xFFFF, NR_EXTENDED - 1) + 1):
            yield EXTENDED | index, NO_SUBLEAF, self.get(EXTENDED | index)

    def _subleaves(self, leaf: int) -> Iterable[int]:
        count = SUBLEAVES.get(leaf)
        if count is None:
            return (NO_SUBLEAF,)
        if leaf == 7:
            return range(min(self.last_subleaf, count - 1) + 1)
        if leaf == 0xD:
            states = self._states()
            return (0, 1, *(subleaf for subleaf in range(2, min(states.bit_length(), count))))
        # Caches and topology end with one that is none.
        return range(min(self._valid(leaf) + 1, count))

    def _valid(self, leaf: int) -> int:
        """Return how many sub-leaves of a list there are, before the first one without a type."""
        for subleaf in range(SUBLEAVES[leaf]):
            a, _, c, _ = self.get(leaf, subleaf)
            if not (a & 0x1F if leaf == 4 else c >> 8 & 0xFF):
                return subleaf
        return SUBLEAVES[leaf]

    def _states(self) -> int:
        """Return the bitmap of the extended states (XCR0 and IA32_XSS)."""
        zero, one = self.get(0xD, 0), self.get(0xD, 1)
        return zero[0] | zero[3] << 32 | one[2] | one[3] << 32

    def take_leaves(self, count: int, read: Callable[[int], tuple[int, int, int, int, int, int]]) -> None:
        """Take over a list of leaves; `read` returns the n-th one. Raises PolicyError, and whatever `read` raises."""
        if count > MAX_LEAVES:
            raise PolicyError(errno.E2BIG)
        for index in range(count):
            leaf, subleaf, *registers = read(index)
            a, b, c, d = registers
            if leaf in self.hv_limits and subleaf == NO_SUBLEAF:
                self.hv_limits[leaf] = a
            elif (leaf < NR_BASIC or 0 <= leaf - EXTENDED < NR_EXTENDED) and (
                subleaf < SUBLEAVES[leaf] if leaf in SUBLEAVES else subleaf == NO_SUBLEAF
            ):
                self.leaves[leaf, subleaf] = a, b, c, d
            else:
                raise PolicyError(errno.ERANGE, leaf=leaf, subleaf=subleaf)

    def take_msrs(self, count: int, read: Callable[[int], tuple[int, int, int]]) -> None:
        """Take over a list of registers; `read` returns the n-th one: number, flags, value."""
        if count > len(MSRS):
            raise PolicyError(errno.E2BIG)
        for index in range(count):
            number, flags, value = read(index)
            if flags:
                raise PolicyError(errno.EINVAL, msr=number)
            if number not in self.msrs:
                raise PolicyError(errno.ERANGE, msr=number)
            if value >> WIDTHS[number]:
                raise PolicyError(errno.EOVERFLOW, msr=number)
            self.msrs[number] = value

    def clear_out_of_range(self) -> None:
        """Forget the leaves beyond the last ones."""
        last_state = max(2, self._states().bit_length()) if self._states() and self.last >= 0xD else 0
        limits = {4: self._valid(4), 7: self.last_subleaf + 1, 0xB: self._valid(0xB), 0xD: last_state}
        self.leaves = {
            (leaf, subleaf): registers
            for (leaf, subleaf), registers in self.leaves.items()
            if (leaf <= self.last if leaf < EXTENDED else leaf - EXTENDED <= self.last_extended & 0xFFFF)
            and (leaf not in limits or subleaf < limits[leaf])
        }
