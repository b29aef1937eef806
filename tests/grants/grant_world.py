"""Domains that grant, map and copy pages by hypercall."""

from __future__ import annotations

import struct
from typing import Any

import bare_guest

from hypervisor.abi import grant_table as abi
from hypervisor.abi import xen
from hypervisor.abi.layout import Layout
from hypervisor.grant_table.check import leaks

GRANT_TABLE_OP = xen.__HYPERVISOR_grant_table_op


class Guest(bare_guest.Guest):
    """A domain with the grant operations at hand."""

    @property
    def table(self) -> Any:
        return self.domain.grant_table

    def raw(self, cmd: int, va: int, count: int, *, vcpu: int = 0) -> int:
        return self.hypercall(GRANT_TABLE_OP, cmd, va, count, vcpu=vcpu)

    def batch(self, cmd: int, layout: Layout, ops: list[Any], *, at: int | None = None, vcpu: int = 0) -> list[Any]:
        """Run a batch that must return 0; returns the structures as Xen left them."""
        va = self.args if at is None else at
        self.poke(va, b"".join(layout.pack(**op) for op in ops))
        assert self.raw(cmd, va, len(ops), vcpu=vcpu) == 0
        data = self.peek(va, layout.size * len(ops))
        return [layout.unpack_from(data, layout.size * index) for index in range(len(ops))]

    def one(self, cmd: int, layout: Layout, *, vcpu: int = 0, **fields: Any) -> Any:
        return self.batch(cmd, layout, [fields], vcpu=vcpu)[0]

    # -- grants -----------------------------------------------------------------------------------------------------

    def entry_at(self, ref: int) -> int:
        return (self.table.shared[ref // 512] << 12) + ref % 512 * 8

    def grant(self, ref: int, to: Guest | int, mfn: int, flags: int = abi.GTF_permit_access) -> None:
        """Write a version 1 entry."""
        domid = to if isinstance(to, int) else to.domid
        struct.pack_into("<HHI", self.hv.memory.b, self.entry_at(ref), flags, domid, mfn)

    def set_flags(self, ref: int, flags: int) -> None:
        struct.pack_into("<H", self.hv.memory.b, self.entry_at(ref), flags)

    def flags(self, ref: int) -> int:
        return struct.unpack_from("<H", self.hv.memory.b, self.entry_at(ref))[0]

    def entry(self, ref: int) -> tuple[int, int, int]:
        return struct.unpack_from("<HHI", self.hv.memory.b, self.entry_at(ref))

    def map(
        self, granter: Guest | int, ref: int, va: int = 0, flags: int = abi.GNTMAP_host_map, *, vcpu: int = 0
    ) -> Any:
        domid = granter if isinstance(granter, int) else granter.domid
        return self.one(
            abi.GNTTABOP_map_grant_ref,
            abi.gnttab_map_grant_ref,
            vcpu=vcpu,
            host_addr=va,
            flags=flags,
            ref=ref,
            dom=domid,
            status=0x55,
            handle=0xDEAD,
            dev_bus_addr=0x7777,
        )

    def unmap(self, handle: int, va: int = 0, bus: int = 0, *, vcpu: int = 0) -> int:
        return self.one(
            abi.GNTTABOP_unmap_grant_ref,
            abi.gnttab_unmap_grant_ref,
            vcpu=vcpu,
            host_addr=va,
            dev_bus_addr=bus,
            handle=handle,
            status=0x55,
        ).status

    def replace(self, handle: int, va: int, new: int) -> int:
        return self.one(
            abi.GNTTABOP_unmap_and_replace,
            abi.gnttab_unmap_and_replace,
            host_addr=va,
            new_addr=new,
            handle=handle,
            status=0x55,
        ).status

    def copy(self, source: tuple[int, int, int], dest: tuple[int, int, int], length: int, flags: int) -> int:
        """GNTTABOP_copy of one piece; an end is (reference or frame, domid, offset)."""
        return self.copies([(source, dest, length, flags)])[0]

    def copies(self, ops: list[tuple[tuple[int, int, int], tuple[int, int, int], int, int]]) -> list[int]:
        codec = struct.Struct("<QHH4xQHH4xHHh2x")
        self.poke(self.args, b"".join(codec.pack(*s, *d, length, flags, 0x55) for s, d, length, flags in ops))
        assert self.raw(abi.GNTTABOP_copy, self.args, len(ops)) == 0
        data = self.peek(self.args, codec.size * len(ops))
        return [fields[-1] for fields in codec.iter_unpack(data)]

    def transfer(self, mfn: int, to: Guest | int, ref: int) -> int:
        domid = to if isinstance(to, int) else to.domid
        return self.one(abi.GNTTABOP_transfer, abi.gnttab_transfer, mfn=mfn, domid=domid, ref=ref, status=0x55).status

    def setup_table(self, nr_frames: int, domid: int = xen.DOMID_SELF, frame_list: int | None = None) -> Any:
        return self.one(
            abi.GNTTABOP_setup_table,
            abi.gnttab_setup_table,
            dom=domid,
            nr_frames=nr_frames,
            status=0x55,
            frame_list=self.spare if frame_list is None else frame_list,
        ).status

    def query_size(self, domid: int = xen.DOMID_SELF) -> Any:
        return self.one(
            abi.GNTTABOP_query_size,
            abi.gnttab_query_size,
            dom=domid,
            nr_frames=0x7777,
            max_nr_frames=0x7777,
            status=0x55,
        )


class World(bare_guest.World):
    """A host whose domains are such guests."""

    guest_type = Guest

    def leaks(self) -> list[str]:
        return [leak for domain in self.hv.domains.values() for leak in leaks(domain)]
