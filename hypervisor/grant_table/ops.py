"""HYPERVISOR_grant_table_op (grant_table.h): the dispatch, and the part of grants in a domain's life."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.abi import grant_table as abi
from hypervisor.errors import HypercallError
from hypervisor.grant_table.check import held_references
from hypervisor.grant_table.control import ControlOps
from hypervisor.grant_table.copying import CopyOps
from hypervisor.grant_table.host_mapping import HostMappings, is_guest_address
from hypervisor.grant_table.mapping import MapOps
from hypervisor.grant_table.table import GrantTable
from hypervisor.grant_table.teardown import release_mappings
from hypervisor.grant_table.transfer import TransferOps
from hypervisor.grant_table.unmapping import UnmapOps

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_grant_table_op

INITIAL_FRAMES = 1
MAX_FRAMES = 64
MAX_MAPTRACK_FRAMES = 1024
"""Defaults of Xen's command line: gnttab_max_frames, gnttab_max_maptrack_frames."""

MAX_VERSION = 2

CMD_MASK = 0xFFF
"""Bits of `cmd` above these are Xen's own, for continuing a cache_flush (GNTTABOP_CONTINUATION_ARG_SHIFT)."""

Operation = Callable[["VCpu", int, int], int]
"""vCPU, guest address of the arguments, count → 0 or a negative errno."""

POINTER_CHECKED = frozenset(
    {
        abi.GNTTABOP_map_grant_ref,
        abi.GNTTABOP_unmap_grant_ref,
        abi.GNTTABOP_unmap_and_replace,
        abi.GNTTABOP_transfer,
        abi.GNTTABOP_copy,
        abi.GNTTABOP_swap_grant_ref,
        abi.GNTTABOP_cache_flush,
    }
)
"""Batches: a pointer into Xen's range is refused before anything is done, even for an empty batch."""


class GrantTableOps:
    """Grant tables of all domains."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        hosts = HostMappings(hv)
        self.mapping = MapOps(hv, hosts)
        self.unmapping = UnmapOps(hv, hosts)
        self.copying = CopyOps(hv)
        control = self._control = ControlOps(hv)
        self._operations: dict[int, Operation] = {
            abi.GNTTABOP_map_grant_ref: self.mapping.map_grant_ref,
            abi.GNTTABOP_unmap_grant_ref: self.unmapping.unmap_grant_ref,
            abi.GNTTABOP_unmap_and_replace: self.unmapping.unmap_and_replace,
            abi.GNTTABOP_copy: self.copying.copy,
            abi.GNTTABOP_transfer: TransferOps(hv).transfer,
            abi.GNTTABOP_setup_table: control.setup_table,
            abi.GNTTABOP_query_size: control.query_size,
            abi.GNTTABOP_get_version: control.get_version,
            abi.GNTTABOP_set_version: control.set_version,
            abi.GNTTABOP_get_status_frames: control.get_status_frames,
            abi.GNTTABOP_swap_grant_ref: control.swap_grant_ref,
            abi.GNTTABOP_cache_flush: control.cache_flush,
        }
        hv.mm.holders.append(lambda: held_references(hv))
        self.hypercalls = {HYPERCALL: self.grant_table_op}

    def grant_table_op(self, vcpu: VCpu, cmd: int, uop: int, count: int, _a4: int, _a5: int) -> int:
        """Run `count` operations of kind `cmd` on the arguments at `uop`.

        Returns 0 when all were carried out, however each of them ended (that is in its `status`), or a negative errno.
        """
        cmd &= 0xFFFFFFFF
        count &= 0xFFFFFFFF
        opaque = cmd & ~CMD_MASK
        cmd &= CMD_MASK
        if count >= 0x80000000 or (opaque and cmd != abi.GNTTABOP_cache_flush):
            return -errno.EINVAL
        operation = self._operations.get(cmd)
        if operation is None:
            return -errno.ENOSYS
        uop &= 0xFFFFFFFFFFFFFFFF
        if cmd in POINTER_CHECKED and not is_guest_address(uop):
            return -errno.EFAULT
        if opaque:
            return self._control.cache_flush(vcpu, uop, count, opaque)
        return operation(vcpu, uop, count)

    # -- the life of a domain -----------------------------------------------------------------------------------------

    def init_domain(
        self, domain: Domain, max_frames: int, max_maptrack_frames: int, max_version: int = MAX_VERSION
    ) -> None:
        """Give a new domain its table of one frame. Negative limits stand for the host's defaults.

        Raises HypercallError: EINVAL for limits beyond the host's, or under which no domain can be; ENOMEM.
        """
        frames = MAX_FRAMES if max_frames < 0 else max_frames
        maptrack_frames = MAX_MAPTRACK_FRAMES if max_maptrack_frames < 0 else max_maptrack_frames
        if not (INITIAL_FRAMES <= frames <= MAX_FRAMES and maptrack_frames <= MAX_MAPTRACK_FRAMES):
            raise HypercallError(errno.EINVAL)
        if not 1 <= max_version <= MAX_VERSION:
            raise HypercallError(errno.EINVAL)
        table = GrantTable(domain, frames, maptrack_frames, max_version)
        if not table.grow(INITIAL_FRAMES):
            raise HypercallError(errno.ENOMEM)
        domain.grant_table = table

    def destroy_domain(self, domain: Domain) -> Iterator[bool]:
        """Release what a dying domain has mapped of others, step by step.

        What others have mapped of it stays, and so do the frames of its table (`FrameTable.withdraw_lent`).
        """
        return release_mappings(domain)

    def free_domain(self, domain: Domain) -> None:
        """Free the table of a domain that is gone."""
        domain.grant_table.free()
