"""The control interface: what a toolstack asks of Xen, as the code of a privileged domain (libxc's part).

Each call packs its arguments into pages of the domain that makes it and enters Xen by hypercall number; results are
read back from the same pages. Nothing may wait between packing and the call, and nothing does: these are plain methods.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from guest_kernel.errors import XenError
from guest_kernel.kernel import Kernel
from guest_kernel.mm import PAGE_SIZE, ForeignMapping, Page
from hypervisor.abi import domctl, errno, memory, physdev, sysctl, xen
from hypervisor.abi.event_channel import EVTCHNOP_alloc_unbound, evtchn_alloc_unbound
from hypervisor.abi.grant_table import GTF_permit_access, grant_entry_v1
from hypervisor.abi.layout import Layout, Value
from hypervisor.abi.version import XENVER_extraversion, XENVER_version

LIST_BYTES = PAGE_SIZE
FRAMES_PER_CALL = LIST_BYTES // 8
"""How many frame numbers one memory operation carries: a page of them."""

EXTRAVERSION_LEN = 16
"""xen_extraversion_t (version.h)"""
_MAX_RETRIES = 1 << 16

_HEADER = struct.Struct("<IIH6x")
"""What each xen_domctl begins with: cmd, interface_version, domain."""
_DOMID = domctl.xen_domctl.offset("domain") >> 1
_MEMBER = domctl.xen_domctl.offset("u")
_STATE = struct.Struct("<H2xI")
"""What a xen_domctl_getdomaininfo begins with."""


@attrs.define
class DomainState:
    """Number and XEN_DOMINF_* flags of a domain (the beginning of xen_domctl_getdomaininfo)."""

    domain: int
    flags: int


class Xc:
    """An open control interface. One per domain that builds others; give it back with `close`."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._call = kernel.cpu.hypercall
        self._page: Page = kernel.mm.alloc_page()
        self._list: Page = kernel.mm.alloc_page()
        # A vcpu_guest_context is larger than a page and must be contiguous in virtual memory.
        self._context_pages = kernel.mm.alloc_pages(-(-xen.vcpu_guest_context.size // PAGE_SIZE))
        self._context = kernel.mm.map_machine([page.mfn for page in self._context_pages])
        self._commands = {number: name.removeprefix("XEN_DOMCTL_") for number, name in domctl.NAMES.items()}

    def close(self) -> None:
        """Give the argument pages back."""
        self.kernel.mm.unmap_foreign(self._context)
        self.kernel.mm.free_pages_of([self._page, self._list, *self._context_pages])

    # -- domctl ---------------------------------------------------------------------------------------------------

    def domctl(self, command: int, domid: int, layout: Layout | None = None, /, **values: Any) -> None:
        """Make one domctl with `values` in its member of the union, which has this layout. Raises XenError.

        Of the rest of the structure Xen reads nothing. What it writes is in the argument page afterwards.
        """
        view = self._page.view
        _HEADER.pack_into(view, 0, command, domctl.XEN_DOMCTL_INTERFACE_VERSION, domid)
        if layout is not None:
            layout.pack_into(view, _MEMBER, **values)
        rc = self._call(xen.HYPERVISOR_domctl, self._page.va)
        if rc < 0:
            raise XenError(-rc, f"domctl {self._commands.get(command, command)} of domain {domid}")

    def create_domain(
        self,
        handle: bytes,
        *,
        max_vcpus: int = 1,
        max_evtchn_port: int = 1023,
        max_grant_frames: int = 32,
        max_maptrack_frames: int = 1024,
    ) -> int:
        """Make a domain with no memory, paused; return its number. Raises XenError (ENOMEM, EINVAL)."""
        self.domctl(
            domctl.XEN_DOMCTL_createdomain,
            0,
            domctl.xen_domctl_createdomain,
            handle=handle,
            max_vcpus=max_vcpus,
            max_evtchn_port=max_evtchn_port,
            max_grant_frames=max_grant_frames,
            max_maptrack_frames=max_maptrack_frames,
            grant_opts=1,  # the highest grant table version it may use
            arch={"emulation_flags": 0},
        )
        return int(self._page.h[_DOMID])

    def max_vcpus(self, domid: int, count: int) -> None:
        """Make the vCPUs of a domain."""
        self.domctl(domctl.XEN_DOMCTL_max_vcpus, domid, domctl.xen_domctl_max_vcpus, max=count)

    def max_mem(self, domid: int, kib: int) -> None:
        """Set how much memory a domain may have."""
        self.domctl(domctl.XEN_DOMCTL_max_mem, domid, domctl.xen_domctl_max_mem, max_memkb=kib)

    def set_handle(self, domid: int, handle: bytes) -> None:
        """Give a domain another UUID (16 bytes)."""
        self.domctl(domctl.XEN_DOMCTL_setdomainhandle, domid, domctl.xen_domctl_setdomainhandle, handle=handle)

    def set_address_size(self, domid: int, bits: int) -> None:
        """Choose the width of a PV guest."""
        self.domctl(domctl.XEN_DOMCTL_set_address_size, domid, domctl.xen_domctl_address_size, size=bits)

    def set_vcpu_context(self, domid: int, vcpu_id: int, context: bytes) -> None:
        """Set the registers of a vCPU from a packed vcpu_guest_context."""
        self._context[0][:] = context[:PAGE_SIZE]
        self._context[1][: len(context) - PAGE_SIZE] = context[PAGE_SIZE:]
        self.domctl(
            domctl.XEN_DOMCTL_setvcpucontext, domid, domctl.xen_domctl_vcpucontext, vcpu=vcpu_id, ctxt=self._context.va
        )

    def hypercall_init(self, domid: int, mfn: int) -> None:
        """Fill a page of a domain with Xen's hypercall stubs."""
        self.domctl(domctl.XEN_DOMCTL_hypercall_init, domid, domctl.xen_domctl_hypercall_init, gmfn=mfn)

    def pause(self, domid: int) -> None:
        """Stop a domain (counted)."""
        self.domctl(domctl.XEN_DOMCTL_pausedomain, domid)

    def unpause(self, domid: int) -> None:
        """Let a domain run."""
        self.domctl(domctl.XEN_DOMCTL_unpausedomain, domid)

    def destroy(self, domid: int) -> None:
        """Destroy a domain; Xen asks to be called again while there is more to release. Raises XenError (ESRCH)."""
        for _ in range(_MAX_RETRIES):
            try:
                self.domctl(domctl.XEN_DOMCTL_destroydomain, domid)
            except XenError as error:
                if error.errno != errno.EAGAIN:
                    raise
            else:
                return
        raise XenError(errno.EAGAIN, f"domctl destroydomain of domain {domid}")

    def domain_info(self, domid: int) -> Value | None:
        """Return the xen_domctl_getdomaininfo of a domain, None if it does not exist."""
        try:
            self.domctl(domctl.XEN_DOMCTL_getdomaininfo, domid)
        except XenError as error:
            if error.errno == errno.ESRCH:
                return None
            raise
        return domctl.xen_domctl_getdomaininfo.unpack_from(self._page.view, _MEMBER)

    def domain_state(self, domid: int) -> DomainState | None:
        """Return of `domain_info` what most want to know, at a fraction of the price."""
        try:
            self.domctl(domctl.XEN_DOMCTL_getdomaininfo, domid)
        except XenError as error:
            if error.errno == errno.ESRCH:
                return None
            raise
        return DomainState(*_STATE.unpack_from(self._page.view, _MEMBER))

    def domain_states(self) -> list[DomainState]:
        """Return the state of all domains, by number."""
        size = domctl.xen_domctl_getdomaininfo.size
        room = PAGE_SIZE // size
        found: list[DomainState] = []
        first = 0
        while True:
            op = self.sysctl(
                sysctl.XEN_SYSCTL_getdomaininfolist,
                "getdomaininfolist",
                first_domain=first,
                max_domains=room,
                buffer=self._list.va,
            )
            count = op.u.getdomaininfolist.num_domains
            found += [DomainState(*_STATE.unpack_from(self._list.view, index * size)) for index in range(count)]
            if count < room:
                return found
            first = found[-1].domain + 1

    def physinfo(self) -> Value:
        """Return the host's xen_sysctl_physinfo."""
        return self.sysctl(sysctl.XEN_SYSCTL_physinfo, "physinfo").u.physinfo  # type: ignore[no-any-return]

    @property
    def scratch(self) -> Page:
        """A page for lists and bitmaps that a call reads or writes; the next one overwrites it."""
        return self._list

    def answer(self) -> Value:
        """Return the union of the last domctl, as Xen left it."""
        return domctl.xen_domctl.unpack_from(self._page.view, 0).u  # type: ignore[no-any-return]

    def xen_version(self) -> tuple[int, int, str]:
        """Return what this Xen is: major and minor version, and what its build says behind them."""
        number = self._call(xen.HYPERVISOR_xen_version, XENVER_version, 0)
        self._call(xen.HYPERVISOR_xen_version, XENVER_extraversion, self._page.va)
        extra = bytes(self._page.view[:EXTRAVERSION_LEN]).split(b"\0")[0].decode()
        return number >> 16, number & 0xFFFF, extra

    def sysctl(self, command: int, member: str, /, **values: Any) -> Value:
        """Make one sysctl with `values` in this member of the union; returns what Xen left. Raises XenError."""
        sysctl.xen_sysctl.pack_into(
            self._page.view,
            0,
            cmd=command,
            interface_version=sysctl.XEN_SYSCTL_INTERFACE_VERSION,
            u={member: values},
        )
        rc = self._call(xen.HYPERVISOR_sysctl, self._page.va)
        if rc < 0:
            raise XenError(-rc, f"sysctl {member}")
        return sysctl.xen_sysctl.unpack_from(self._page.view, 0)

    def ioport_permission(self, domid: int, first: int, count: int, *, allow: bool) -> None:
        """Let a domain use I/O ports, or not any more."""
        self.domctl(
            domctl.XEN_DOMCTL_ioport_permission,
            domid,
            domctl.xen_domctl_ioport_permission,
            first_port=first,
            nr_ports=count,
            allow_access=int(allow),
        )

    def irq_permission(self, domid: int, irq: int, *, allow: bool) -> None:
        """Let a domain use an interrupt line, or not any more."""
        self.domctl(
            domctl.XEN_DOMCTL_irq_permission, domid, domctl.xen_domctl_irq_permission, pirq=irq, allow_access=int(allow)
        )

    def map_pirq(self, domid: int, line: int) -> None:
        """Map an interrupt line to the PIRQ of the same number of a domain. Raises XenError."""
        self.kernel.hypercalls.operate(
            xen.HYPERVISOR_physdev_op,
            physdev.PHYSDEVOP_map_pirq,
            physdev.physdev_map_pirq,
            "PHYSDEVOP_map_pirq",
            domid=domid,
            type=physdev.MAP_PIRQ_TYPE_GSI,
            index=line,
            pirq=line,
        )

    # -- memory ---------------------------------------------------------------------------------------------------

    def populate_physmap(self, domid: int, first_pfn: int, count: int) -> array[int]:
        """Give a domain `count` pages from `first_pfn` on; return their machine frames.

        Raises XenError(ENOMEM) when Xen has not enough; what it gave stays with the domain.
        """
        mfns: array[int] = array("Q")
        words = self._list.q
        for start in range(first_pfn, first_pfn + count, FRAMES_PER_CALL):
            size = min(FRAMES_PER_CALL, first_pfn + count - start)
            words[:size] = memoryview(array("Q", range(start, start + size)))
            memory.xen_memory_reservation.pack_into(
                self._page.view, 0, extent_start=self._list.va, nr_extents=size, extent_order=0, domid=domid
            )
            done = self._call(xen.HYPERVISOR_memory_op, memory.XENMEM_populate_physmap, self._page.va)
            if done != size:
                code = -done if done < 0 else errno.ENOMEM
                raise XenError(code, f"populate_physmap: {len(mfns) + max(done, 0)} of {count} pages")
            mfns.extend(words[:size])
        return mfns

    def map_foreign(self, domid: int, mfns: Sequence[int], *, writable: bool = True) -> ForeignMapping:
        """Map pages of another domain. Raises XenError."""
        return self.kernel.mm.map_foreign(domid, mfns, writable)

    def unmap(self, mapping: ForeignMapping) -> None:
        """Undo `map_foreign`."""
        self.kernel.mm.unmap_foreign(mapping)

    def pin_l4(self, domid: int, mfn: int) -> None:
        """Let Xen validate and keep a whole page table tree of another domain. Raises XenError (EINVAL: it is bad)."""
        xen.mmuext_op.pack_into(self._page.view, 0, cmd=xen.MMUEXT_PIN_L4_TABLE, arg1={"mfn": mfn})
        rc = self._call(xen.HYPERVISOR_mmuext_op, self._page.va, 1, 0, domid)
        if rc < 0:
            raise XenError(-rc, f"mmuext_op PIN_L4_TABLE in domain {domid}")

    # -- event channels and grants on behalf of another domain --------------------------------------------------

    def alloc_unbound(self, domid: int, remote_domid: int) -> int:
        """Make a port in domain `domid` that `remote_domid` can bind to."""
        made = self.kernel.hypercalls.event_channel(
            EVTCHNOP_alloc_unbound,
            evtchn_alloc_unbound,
            f"EVTCHNOP_alloc_unbound in domain {domid}",
            dom=domid,
            remote_dom=remote_domid,
        )
        return int(made.port)

    def seed_grants(self, domid: int, entries: Iterable[tuple[int, int, int]]) -> None:
        """Write grants into a new domain's table: (reference, domain granted to, frame number).

        The frame number is the guest's own notion of its frames: a machine frame for PV. The table's first frame is
        mapped as a resource of that domain, so no cooperation of the guest is needed.
        """
        mapping = self._map_grant_frame(domid)
        try:
            for ref, grantee, frame in entries:
                at = ref * grant_entry_v1.size
                grant_entry_v1.pack_into(mapping[0], at, flags=GTF_permit_access, domid=grantee, frame=frame)
        finally:
            self.unmap(mapping)

    def _map_grant_frame(self, domid: int) -> ForeignMapping:
        words = self._list.q
        words[0] = 0
        memory.xen_mem_acquire_resource.pack_into(
            self._page.view,
            0,
            domid=domid,
            type=memory.XENMEM_resource_grant_table,
            id=memory.XENMEM_resource_grant_table_id_shared,
            nr_frames=1,
            frame=0,
            frame_list=self._list.va,
        )
        rc = self._call(xen.HYPERVISOR_memory_op, memory.XENMEM_acquire_resource, self._page.va)
        if rc < 0:
            raise XenError(-rc, f"acquire_resource of the grant table of domain {domid}")
        return self.map_foreign(domid, [words[0]])
