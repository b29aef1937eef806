"""HYPERVISOR_sysctl and HYPERVISOR_platform_op, one operation after the other."""

from __future__ import annotations

import struct

import pytest
from core_world import MS, World

from hypervisor.abi import domctl, errno, platform, xen
from hypervisor.abi import grant_table as gnt
from hypervisor.abi import sysctl as abi
from hypervisor.log import WARNING

EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENOENT, ENOSYS, ENXIO, EOPNOTSUPP, EPERM, ESRCH = (
    -errno.EBUSY,
    -errno.EEXIST,
    -errno.EFAULT,
    -errno.EINVAL,
    -errno.ENODEV,
    -errno.ENOENT,
    -errno.ENOSYS,
    -errno.ENXIO,
    -errno.EOPNOTSUPP,
    -errno.EPERM,
    -errno.ESRCH,
)
NOWHERE = 0x700000
CREDIT2 = domctl.XEN_SCHEDULER_CREDIT2


def sysctl(guest, cmd, **member):
    """Returns the result, or the member of the union that Xen filled in."""
    fields = {"cmd": cmd, "interface_version": abi.XEN_SYSCTL_INTERFACE_VERSION, "u": member}
    rc, op = guest.call(xen.HYPERVISOR_sysctl, layout=abi.xen_sysctl, **fields)
    return rc if rc or not member else getattr(op.u, next(iter(member)))


def platform_op(guest, cmd, **member):
    fields = {"cmd": cmd, "interface_version": platform.XENPF_INTERFACE_VERSION, "u": member}
    rc, op = guest.call(xen.HYPERVISOR_platform_op, layout=platform.xen_platform_op, **fields)
    return rc if rc or not member else getattr(op.u, next(iter(member)))


