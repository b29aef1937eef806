"""Fills the tables of the documentation from hypervisor.abi: numbers, structures, offsets.

A page asks for a table by a comment, and the table stands between that and `<!-- end -->`:

    <!-- generated: hypercalls -->                            every hypercall, by number
    <!-- generated: operations event_channel -->              the operations of a module, its table NAMES
    <!-- generated: operations xen.MMUEXT_NAMES mmuext_op --> ... of another table; all with this argument
    <!-- generated: structures sched sched_poll ... -->       a table for each structure; without names, for all of a
                                                              module; with @operations, for those of its operations

What a person has written is kept: the titles of a table's columns and the cells to the right of the generated ones,
which belong to the name in their row. So texts are written on the page, and numbers are not.

    python docs/generate.py            write all pages anew
    python docs/generate.py --check    write nothing; say what is not in step, exit with 1 if something is not
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from hypervisor.abi import xen
from hypervisor.abi.layout import Field, Layout, Scalar, Union

DOCS = Path(__file__).resolve().parent
BLOCK = re.compile(
    r"^```.*?^```|^<!-- generated: (?P<what>[^>]*?) -->\n(?P<body>.*?)^<!-- end -->", re.DOTALL | re.MULTILINE
)
"""A place to fill; or a fenced block, in which there are none."""
EMPTY = "…"
"""What stands in a cell that nobody has filled yet."""

STEMS = {
    "callback": "callback_",
    "domctl": "xen_domctl_",
    "event_channel": "evtchn_",
    "grant_table": "gnttab_",
    "kexec": "xen_kexec_",
    "memory": "xen_",
    "physdev": "physdev_",
    "platform": "xenpf_",
    "sched": "sched_",
    "sysctl": "xen_sysctl_",
    "vcpu": "vcpu_",
    "version": "xen_",
    "xen_mca": "xen_mc_",
}
"""Module → what the names of its argument structures begin with, where the operation's end in a word of its own."""

