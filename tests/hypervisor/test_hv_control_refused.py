"""What belongs to the toolstack is refused to everybody else, before anything happens (XSA-77, 492, 499)."""

from types import SimpleNamespace

import pytest

from hypervisor.abi import domctl, errno, platform, sysctl, xen

EPERM = -errno.EPERM
KINDS = {
    "domctl": (xen.HYPERVISOR_domctl, domctl.xen_domctl, domctl.XEN_DOMCTL_INTERFACE_VERSION),
    "sysctl": (xen.HYPERVISOR_sysctl, sysctl.xen_sysctl, sysctl.XEN_SYSCTL_INTERFACE_VERSION),
    "platform_op": (xen.HYPERVISOR_platform_op, platform.xen_platform_op, platform.XENPF_INTERFACE_VERSION),
}
JUDGED_BEFORE = (
    domctl.XEN_DOMCTL_bind_pt_irq,
    domctl.XEN_DOMCTL_get_device_group,
    domctl.XEN_DOMCTL_iomem_permission,
    domctl.XEN_DOMCTL_ioport_mapping,
    domctl.XEN_DOMCTL_ioport_permission,
    domctl.XEN_DOMCTL_irq_permission,
    domctl.XEN_DOMCTL_memory_mapping,
    domctl.XEN_DOMCTL_set_target,
    domctl.XEN_DOMCTL_unbind_pt_irq,
)
"""Operations whose arguments Xen looks at before it asks who calls: an error in these is answered first."""
HIGHEST = {"domctl": 90, "sysctl": 40, "platform_op": 70}


MEMBERS = (
    "handle", "max_pages", "tot_pages", "pause_count", "shutdown_code", "is_dying", "max_evtchn_port", "active_ports",
    "ioports", "iomem", "irqs", "vm_assist", "time_offset", "debugger_attached", "tsc_mode", "target",
)  # fmt: skip


def accounting(pair: SimpleNamespace) -> list[object]:
    """What such operations change in a domain."""
    return [(domid, repr(getattr(domain, name))) for domid, domain in pair.hv.domains.items() for name in MEMBERS]


@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_of_the_toolstack(pair: SimpleNamespace, kind: str) -> None:
    number, layout, version = KINDS[kind]
    before = accounting(pair)
    for cmd in range(HIGHEST[kind] + 1):
        fields = {"cmd": cmd, "interface_version": version}
        for domid in (0, 1) if kind == "domctl" else (0,):
            if kind == "domctl":
                fields["domain"] = domid
            rc, op = pair.domu.call(number, layout=layout, **fields)
            judged = kind == "domctl" and cmd in JUDGED_BEFORE
            assert rc == EPERM or (judged and rc < 0), (cmd, domid, rc)
            assert (op.cmd, op.interface_version) == (cmd, version)
    assert accounting(pair) == before