class TestHost:
    def test_physinfo(self, pair):
        told = sysctl(pair.dom0, abi.XEN_SYSCTL_physinfo, physinfo={})
        frames = pair.hv.memory.frames
        assert (told.nr_cpus, told.max_cpu_id, told.nr_nodes, told.max_node_id) == (1, 0, 1, 63)
        assert (told.total_pages, told.max_mfn, told.free_pages) == (frames, frames - 1, pair.hv.frames.free_frames)
        assert told.capabilities & abi.XEN_SYSCTL_PHYSCAP_gnttab_v2
        assert not told.capabilities & (abi.XEN_SYSCTL_PHYSCAP_hvm | abi.XEN_SYSCTL_PHYSCAP_directio)
        assert sysctl(pair.domu, abi.XEN_SYSCTL_physinfo, physinfo={}) == EPERM

    def test_topology(self):
        dom0 = World(pcpus=3).guest()
        at = dom0.va(0)
        told = sysctl(dom0, abi.XEN_SYSCTL_cputopoinfo, cputopoinfo={"num_cpus": 0, "cputopo": 0})
        assert told.num_cpus == 3
        told = sysctl(dom0, abi.XEN_SYSCTL_cputopoinfo, cputopoinfo={"num_cpus": 2, "cputopo": at})
        assert (told.num_cpus, struct.unpack("<6I", dom0.peek(at, 24))) == (2, (0, 0, 0, 1, 0, 0))
        wanted = {"num_cpus": 9, "cputopo": NOWHERE}
        assert sysctl(dom0, abi.XEN_SYSCTL_cputopoinfo, cputopoinfo=wanted) == EFAULT

    def test_nodes(self, pair):
        dom0 = pair.dom0
        at = dom0.va(0)
        assert sysctl(dom0, abi.XEN_SYSCTL_numainfo, numainfo={"num_nodes": 5}).num_nodes == 1
        wanted = {"num_nodes": 5, "meminfo": at, "distance": at + 64}
        assert sysctl(dom0, abi.XEN_SYSCTL_numainfo, numainfo=wanted).num_nodes == 1
        assert struct.unpack("<QQ", dom0.peek(at, 16)) == (64 << 20, pair.hv.frames.free_frames << 12)
        assert struct.unpack("<I", dom0.peek(at + 64, 4)) == (10,)
        wanted = {"num_nodes": 0, "meminfo": NOWHERE}
        assert sysctl(dom0, abi.XEN_SYSCTL_numainfo, numainfo=wanted).num_nodes == 0

    def test_pci_devices(self, pair):
        dom0 = pair.dom0
        wanted = {"num_devs": 2, "devs": dom0.va(0), "nodes": dom0.va(1)}
        assert sysctl(dom0, abi.XEN_SYSCTL_pcitopoinfo, pcitopoinfo=wanted).num_devs == 2
        assert struct.unpack("<2I", dom0.peek(dom0.va(1), 8)) == (abi.XEN_INVALID_DEV,) * 2
        assert sysctl(dom0, abi.XEN_SYSCTL_pcitopoinfo, pcitopoinfo={"num_devs": 2}) == EINVAL
        assert sysctl(dom0, abi.XEN_SYSCTL_pcitopoinfo, pcitopoinfo={**wanted, "nodes": NOWHERE}) == EFAULT

    @pytest.mark.parametrize("pcpus", [1, 2])
    def test_idle_time(self, pcpus):
        world = World(pcpus=pcpus)
        dom0, domu = world.guest(), world.guest()

        def program(_cpu):
            yield 3 * MS
            domu.shutdown(0)
            yield 0

        domu.runs(program)
        world.run(until=10 * MS)
        at = dom0.va(0)
        assert sysctl(dom0, abi.XEN_SYSCTL_getcpuinfo, getcpuinfo={"max_cpus": 9, "info": at}).nr_cpus == pcpus
        idle = struct.unpack(f"<{pcpus}Q", dom0.peek(at, 8 * pcpus))
        now = world.hv.now()
        assert 3 * MS <= pcpus * now - sum(idle) < 4 * MS
        world.hv.domain_ops.kill(domu.domain)
        assert world.hv.sched.idle_time(0) == idle[0] + world.hv.now() - now
        wanted = {"max_cpus": 1, "info": NOWHERE}
        assert sysctl(dom0, abi.XEN_SYSCTL_getcpuinfo, getcpuinfo=wanted) == EFAULT

    def test_free_memory_by_the_width_of_addresses(self, pair):
        def free(low, high, node=-1):
            wanted = {"min_bitwidth": low, "max_bitwidth": high, "node": node}
            return sysctl(pair.dom0, abi.XEN_SYSCTL_availheap, availheap=wanted).avail_bytes

        everything = pair.hv.frames.free_frames << 12
        assert free(0, 0) == free(0, 0, 0) == free(0, 64) == free(0, 26) == everything
        assert free(0, 0, 1) == 0
        assert 0 < free(0, 25) < everything
        assert free(0, 25) + free(26, 0) == everything
        assert free(27, 0) == 0

    def test_what_this_machine_has_not(self, pair):
        answers = {
            abi.XEN_SYSCTL_get_pmstat: ENODEV,
            abi.XEN_SYSCTL_psr_cmt_op: ENODEV,
            abi.XEN_SYSCTL_psr_alloc: ENODEV,
            abi.XEN_SYSCTL_coverage_op: EOPNOTSUPP,
            abi.XEN_SYSCTL_perfc_op: ENOSYS,
            abi.XEN_SYSCTL_lockprof_op: ENOSYS,
            99: ENOSYS,
        }
        assert {cmd: sysctl(pair.dom0, cmd) for cmd in answers} == answers
        for op, rc in ((0, EEXIST), (1, EINVAL), (2, EOPNOTSUPP), (9, EOPNOTSUPP)):
            assert sysctl(pair.dom0, abi.XEN_SYSCTL_cpu_hotplug, cpu_hotplug={"op": op}) == rc
        assert sysctl(pair.dom0, abi.XEN_SYSCTL_get_cpu_levelling_caps, cpu_levelling_caps={}).caps == 0