ARGUMENTS = {
    "KEXEC_CMD_kexec": "xen_kexec_exec",
    "KEXEC_CMD_kexec_get_range": "xen_kexec_range",
    "KEXEC_CMD_kexec_load": "xen_kexec_load",
    "KEXEC_CMD_kexec_load_v1": "xen_kexec_load_v1",
    "KEXEC_CMD_kexec_status": "xen_kexec_status",
    "KEXEC_CMD_kexec_unload": "xen_kexec_unload",
    "KEXEC_CMD_kexec_unload_v1": "xen_kexec_load_v1",
    "PHYSDEVOP_apic_read": "physdev_apic",
    "PHYSDEVOP_apic_write": "physdev_apic",
    "PHYSDEVOP_alloc_irq_vector": "physdev_irq",
    "PHYSDEVOP_free_irq_vector": "physdev_irq",
    "PHYSDEVOP_manage_pci_add": "physdev_manage_pci",
    "PHYSDEVOP_manage_pci_remove": "physdev_manage_pci",
    "PHYSDEVOP_manage_pci_add_ext": "physdev_manage_pci_ext",
    "PHYSDEVOP_pci_device_remove": "physdev_pci_device",
    "PHYSDEVOP_pirq_eoi_gmfn_v1": "physdev_pirq_eoi_gmfn",
    "PHYSDEVOP_pirq_eoi_gmfn_v2": "physdev_pirq_eoi_gmfn",
    "PHYSDEVOP_prepare_msix": "physdev_pci_device",
    "PHYSDEVOP_release_msix": "physdev_pci_device",
    "PHYSDEVOP_restore_msi_ext": "physdev_pci_device",
    "SCHEDOP_shutdown_code": "sched_shutdown",
    "VCPUOP_get_runstate_info": "vcpu_runstate_info",
    "VCPUOP_initialise": "vcpu_guest_context",
    "VCPUOP_register_vcpu_time_memory_area": "vcpu_register_time_memory_area",
    "XENMEM_access_op": "xen_mem_access_op",
    "XENMEM_acquire_resource": "xen_mem_acquire_resource",
    "XENMEM_claim_pages": "xen_memory_reservation",
    "XENMEM_current_reservation": "xen_memory_domain",
    "XENMEM_decrease_reservation": "xen_memory_reservation",
    "XENMEM_exchange": "xen_memory_exchange",
    "XENMEM_get_pod_target": "xen_pod_target",
    "XENMEM_get_vnumainfo": "xen_vnuma_topology_info",
    "XENMEM_increase_reservation": "xen_memory_reservation",
    "XENMEM_machine_memory_map": "xen_memory_map",
    "XENMEM_machphys_compat_mfn_list": "xen_machphys_mfn_list",
    "XENMEM_maximum_gpfn": "xen_memory_domain",
    "XENMEM_maximum_reservation": "xen_memory_domain",
    "XENMEM_paging_op": "xen_mem_paging_op",
    "XENMEM_populate_physmap": "xen_memory_reservation",
    "XENMEM_set_memory_map": "xen_foreign_memory_map",
    "XENMEM_set_pod_target": "xen_pod_target",
    "XENMEM_sharing_op": "xen_mem_sharing_op",
    "XENPF_cpu_offline": "xenpf_cpu_ol",
    "XENPF_cpu_online": "xenpf_cpu_ol",
    "XENPF_get_cpu_version": "xenpf_pcpu_version",
    "XENPF_get_cpuinfo": "xenpf_pcpuinfo",
    "XENPF_get_symbol": "xenpf_symdata",
    "XENVER_get_features": "xen_feature_info",
    "XEN_DOMCTL_gdbsx_guestmemio": "xen_domctl_gdbsx_memio",
    "XEN_DOMCTL_gdbsx_pausevcpu": "xen_domctl_gdbsx_pauseunp_vcpu",
    "XEN_DOMCTL_gdbsx_unpausevcpu": "xen_domctl_gdbsx_pauseunp_vcpu",
    "XEN_DOMCTL_get_address_size": "xen_domctl_address_size",
    "XEN_DOMCTL_get_cpu_policy": "xen_domctl_cpu_policy",
    "XEN_DOMCTL_get_ext_vcpucontext": "xen_domctl_ext_vcpucontext",
    "XEN_DOMCTL_get_paging_mempool_size": "xen_domctl_paging_mempool",
    "XEN_DOMCTL_get_vcpu_msrs": "xen_domctl_vcpu_msrs",
    "XEN_DOMCTL_gethvmcontext": "xen_domctl_hvmcontext",
    "XEN_DOMCTL_gethvmcontext_partial": "xen_domctl_hvmcontext_partial",
    "XEN_DOMCTL_getnodeaffinity": "xen_domctl_nodeaffinity",
    "XEN_DOMCTL_gettscinfo": "xen_domctl_tsc_info",
    "XEN_DOMCTL_getvcpuaffinity": "xen_domctl_vcpuaffinity",
    "XEN_DOMCTL_getvcpucontext": "xen_domctl_vcpucontext",
    "XEN_DOMCTL_getvcpuextstate": "xen_domctl_vcpuextstate",
    "XEN_DOMCTL_deassign_device": "xen_domctl_assign_device",
    "XEN_DOMCTL_test_assign_device": "xen_domctl_assign_device",
    "XEN_DOMCTL_set_address_size": "xen_domctl_address_size",
    "XEN_DOMCTL_set_cpu_policy": "xen_domctl_cpu_policy",
    "XEN_DOMCTL_set_ext_vcpucontext": "xen_domctl_ext_vcpucontext",
    "XEN_DOMCTL_set_paging_mempool_size": "xen_domctl_paging_mempool",
    "XEN_DOMCTL_set_vcpu_msrs": "xen_domctl_vcpu_msrs",
    "XEN_DOMCTL_sethvmcontext": "xen_domctl_hvmcontext",
    "XEN_DOMCTL_setnodeaffinity": "xen_domctl_nodeaffinity",
    "XEN_DOMCTL_settscinfo": "xen_domctl_tsc_info",
    "XEN_DOMCTL_setvcpuaffinity": "xen_domctl_vcpuaffinity",
    "XEN_DOMCTL_setvcpucontext": "xen_domctl_vcpucontext",
    "XEN_DOMCTL_setvcpuextstate": "xen_domctl_vcpuextstate",
    "XEN_DOMCTL_setvnumainfo": "xen_domctl_vnuma",
    "XEN_DOMCTL_unbind_pt_irq": "xen_domctl_bind_pt_irq",
    "XEN_SYSCTL_get_cpu_featureset": "xen_sysctl_cpu_featureset",
    "XEN_SYSCTL_get_cpu_levelling_caps": "xen_sysctl_cpu_levelling_caps",
    "XEN_SYSCTL_get_cpu_policy": "xen_sysctl_cpu_policy",
}
"""Operations whose argument has another name than they."""

