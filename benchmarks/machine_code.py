"""How fast machine code runs on the CPU emulator: instructions, hypercalls, reads of the TSC, turns between vCPUs.

Three loops, put together by hand here, run as dom0 of a host of their own; in processor time, the best of some rounds.
Prints a line for each.

usage: python benchmarks/machine_code.py [--rounds N]
"""

import argparse
import time

from hypervisor.dom0_build import construct_dom0
from hypervisor.hypervisor import Hypervisor
from hypervisor.kernel_image.pv_kernel import LoadSegment, PvKernel
from hypervisor.machine.machine import Machine

BASE = 0xFFFFFFFF80000000
INSTRUCTIONS_PER_ROUND = 4
LOOPS = {
    # add %ecx, %eax; xor %eax, %ebx; dec %r15d; jnz
    "instruction": ("01c8 31c3 41ffcf 75f7", 30_000_000, INSTRUCTIONS_PER_ROUND),
    # xor %edi, %edi; mov $17, %eax (xen_version); syscall; dec %r15d; jnz
    "hypercall": ("31ff b811000000 0f05 41ffcf 75f2", 200_000, 1),
    # rdtsc; dec %r15d; jnz
    "read of the TSC": ("0f31 41ffcf 75f9", 1_000_000, 1),
    # mov $29, %eax (sched_op); xor %edi, %edi (yield); syscall; dec %r15d; jnz
    "yield": ("b81d000000 31ff 0f05 41ffcf 75f2", 20_000, 1),
}


def seconds(loop: str, rounds: int) -> float:
    """Run a loop; it ends with an invalid opcode, and so with the host."""
    code = b"\x41\xbf" + rounds.to_bytes(4, "little") + bytes.fromhex(loop) + b"\x0f\x0b"
    hv = Hypervisor(Machine(memory_mib=32))
    domain = hv.domain_ops.create(0, max_vcpus=1, is_privileged=True)
    hv.domain_ops.add_vcpu(domain, 0)
    kernel = PvKernel(virt_base=BASE, virt_entry=BASE, segments=(LoadSegment(BASE, code, len(code)),))
    construct_dom0(hv, domain, kernel, "", None, 8 << 8)
    hv.domain_ops.unpause(domain)
    hv.processor()
    began = time.process_time()
    while not hv.stopped:
        hv.sched.drain(1000)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for name, (loop, rounds, per_round) in LOOPS.items():
        best = min(seconds(loop, rounds) for _ in range(arguments.rounds))
        each = best / (rounds * per_round) * 1e9
        print(f"{name:16} {each:10.1f} ns   {1000 / each:10.2f} million a second")


if __name__ == "__main__":
    main()