class TestConsole:
    def read(self, guest, count, **fields):
        guest.poke(guest.va(0), bytes(64))
        wanted = {"buffer": guest.va(0), "count": count, **fields}
        told = sysctl(guest, abi.XEN_SYSCTL_readconsole, readconsole=wanted)
        return told if isinstance(told, int) else (guest.peek(guest.va(0), told.count), told.index)

    def test_the_log(self, pair):
        log = pair.hv.xen_log
        log.clear(log.total)
        begin = log.total
        for word in ("one", "two", "three"):
            pair.hv.log(word, WARNING - 1)
        assert self.read(pair.dom0, 8) == (b"(XEN) on", begin + 8)
        assert self.read(pair.dom0, 64, incremental=1, index=begin + 8)[0] == b"e\n(XEN) two\n(XEN) three\n"
        assert self.read(pair.dom0, 64, incremental=1, index=begin + 10, clear=1)[0] == b"(XEN) two\n(XEN) three\n"
        assert self.read(pair.dom0, 64)[0] == b""
        pair.hv.log("four", WARNING - 1)
        assert self.read(pair.dom0, 64, incremental=1, index=7)[0] == b"(XEN) four\n"
        assert self.read(pair.dom0, 64, buffer=NOWHERE) == EFAULT
        assert self.read(pair.dom0, 0, buffer=NOWHERE)[0] == b""

    def test_what_was_overwritten_is_gone(self, pair):
        for number in range(1500):
            pair.hv.log(f"line {number}", WARNING - 1)
        (data, index) = self.read(pair.dom0, 32)
        assert len(data) == 32
        assert index == pair.hv.xen_log.total - 16384 + 32

    def test_what_keys_print(self, pair):
        dom0, domu = pair.dom0, pair.domu
        dom0.bind(1, domu.alloc(remote=0))
        table = domu.domain.grant_table
        struct.pack_into("<HHI", pair.hv.memory.b, table.slot[8] << 3, 1, 0, domu.pages[0])
        grants, op = xen.HYPERVISOR_grant_table_op, {"ref": 8, "dom": 1, "flags": gnt.GNTMAP_device_map}
        dom0.poke(dom0.args, gnt.gnttab_map_grant_ref.pack(**op))
        assert dom0.hypercall(grants, gnt.GNTTABOP_map_grant_ref, dom0.args, 1) == 0
        log = pair.hv.xen_log
        log.clear(log.total)
        dom0.poke(dom0.va(0), b"hegq?")
        wanted = {"keys": dom0.va(0), "nr_keys": 5}
        assert sysctl(dom0, abi.XEN_SYSCTL_debug_keys, debug_keys=wanted).nr_keys == 5
        text = log.read(None, 1 << 14)[1].decode()
        for line in (
            "key 'g' => print grant table usage",
            "1 interdomain with port 1 of domain 1, vCPU 0",
            f"[8] frame {domu.pages[0]:#x} in use by domain 0: 0/1/0/0",
            "domain 1: alive, ",
            "vCPU 1 on pCPU 0: down, paused, upcall_pending 00 upcall_mask 01",
        ):
            assert f"{line}" in text
        bus = {"handle": 0, "dev_bus_addr": domu.pages[0] << 12}
        dom0.poke(dom0.args, gnt.gnttab_unmap_grant_ref.pack(**bus))
        assert dom0.hypercall(grants, gnt.GNTTABOP_unmap_grant_ref, dom0.args, 1) == 0
        assert not table.pin[8]

    def test_keys(self, pair):
        wanted = {"keys": pair.dom0.va(0), "nr_keys": 3}
        assert sysctl(pair.dom0, abi.XEN_SYSCTL_debug_keys, debug_keys=wanted).nr_keys == 3
        wanted = {"keys": pair.dom0.spare + 4094, "nr_keys": 3}
        assert sysctl(pair.dom0, abi.XEN_SYSCTL_debug_keys, debug_keys=wanted) == EFAULT

    def test_trace_buffers_are_off(self, pair):
        def tbuf(cmd, **fields):
            return sysctl(pair.dom0, abi.XEN_SYSCTL_tbuf_op, tbuf_op={"cmd": cmd, **fields})

        told = tbuf(abi.XEN_SYSCTL_TBUFOP_get_info, buffer_mfn=5, size=5)
        assert (told.evt_mask, told.buffer_mfn, told.size) == (0x0FFFF000, 0, 0)
        assert tbuf(abi.XEN_SYSCTL_TBUFOP_set_evt_mask, evt_mask=0x1F000).evt_mask == 0x1F000
        assert tbuf(abi.XEN_SYSCTL_TBUFOP_get_info).evt_mask == 0x1F000
        assert tbuf(abi.XEN_SYSCTL_TBUFOP_enable) == EINVAL
        assert tbuf(abi.XEN_SYSCTL_TBUFOP_set_size) == ENOSYS
        assert tbuf(6) == EINVAL
        assert tbuf(abi.XEN_SYSCTL_TBUFOP_set_cpu_mask, cpu_mask={"bitmap": NOWHERE, "nr_bits": 8}) == EFAULT


