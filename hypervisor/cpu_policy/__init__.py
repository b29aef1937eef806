"""What processors say that they are: the machine's own, and what each guest is told (CPUID leaves and MSRs).

A policy (`policy`) is a set of CPUID leaves and two model-specific registers. `policies` derives from the machine's own
one those that Xen has, as it does when it starts, and makes what a toolstack asks for a domain consistent.
"""

from hypervisor.cpu_policy.policies import DOMAIN, HOST, NONE, PV_DEFAULT, PV_MAX, RAW, check, recalculate
from hypervisor.cpu_policy.policy import CpuPolicy

__all__ = ("DOMAIN", "HOST", "NONE", "PV_DEFAULT", "PV_MAX", "RAW", "CpuPolicy", "check", "recalculate")