ELSEWHERE = {"vcpu_guest_context": "xen"}
"""Structures that another module than that of the operation has."""


class PageError(Exception):
    """A page asks for what there is not."""


def load(module: str) -> ModuleType:
    """Return a module of hypervisor.abi."""
    try:
        return importlib.import_module(f"hypervisor.abi.{module}")
    except ImportError:
        raise PageError(f"there is no module hypervisor.abi.{module}") from None


def layouts(module: str) -> dict[str, Layout | Union]:
    """Return the structures of a module of hypervisor.abi, in its order."""
    return {name: value for name, value in vars(load(module)).items() if isinstance(value, Layout | Union)}


def table_of_names(reference: str) -> tuple[str, dict[int, str]]:
    """Return module and table of names that `event_channel` or `xen.MMUEXT_NAMES` stands for."""
    module, _, name = reference.partition(".")
    table = getattr(load(module), name or "NAMES", None)
    if not isinstance(table, dict):
        raise PageError(f"hypervisor.abi.{module} has no table {name or 'NAMES'}")
    return module, table


def argument(module: str, operation: str) -> Layout | Union | None:
    """Return the structure that an operation's argument points to; None if it has none."""
    name = ARGUMENTS.get(operation)
    if name is None:
        name = STEMS.get(module, "?") + re.sub(r"^[A-Z_]+_", "", operation)
    return layouts(ELSEWHERE.get(name, module)).get(name)


def type_of(field: Field) -> str:
    """Return a member's type as C has it."""
    if isinstance(field.type, Scalar):
        name = field.type.name
    else:
        name = f"{'union' if isinstance(field.type, Union) else 'struct'} {field.type.name}"
    if field.bits is not None:
        return f"{name} : {field.bits[1]}"
    return name if field.count is None else f"{name}[{field.count or ''}]"


def members(layout: Layout | Union, named: set[int], path: str = "", base: int = 0) -> Iterator[tuple[str, str, Field]]:
    """Yield (offset, path, member) of a structure; what only exists within it is taken apart."""
    for field in layout.fields:
        offset = base + field.offset
        at = f"{offset}.{field.bits[0]}" if field.bits is not None and field.bits[0] else str(offset)
        inner = isinstance(field.type, Layout | Union) and field.count is None and id(field.type) not in named
        if not inner:
            yield at, path + field.name, field
        else:
            assert not isinstance(field.type, Scalar)
            yield from members(field.type, named, f"{path}{field.name}.", offset)


Row = tuple[str, ...]
"""The generated cells of a row; the last of them is the name by which a person's cells are found again."""


def table(titles: Row, rows: list[Row], old: str, own: int) -> str:
    """Return a table: the generated cells, and `own` at least of a person's, as they are in the old text."""
    kept: dict[str, list[str]] = {}
    lines = [line for line in old.splitlines() if line.startswith("|")]
    width = len(titles)
    for line in lines:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
        kept.setdefault(cells[width - 1] if len(cells) >= width else "", cells[width:])
    more = kept.get(titles[-1], [EMPTY] * own)
    made = [[*titles, *more], ["---"] * (width + len(more))]
    made += [[*row, *kept.get(row[-1], [EMPTY] * len(more))] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in made)