class TestPools:
    def test_the_scheduler(self, pair):
        assert sysctl(pair.dom0, abi.XEN_SYSCTL_sched_id, sched_id={}).sched_id == CREDIT2

        def params(cmd, ratelimit=0, **fields):
            wanted = {"cmd": cmd, "sched_id": CREDIT2, "u": {"sched_credit2": {"ratelimit_us": ratelimit}}, **fields}
            told = sysctl(pair.dom0, abi.XEN_SYSCTL_scheduler_op, scheduler_op=wanted)
            return told if isinstance(told, int) else told.u.sched_credit2.ratelimit_us

        put, get = abi.XEN_SYSCTL_SCHEDOP_putinfo, abi.XEN_SYSCTL_SCHEDOP_getinfo
        assert params(get) == 1000
        assert [params(put, limit) for limit in (99, 500001, 100)] == [EINVAL, EINVAL, 100]
        assert (params(get), params(put, 0), params(get)) == (100, 0, 0)
        assert (params(2), params(get, sched_id=5), params(get, cpupool_id=1)) == (EINVAL, EINVAL, ESRCH)
        assert params(2, cpupool_id=1) == EINVAL

    def test_the_one_pool(self, pair):
        dom0 = pair.dom0

        def pool(op, **fields):
            wanted = {"op": op, "cpumap": {"bitmap": dom0.va(0), "nr_bits": 16}, **fields}
            return sysctl(dom0, abi.XEN_SYSCTL_cpupool_op, cpupool_op=wanted)

        create, destroy, info, add, remove, move, free = range(1, 8)
        told = pool(info)
        assert (told.sched_id, told.n_dom, dom0.peek(dom0.va(0), 2)) == (CREDIT2, 2, b"\x01\0")
        assert pool(free).op == free
        assert dom0.peek(dom0.va(0), 2) == b"\0\0"
        assert (pool(create), pool(create, cpupool_id=3, sched_id=4)) == (EEXIST, ENOENT)
        assert (pool(destroy), pool(0), pool(8)) == (EBUSY, ENOSYS, ENOSYS)
        assert [pool(op, cpupool_id=1) for op in (destroy, info, add, remove)] == [ENOENT] * 4
        assert [pool(add, cpu=cpu) for cpu in (0, 1, 0xFFFFFFFF)] == [ENODEV, EINVAL, ENODEV]
        assert [pool(remove, cpu=cpu) for cpu in (0, 1, 0xFFFFFFFF)] == [EINVAL, EINVAL, EINVAL]
        assert [pool(move, domid=domid) for domid in (0, 77)] == [EPERM, ESRCH]
        assert pool(move, domid=1).domid == 1
        assert pool(move, domid=1, cpupool_id=1) == ENOENT


