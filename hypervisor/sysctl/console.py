"""Operations on what Xen prints and records: its log, its keys, its trace buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno
from hypervisor.abi import sysctl as abi
from hypervisor.abi.trace import TRC_ALL
from hypervisor.bitmaps import read_bitmap
from hypervisor.debug_keys import handle_key
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu


class ConsoleOps:
    """Xen's log; keys; trace buffers, which are always off."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self._trace_events = TRC_ALL
        self.handlers = {
            abi.XEN_SYSCTL_readconsole: ("readconsole", self._readconsole),
            abi.XEN_SYSCTL_debug_keys: ("debug_keys", self._debug_keys),
            abi.XEN_SYSCTL_tbuf_op: ("tbuf_op", self._tbuf_op),
        }

    def _readconsole(self, vcpu: VCpu, value: Any) -> Any:
        """Copy out what Xen has printed, from `index` on if that is asked for; `clear` forgets what was read."""
        log = self.hv.xen_log
        start, data = log.read(value.index if value.incremental else None, value.count)
        if data:
            copy_to_guest(vcpu, value.buffer, data)
        if value.clear:
            log.clear(start + len(data))
        value.count = len(data)
        value.index = start + len(data) & 0xFFFFFFFF
        return value

    def _debug_keys(self, vcpu: VCpu, value: Any) -> None:
        """Take keys as if they were typed on Xen's console."""
        for at in range(value.nr_keys):
            handle_key(self.hv, chr(copy_from_guest(vcpu, value.keys + at, 1)[0]))

    def _tbuf_op(self, vcpu: VCpu, value: Any) -> Any:
        """Ask for or set what Xen's own trace buffers record. There are none, so that they cannot be switched on."""
        cmd = value.cmd
        if cmd == abi.XEN_SYSCTL_TBUFOP_get_info:
            value.evt_mask, value.buffer_mfn, value.size = self._trace_events, 0, 0
        elif cmd == abi.XEN_SYSCTL_TBUFOP_set_cpu_mask:
            read_bitmap(vcpu, value.cpu_mask, len(self.hv.sched.pcpus))
        elif cmd == abi.XEN_SYSCTL_TBUFOP_set_evt_mask:
            self._trace_events = value.evt_mask
        elif cmd == abi.XEN_SYSCTL_TBUFOP_set_size:
            raise HypercallError(errno.ENOSYS)
        elif cmd != abi.XEN_SYSCTL_TBUFOP_disable:
            raise HypercallError(errno.EINVAL)
        return value
