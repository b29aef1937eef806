"""Virtual CPUs that execute x86-64 machine code, on the Unicorn CPU emulator (the extra `paravirt[emulator]`).

    binding.py        the only module that touches Unicorn: its library, and where its CPU keeps the registers
    block_hook.py     counts guest time and looks for stale code, in a few dozen bytes of machine code of our own
    processor.py      the one emulated processor of a host: turns to a vCPU, runs it, hears of what it does
    vcpu.py           EmulatedVCpu, what the scheduler sees
    traps.py          how Xen enters the guest: exceptions, events, system calls; and iret, the way back
    privileged.py     instructions that Xen carries out for a guest kernel after a #GP
    cpuid.py, msr.py  what the guest is told of its processor

Nothing here imports Unicorn before the first machine-code vCPU runs: a host of Python guests does without.
"""
