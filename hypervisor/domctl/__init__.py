"""HYPERVISOR_domctl (domctl.h): what a toolstack does to domains."""

from hypervisor.domctl.ops import DomctlOps

__all__ = ("DomctlOps",)
