"""Run a PV kernel's table of hypercall cases here, and compare what it prints with what real Xen answered.

    python tests/oracle/oracle_run.py [GROUP...] [-v]

The folder with the kernel (`pv-oracle.elf`) and the recording (`xen-4.17.cases`) is `../shared/oracle` beside the
repository, or what PARAVIRT_ORACLE says. With names of groups only those are run (the kernel's word `only=`), and only
what they print is compared. The differences are shown by the subsystem that owes the answer.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs
import trio

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from toolstack.boot_host import BootHost, BootResult, BootSpec  # noqa: E402
from toolstack.machine_code import read_kernel  # noqa: E402

KERNEL, RECORDING = "pv-oracle.elf", "xen-4.17.cases"
VARIABLE = "PARAVIRT_ORACLE"

OWNERS = {
    "boot": "si shi boot hypercall_page hypercall ver con suite",
    "events": "ev bits bindv virq ipi limit reset fifo upcall",
    "scheduling and time": "sched timer singleshot periodic vcpu vcpu1 vcpuinfo0 time",
    "grants": "gnt copy gntv2 xfer dying",
    "control calls": "domctl sysctl platform xsm_op multi hvm_op kexec_op hypfs_op dm_op acm_op27 arch_1 arch_7 nmi",
    "devices": "phys",
    "memory": "mem exch uvm uvmo mmu mx gdt desc vm_assist read write",
    "processor": "traps insn cpuid segbase stack_switch fpu_taskswitch debugreg cb crash",
}
"""Subsystem: the first parts of the names of its cases."""

_UNSTABLE = re.compile(
    r"/(si\.shared_info|si\.p2m|si\.cmd_line|si\.mod|cpuid\.1|cpuid\.xen.*|shi\.tsc_hz|ver\.(compile_info|changeset"
    r"|commandline|build_id.*)|insn\.rdtscp?)(~\d+)?$"
)
"""Cases whose answers differ from machine to machine."""
_FRAME = re.compile(r"\b((?:\w*mfn|\w*frame|maddr|gmfn|old|new)=)0x[0-9a-f]{3,}\b")


@attrs.frozen
class Difference:
    """A case that was answered otherwise than by real Xen."""

    name: str
    theirs: str
    ours: str

    @property
    def owner(self) -> str:
        """The subsystem that owes the answer."""
        first = self.name.split("/", 1)[1].split(".", 1)[0]
        return next((owner for owner, names in OWNERS.items() if first in names.split()), "others")

    def __str__(self) -> str:
        return f"{self.name}\n    xen : {self.theirs}\n    ours: {self.ours}"


def folder() -> Path:
    """Return where the kernel and the recording are to be."""
    return Path(os.environ.get(VARIABLE, ROOT.parent / "shared" / "oracle"))


def boot(where: Path, only: Sequence[str] = ()) -> tuple[str, BootResult]:
    """Boot the kernel, alone with its own image as its module; return the console's text, and how that ended."""
    console = bytearray()
    spec = BootSpec(
        kernel_path=where / KERNEL,
        kernel=read_kernel(where / KERNEL),
        modules=((where / KERNEL).read_bytes(),),
        cmdline=f"only={'+'.join(only)}" if only else "",
    )
    result = trio.run(BootHost(spec, console.extend).run)
    return console.decode("utf-8", "replace"), result


def cases(lines: Iterable[str]) -> dict[str, str]:
    """Return the answers by the name of the case; the names of those that come again get `~2`, `~3`, …"""
    seen: Counter[str] = Counter()
    found = {}
    for line in lines:
        name, _, answer = line.strip().rpartition("CASE ")[2].partition(" ")
        if "/" not in name or not answer.startswith("rc="):
            continue
        if "~" not in name:
            seen[name] += 1
            name = f"{name}~{seen[name]}" if seen[name] > 1 else name
        found[name] = _FRAME.sub(r"\1M", answer)
    return found


def compare(recording: str, log: str, *, partial: bool = False) -> tuple[list[Difference], int]:
    """Return the differences and the number of cases compared; `partial`: only cases that the log has count."""
    theirs, ours = cases(recording.splitlines()), cases(log.splitlines())
    stable = {
        name: answer for name, answer in theirs.items() if not _UNSTABLE.search(name) and (name in ours or not partial)
    }
    differences = [
        Difference(name, answer, ours.get(name, "(missing)"))
        for name, answer in stable.items()
        if ours.get(name) != answer
    ]
    return differences, len(stable)


def main(arguments: Sequence[str]) -> int:
    """Run, compare, and print."""
    where = folder()
    if not (where / KERNEL).exists():
        print(f"there is no {KERNEL} in {where}; {VARIABLE} says where else to look")
        return 2
    groups = [word for word in arguments if word != "-v"]
    began = time.monotonic()
    log, result = boot(where, groups)
    took = time.monotonic() - began
    differences, total = compare((where / RECORDING).read_text(), log, partial=bool(groups))
    by_owner: dict[str, list[Difference]] = defaultdict(list)
    for difference in differences:
        by_owner[difference.owner].append(difference)
    for owner, items in sorted(by_owner.items()):
        missing = sum(item.ours == "(missing)" for item in items)
        print(f"{owner}: {len(items)} differ, {missing} of them missing")
        if "-v" in arguments:
            print("".join(f"  - {item}\n" for item in items), end="")
    last = [line for line in log.splitlines() if line.strip()][-6:]
    print("\n".join(f"  | {line}" for line in last))
    print(f"{total - len(differences)} of {total} cases identical, in {took:.1f} s; {result}")
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
