"""HYPERVISOR_sysctl (sysctl.h): what a toolstack asks about the host, and sets of it."""

from hypervisor.sysctl.ops import SysctlOps

__all__ = ("SysctlOps",)
