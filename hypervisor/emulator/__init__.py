"""Virtual CPUs that execute x86-64 machine code, on the Unicorn CPU emulator (the extra `paravirt[emulator]`).

    binding.py        the only module that touches Unicorn: its library, and where its CPU keeps the registers
    abort_guard.py    what keeps a guest from ending this process by an instruction that Unicorn cannot take
    native_hooks.py   what has to be machine code: guest time, stale code, the TSC, ports, breakpoints on data
    memory_lookup.py  a faster search for the memory behind an address, in place of Unicorn's own
    processor.py      the one emulated processor of a host: turns to a vCPU, runs it, hears of what it does
    vcpu.py           EmulatedVCpu, what the scheduler sees
    segments.py       descriptor tables and segment registers
    traps.py          how Xen enters the guest: exceptions, events, system calls; and iret, the way back
    privileged.py     instructions that Xen carries out for a guest kernel after a #GP
    port_io.py        the ports behind IN and OUT
    table_stores.py   stores into page tables, which Xen carries out
    instruction.py    taking instructions apart, as far as those two need it in general
    operands.py       the same by Capstone, for those that need more
    breakpoints.py    DR0-3: breakpoints on instructions, and
    watchpoints.py    on data and I/O ports
    cpuid.py, msr.py  what the guest is told of its processor

Nothing here imports Unicorn before the first machine-code vCPU runs: a host of Python guests does without.
"""