def hypercalls(_arguments: list[str], old: str) -> str:
    """Every hypercall with its number."""
    rows = [(str(number), f"`{name}`") for number, name in sorted(xen.HYPERCALL_NAMES.items())]
    return table(("nr", "hypercall"), rows, old, 2)


def operations(arguments: list[str], old: str) -> str:
    """The operations of a hypercall: number, argument, name."""
    module, names = table_of_names(arguments[0])
    rows: list[Row] = []
    for number, name in sorted(names.items()):
        layout = layouts(module)[arguments[1]] if len(arguments) > 1 else argument(module, name)
        size = f"`{layout.name}` ({layout.size} bytes)" if layout is not None else "-"
        rows.append((str(number), size, f"`{name}`"))
    return table(("nr", "argument", "operation"), rows, old, 1)


def in_operations(module: str) -> list[str]:
    """Return the structures that a module's operations point to, with those that these contain, in its order."""
    known = layouts(module)
    by_identity = {id(layout): name for name, layout in known.items()}
    wanted = [argument(module, name) for name in table_of_names(module)[1].values()]
    found: set[str] = set()
    while wanted:
        layout = wanted.pop()
        if layout is not None and by_identity.get(id(layout)) not in found:
            if id(layout) in by_identity:
                found.add(by_identity[id(layout)])
            wanted += [field.type for field in layout.fields if not isinstance(field.type, Scalar)]
    return [name for name in known if name in found]


def structures(arguments: list[str], old: str) -> str:
    """The members of structures."""
    module, *names = arguments
    known = layouts(module)
    if names == ["@operations"]:
        names = in_operations(module)
    named = {id(layout) for layout in known.values()} | {id(layout) for layout in layouts("xen").values()}
    parts = re.split(r"(?m)^\*\*`(?:struct|union) (\w+)`\*\*.*\n", old)
    before = dict(zip(parts[1::2], parts[2::2], strict=True))
    text = []
    for name in names or known:
        if name not in known:
            raise PageError(f"hypervisor.abi.{module} has no structure {name}")
        layout = known[name]
        kind = "union" if isinstance(layout, Union) else "struct"
        rows = [(at, str(field.size), f"`{type_of(field)}`", f"`{path}`") for at, path, field in members(layout, named)]
        made = table(("offset", "bytes", "type", "member"), rows, before.get(name, ""), 0)
        text.append(f"**`{kind} {name}`**, {layout.size} bytes\n\n{made}")
    return "\n".join(text)


KINDS: dict[str, Callable[[list[str], str], str]] = {
    "hypercalls": hypercalls,
    "operations": operations,
    "structures": structures,
}


def generated(page: str) -> str:
    """Return a page's text with all its tables as they must be. Raises PageError."""

    def fill(block: re.Match[str]) -> str:
        if block["what"] is None:
            return block[0]
        kind, *arguments = block["what"].split()
        if kind not in KINDS:
            raise PageError(f"nothing is called {kind}: there are {', '.join(KINDS)}")
        return f"<!-- generated: {block['what']} -->\n\n{KINDS[kind](arguments, block['body'])}\n<!-- end -->"

    return BLOCK.sub(fill, page)


def pages() -> list[Path]:
    """Return the pages that have tables to fill."""
    return sorted(page for page in DOCS.rglob("*.md") if "<!-- generated: " in page.read_text())


def main(arguments: list[str]) -> int:
    """Write, or check, all pages. Returns the exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: python docs/generate.py [--check]", file=sys.stderr)
        return 2
    stale = 0
    for page in pages():
        old = page.read_text()
        try:
            new = generated(old)
        except PageError as error:
            print(f"{page.relative_to(DOCS.parent)}: {error}", file=sys.stderr)
            return 2
        if new != old:
            stale += 1
            print(f"{page.relative_to(DOCS.parent)}: {'is not in step' if arguments else 'written'}")
            if not arguments:
                page.write_text(new)
    return 1 if stale and arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