class TestPlatform:
    def test_the_clock(self, pair):
        def clock(guest):
            base = guest.domain.shared_info_mfn << 12
            at = base + xen.shared_info.offset("wc_sec") >> 2
            return pair.hv.memory.i[at], pair.hv.memory.i[at + 1]

        settime = {"secs": 1000, "nsecs": 7, "system_time": 10_000_000_000}
        assert platform_op(pair.dom0, platform.XENPF_settime64, settime64=settime).secs == 1000
        assert clock(pair.dom0) == clock(pair.domu) == (990, 7)
        assert platform_op(pair.dom0, platform.XENPF_settime64, settime64={**settime, "mbz": 1}) == EINVAL
        settime = {"secs": 0xFFFFFFFF, "nsecs": 0xFFFFFFFF, "system_time": 0}
        assert platform_op(pair.dom0, platform.XENPF_settime32, settime32=settime).secs == 0xFFFFFFFF
        assert clock(pair.domu) == (3, 294967295)
        assert platform_op(pair.domu, platform.XENPF_settime32, settime32=settime) == EPERM

    def test_processors(self, pair):
        told = platform_op(pair.dom0, platform.XENPF_get_cpuinfo, pcpu_info={"xen_cpuid": 0})
        assert (told.flags, told.apic_id, told.max_present) == (platform.XEN_PCPU_FLAGS_ONLINE, 0, 0)
        told = platform_op(pair.dom0, platform.XENPF_get_cpuinfo, pcpu_info={"xen_cpuid": 1})
        assert told.flags == platform.XEN_PCPU_FLAGS_INVALID
        for cpu, on, off in ((0, 0, EOPNOTSUPP), (1, EINVAL, EINVAL)):
            told = platform_op(pair.dom0, platform.XENPF_cpu_online, cpu_ol={"cpuid": cpu})
            assert told == on if on else told.cpuid == cpu
            assert platform_op(pair.dom0, platform.XENPF_cpu_offline, cpu_ol={"cpuid": cpu}) == off
        parking = {"type": platform.XEN_CORE_PARKING_GET, "idle_nums": 5}
        assert platform_op(pair.dom0, platform.XENPF_core_parking, core_parking=parking).idle_nums == 0
        assert platform_op(pair.dom0, platform.XENPF_core_parking, core_parking={"type": 3}) == EINVAL
        for entries, rc in ((1, ENOSYS), (4, EINVAL)):
            assert platform_op(pair.dom0, platform.XENPF_resource_op, resource_op={"nr_entries": entries}) == rc

    def test_firmware(self, pair):
        def firmware(kind, index=0):
            wanted = {"type": kind, "index": index}
            told = platform_op(pair.dom0, platform.XENPF_firmware_info, firmware_info=wanted)
            return told if isinstance(told, int) else told.type

        keys = platform.XEN_FW_KBD_SHIFT_FLAGS
        assert [firmware(kind) for kind in range(7)] == [EINVAL, ESRCH, ESRCH, ESRCH, ENOSYS, keys, EINVAL]
        assert firmware(keys, 1) == ESRCH

    def test_what_this_machine_has_not(self, pair):
        answers = {
            platform.XENPF_add_memtype: ENXIO,
            platform.XENPF_del_memtype: ENXIO,
            platform.XENPF_read_memtype: EINVAL,
            platform.XENPF_microcode_update: EINVAL,
            platform.XENPF_platform_quirk: EINVAL,
            platform.XENPF_efi_runtime_call: EOPNOTSUPP,
            platform.XENPF_enter_acpi_sleep: EPERM,
            platform.XENPF_change_freq: ENOSYS,
            platform.XENPF_getidletime: ENOSYS,
            platform.XENPF_set_processor_pminfo: EINVAL,
            0: ENOSYS,
            9999: ENOSYS,
        }
        assert {cmd: platform_op(pair.dom0, cmd) for cmd in answers} == answers
