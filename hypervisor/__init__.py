"""Xen, simulated: domains, vCPUs, memory, events, grants, scheduling, on a simulated machine."""
