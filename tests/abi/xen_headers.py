"""The public headers that the interface modules mirror, and how to ask the C compiler about them."""

import importlib
import os
import pkgutil
import platform
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

import hypervisor.abi
from hypervisor.abi.layout import Layout, Union

_FOLDERS = [*filter(None, os.environ.get("C_INCLUDE_PATH", "").split(":")), "/usr/include"]
INCLUDE = next((Path(f, "xen") for f in _FOLDERS if Path(f, "xen", "xen.h").exists()), Path("/usr/include/xen"))
"""Where gcc finds the public headers: C_INCLUDE_PATH goes before the system's folder."""

HEADERS: dict[str, tuple[str, ...]] = {
    "argo": ("argo.h",),
    "callback": ("callback.h",),
    "cpufeatureset": ("arch-x86/cpufeatureset.h",),
    "cpuid": ("arch-x86/cpuid.h",),
    "domctl": ("domctl.h",),
    "elfnote": ("elfnote.h",),
    "errno": ("errno.h",),
    "event_channel": ("event_channel.h",),
    "features": ("features.h",),
    "flask_op": ("xsm/flask_op.h",),
    "grant_table": ("grant_table.h",),
    "hypfs": ("hypfs.h",),
    "kexec": ("kexec.h",),
    "memory": ("memory.h",),
    "nmi": ("nmi.h",),
    "physdev": ("physdev.h",),
    "platform": ("platform.h",),
    "pmu": ("arch-x86/pmu.h", "pmu.h"),
    "sched": ("sched.h",),
    "sysctl": ("sysctl.h",),
    "tmem": ("tmem.h",),
    "trace": ("trace.h",),
    "vcpu": ("vcpu.h",),
    "version": ("version.h",),
    "vm_event": ("vm_event.h",),
    "xen": ("xen-compat.h", "xen.h", "arch-x86/xen.h", "arch-x86/xen-x86_64.h"),
    "xen_mca": ("arch-x86/xen-mca.h",),
    "xenoprof": ("xenoprof.h",),
    "io.blkif": ("io/blkif.h",),
    "io.cameraif": ("io/cameraif.h",),
    "io.console": ("io/console.h",),
    "io.displif": ("io/displif.h",),
    "io.fbif": ("io/fbif.h",),
    "io.fsif": ("io/fsif.h",),
    "io.kbdif": ("io/kbdif.h",),
    "io.libxenvchan": ("io/libxenvchan.h",),
    "io.netif": ("io/netif.h",),
    "io.pciif": ("io/pciif.h",),
    "io.protocols": ("io/protocols.h",),
    "io.pvcalls": ("io/pvcalls.h",),
    "io.sndif": ("io/sndif.h",),
    "io.tpmif": ("io/tpmif.h",),
    "io.usbif": ("io/usbif.h",),
    "io.vscsiif": ("io/vscsiif.h",),
    "io.xen_9pfs": ("io/9pfs.h",),
    "io.xenbus": ("io/xenbus.h",),
    "io.xs_wire": ("io/xs_wire.h",),
}
"""Module of hypervisor.abi → the headers (under xen/) that it mirrors."""

NOT_HEADERS: dict[str, str] = {
    "_names": "computes the tables of names",
    "cpu": "the type of a vCPU, not a structure in memory",
    "device": "the simulated machine's own devices, which no header describes",
    "io.ring": "the arithmetic of io/ring.h as code, tested with the rings",
    "layout": "what layouts are made of",
    "pv_layout": "where a domain builder puts things, computed from the other modules",
    "tracepoints": "the simulator's own trace records",
}
"""Modules beside them that mirror no header, with the reason."""


def module_names() -> list[str]:
    """Return every module of hypervisor.abi, as found on disk."""
    found = pkgutil.walk_packages(hypervisor.abi.__path__, "hypervisor.abi.")
    return [info.name.removeprefix("hypervisor.abi.") for info in found if not info.ispkg]


def load(name: str) -> ModuleType:
    return importlib.import_module(f"hypervisor.abi.{name}")


def public(name: str) -> dict[str, object]:
    """Return what a module defines: everything in it but Python's own names, modules and imports of machinery."""
    machinery = {"Layout", "Union", "names", "const_ring_size", "ring_types"}
    return {
        key: value
        for key, value in vars(load(name)).items()
        if key not in machinery
        and not isinstance(value, ModuleType)
        and not (re.fullmatch(r"__\w+__", key) and not key.startswith("__XEN"))
    }


def constants(name: str) -> dict[str, int | str]:
    """Return a module's constants; of the features of processors those that the installed header knows.

    Updates of Xen 4.17 have added features, as processors with new flaws came out: an older header has fewer of them.
    """
    found = {key: value for key, value in public(name).items() if isinstance(value, int | str)}
    if name == "cpufeatureset" and (INCLUDE / "xen.h").exists():
        text = (INCLUDE / "arch-x86" / "cpufeatureset.h").read_text()
        known = {f"XEN_X86_FEATURE_{feature}" for feature in re.findall(r"XEN_CPUFEATURE\((\w+),", text)}
        found = {key: value for key, value in found.items() if key in known}
        assert len(found) > 200, "this is no list of features"
    return found


def layouts(name: str) -> dict[str, Layout | Union]:
    return {key: value for key, value in public(name).items() if isinstance(value, Layout | Union)}


def why_not() -> str | None:
    """Return the sentence that says why the headers cannot be asked on this machine, or None if they can."""
    if platform.machine() != "x86_64":
        return f"the layouts are those of x86-64 and the compiler of this machine is for {platform.machine()}."
    if shutil.which("gcc") is None:
        return "gcc is not installed, so nothing confirms the layouts (apt install gcc)."
    if not (INCLUDE / "xen.h").exists():
        return "Xen's public headers are not installed, so nothing confirms the layouts (apt install libxen-dev)."
    version = re.search(r"__XEN_LATEST_INTERFACE_VERSION__ (0x\w+)", (INCLUDE / "xen-compat.h").read_text())
    if version is None or int(version[1], 16) != constants("xen")["__XEN_LATEST_INTERFACE_VERSION__"]:
        return "the installed libxen-dev is not that of Xen 4.17, whose interface the modules mirror."
    return None


def require_headers() -> None:
    """Skip the calling test where the headers cannot be asked; fail it where they must be there (in CI)."""
    reason = why_not()
    if reason is None:
        return
    if os.environ.get("PARAVIRT_REQUIRE_LIBXEN") == "1":
        pytest.fail(f"PARAVIRT_REQUIRE_LIBXEN=1, but {reason}")
    pytest.skip(reason)


def compile_and_run(source: str, folder: Path) -> str:
    """Compile one C program with gcc and return what it prints."""
    (folder / "probe.c").write_text(source)
    command = ["gcc", "-std=gnu11", "-w", "-O0", "-o", "probe", "probe.c"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "error:" in line)[:4000]
    return subprocess.run(["./probe"], cwd=folder, capture_output=True, text=True, check=True).stdout
