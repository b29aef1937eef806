"""A domain's virtual NUMA topology: told by the toolstack, handed to the domain on request, and not used otherwise.

(All memory of this machine is on one node.) A topology is a few arrays of C's integers, kept as they came.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import attrs

from hypervisor.abi import errno, memory
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest, read_u32
from hypervisor.machine.memory import PAGE_SIZE

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.vcpu import VCpu

MAX_NODES = 64
"""How many nodes a machine can have."""
_UINT = 4
_RANGE = memory.xen_vmemrange.size


@attrs.frozen
class VirtualTopology:
    """What XENMEM_get_vnumainfo answers."""

    nodes: int
    distances: bytes
    """From each node to each node."""
    vcpu_to_node: bytes
    ranges: bytes
    """Which guest addresses belong to which node: any number of xen_vmemrange."""
    host_nodes: tuple[int, ...] = ()
    """The node of the machine that stands behind each; not told to the domain."""

    @property
    def shape(self) -> dict[str, int]:
        """The sizes of the arrays, under the names in the structure."""
        return {
            "nr_vnodes": self.nodes,
            "nr_vcpus": len(self.vcpu_to_node) // _UINT,
            "nr_vmemranges": len(self.ranges) // _RANGE,
        }


def take_topology(vcpu: VCpu, domain: Domain, told: Any) -> VirtualTopology:
    """Read a topology for a domain from a xen_domctl_vnuma and the arrays that it points to.

    Raises HypercallError: EINVAL for a size that cannot be or an array beyond a page, E2BIG for a number of a node that
    there is not, EFAULT.
    """
    nodes = told.nr_vnodes
    if told.nr_vcpus != domain.max_vcpus or told.pad:
        raise HypercallError(errno.EINVAL)
    if not nodes or nodes > PAGE_SIZE // _UINT // nodes or told.nr_vmemranges > PAGE_SIZE // _RANGE:
        raise HypercallError(errno.EINVAL)
    distances = copy_from_guest(vcpu, told.vdistance, nodes * nodes * _UINT)
    ranges = copy_from_guest(vcpu, told.vmemrange, told.nr_vmemranges * _RANGE)
    vcpu_to_node = copy_from_guest(vcpu, told.vcpu_to_vnode, domain.max_vcpus * _UINT)
    if any(node >= nodes for node in array("I", vcpu_to_node)):
        raise HypercallError(errno.E2BIG)
    host_nodes = tuple(read_u32(vcpu, told.vnode_to_pnode + index * _UINT) for index in range(nodes))
    if any(node >= MAX_NODES for node in host_nodes):
        raise HypercallError(errno.E2BIG)
    return VirtualTopology(nodes, distances, vcpu_to_node, ranges, host_nodes)


def tell_topology(vcpu: VCpu, arg: int, request: Any, topology: VirtualTopology) -> int:
    """Answer XENMEM_get_vnumainfo, whose structure is at `arg`: ENOBUFS, and the sizes, if any array is too small."""
    shape = topology.shape
    fits = all(getattr(request, name) >= size for name, size in shape.items())
    for name, size in shape.items():
        setattr(request, name, size)
    if fits:
        copy_to_guest(vcpu, request.vmemrange.h, topology.ranges)
        copy_to_guest(vcpu, request.vdistance.h, topology.distances)
        copy_to_guest(vcpu, request.vcpu_to_vnode.h, topology.vcpu_to_node)
    copy_to_guest(vcpu, arg, memory.xen_vnuma_topology_info.pack(request))
    return 0 if fits else -errno.ENOBUFS
