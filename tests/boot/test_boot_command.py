"""`paravirt boot`: a kernel of our own from its first instruction to its end, and what a person can get wrong."""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from elf_maker import bzimage, kernel
from mini_kernel import build

from hypervisor.abi.tracepoints import STATE_PAGES
from hypervisor.emulator import processor
from hypervisor.errors import DeviceError
from hypervisor.trace import read_trace
from toolstack import machine_code
from toolstack.cli import main

RUN = (sys.executable, "-c", "from toolstack.cli import main; main()")


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel of mini_kernel.c, built."""
    pytest.importorskip("unicorn", reason="machine code needs the extra 'emulator'")
    return build(tmp_path_factory.mktemp("mini"))


def boot(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["boot", *map(str, words)], catch_exceptions=False)


def test_power_off(mini: Path, tmp_path: Path) -> None:
    module = tmp_path / "module"
    module.write_text("what a ramdisk says")
    result = boot(mini, "--module", module, "--cmdline", "quiet")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("(XEN) Xen version 4.17.7 ")
    assert lines[-4:] == [
        "mini kernel: hello",
        "what a ramdisk says",
        "mini kernel: done",
        "(XEN) Hardware Dom0 halted: halting machine",
    ]


def test_what_xen_says_of_dom0(mini: Path) -> None:
    lines = boot(mini, "--xen-cmdline", "loglvl=all/all guest_loglvl=none/all dom0_mem=16M").stdout.splitlines()
    start = lines.index("(XEN) *** Building a PV Dom0 ***")
    said = lines[start + 1 : lines.index("mini kernel: hello")]
    end = re.fullmatch(r".* paddr 0x0 -> (0x[0-9a-f]+)", said[1])
    assert end is not None
    kernel_end = 0xFFFFFFFF80000000 + int(end[1], 16)
    p2m = kernel_end + 4095 & ~4095
    assert said == [
        "(XEN)  Xen  kernel: 64-bit, lsb",
        f"(XEN)  Dom0 kernel: 64-bit, lsb, paddr 0x0 -> {end[1]}",
        "(XEN) VIRTUAL MEMORY ARRANGEMENT:",
        f"(XEN)  Loaded kernel: ffffffff80000000->{kernel_end:016x}",
        f"(XEN)  Phys-Mach map: {p2m:016x}->{p2m + 0x8000:016x}",
        f"(XEN)  Start info:    {p2m + 0x8000:016x}->{p2m + 0x84B8:016x}",
        f"(XEN)  Page tables:   {p2m + 0x9000:016x}->{p2m + 0xE000:016x}",
        f"(XEN)  Boot stack:    {p2m + 0xE000:016x}->{p2m + 0xF000:016x}",
        "(XEN)  TOTAL:         ffffffff80000000->ffffffff80400000",
        "(XEN)  ENTRY ADDRESS: ffffffff80000000",
        "(XEN) Dom0 has maximum 2 VCPUs",
        "(XEN) Std. Loglevel: All",
        "(XEN) Guest Loglevel: Nothing (Rate-limited: All)",
        "(XEN) *** Serial input to DOM0",
    ]


def test_a_bzimage_boots_too(mini: Path, tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(bzimage(gzip.compress(mini.read_bytes())))
    result = boot(image)
    assert result.exit_code == 0
    assert "mini kernel: done" in result.stdout


def test_a_crash_shows_the_registers(mini: Path) -> None:
    result = boot(mini, "--cmdline", "crash")
    assert result.exit_code == 3
    out = result.stdout
    assert "(XEN) d0v0 Unhandled: vec 6, #UD[0000]\n" in out
    assert "(XEN) Domain 0 (vcpu#0) crashed on cpu#0:\n" in out
    assert re.search(r"\(XEN\) RIP:    e033:\[<ffffffff80000[0-9a-f]{3}>\]\n", out)
    assert re.search(r"\(XEN\) rax: 000000001234abcd   rbx: [0-9a-f]{16}   rcx: [0-9a-f]{16}\n", out)
    assert re.search(r"\(XEN\) RFLAGS: [0-9a-f]{16}   EM: 1   CONTEXT: pv guest \(d0v0\)\n", out)
    assert re.search(r"\(XEN\) Guest stack trace from rsp=ffffffff800[0-9a-f]{5}:\n\(XEN\)    [0-9a-f]{16} ", out)
    assert out.endswith("(XEN) Hardware Dom0 crashed: rebooting machine in 5 seconds.\n")
    assert re.fullmatch(r"paravirt: dom0 crashed at 2\.\d{6} s of virtual time\n", result.stderr)


def test_an_unhandled_page_fault_shows_the_way_there(mini: Path) -> None:
    out = boot(mini, "--cmdline", "fault").stdout
    unmapped = "0000000000000000 ffffffffffffffff"
    assert "(XEN) d0v0 Unhandled: vec 14, #PF[0002]\n(XEN) Pagetable walk from 0000123456789000:\n" in out
    assert f"(XEN)  L4[0x024] = {unmapped}\n(XEN) domain_crash called" in out
    assert re.search(r"cr2: 0000123456789000\n", out)


def test_noreboot_is_said(mini: Path) -> None:
    result = boot(mini, "--cmdline", "panic", "--xen-cmdline", "noreboot dom0_mem=16M")
    assert result.exit_code == 3
    assert result.stdout.endswith("(XEN) Hardware Dom0 crashed: 'noreboot' set - not rebooting.\n")


def test_an_unknown_reason(mini: Path) -> None:
    result = boot(mini, "--cmdline", "strange")
    assert result.exit_code == 3
    assert "(XEN) Hardware Dom0 shutdown (unknown reason 77): " in result.stdout
    assert "dom0 shut down for the unknown reason 77" in result.stderr


def test_a_reboot_starts_the_machine_again(mini: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    result = boot(mini, "--reboot", "--cmdline", "reboot", "--timeout", "3", "--host-memory", "64", "--trace", trace)
    assert result.exit_code == 124
    assert result.stdout.count("mini kernel: hello") > 1
    assert "(XEN) Hardware Dom0 shutdown: rebooting machine\n(XEN) Xen version" in result.stdout
    assert trace.exists()
    assert trace.with_name("trace.2").exists()


def test_a_reboot_is_the_end_if_nobody_wants_another(mini: Path) -> None:
    result = boot(mini, "--cmdline", "reboot")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith("(XEN) Hardware Dom0 shutdown: rebooting machine\n")


def test_a_timeout(mini: Path) -> None:
    began = time.monotonic()
    result = boot(mini, "--cmdline", "hang", "--timeout", "0.5")
    assert result.exit_code == 124
    assert result.stderr == "paravirt: dom0 still runs after 0.5 s\n"
    assert time.monotonic() - began < 30


def test_a_kernel_that_waits_for_ever(mini: Path) -> None:
    result = boot(mini, "--cmdline", "idle")
    assert result.exit_code == 3
    assert result.stderr == "paravirt: everything in dom0 waits for something that cannot happen any more\n"


def test_two_traces_are_the_same(mini: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert boot(mini, "--cmdline", "crash", "--trace", tmp_path / name).exit_code == 3
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_state_in_a_trace(mini: Path, tmp_path: Path) -> None:
    kinds = {}
    for name, words in (("plain", ()), ("state", ("--trace-state",))):
        assert boot(mini, "--cmdline", "crash", "--trace", tmp_path / name, *words).exit_code == 3
        _, records = read_trace(tmp_path / name)
        kinds[name] = {record[3] for record in records}
    assert STATE_PAGES not in kinds["plain"]
    assert STATE_PAGES in kinds["state"]
    assert kinds["state"] >= kinds["plain"]


def test_no_state_without_a_trace(mini: Path) -> None:
    result = boot(mini, "--trace-state")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "paravirt: --trace-state says what is to be in a trace: it needs --trace FILE\n"


def test_a_profile(mini: Path, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    result = boot(mini, "--cmdline", "quiet", "--profile", file)
    assert result.exit_code == 0
    table = result.stdout.split("halting machine\n")[1]
    assert re.search(r"sched_op SCHEDOP_shutdown .* 1 $", table, re.MULTILINE)
    assert json.loads(file.read_bytes())["profiles"]


def test_a_profile_of_each_life(mini: Path, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    result = boot(mini, "--reboot", "--cmdline", "reboot", "--timeout", "3", "--host-memory", "64", "--profile", file)
    assert result.exit_code == 124
    assert json.loads(file.read_bytes())
    assert json.loads(file.with_name("profile.json.2").read_bytes())


def test_a_profile_that_cannot_be_written(mini: Path, tmp_path: Path) -> None:
    result = boot(mini, "--profile", tmp_path / "no" / "where")
    assert result.exit_code == 2
    assert result.stderr.startswith("paravirt: cannot write ")


def test_what_domains_use_while_they_run(mini: Path) -> None:
    result = boot(mini, "--cmdline", "hang", "--timeout", "4", "--top", "0.05")
    assert result.exit_code == 124
    assert result.stdout.count("Domain-0") >= 2
    assert "mini kernel: hello" in result.stdout


def test_the_sizes_that_are_asked_for(mini: Path) -> None:
    result = boot(mini, "--memory", "24", "--vcpus", "3", "--host-memory", "128", "--xen-cmdline", "dom0_mem=7M fun")
    assert result.exit_code == 0
    assert '(XEN) parameter "fun" unknown!\n' in result.stdout
    assert "(XEN) Command line: fun dom0_mem=24M dom0_max_vcpus=3\n" in result.stdout
    assert "(XEN) System RAM: 127MB (130944kB)\n" in result.stdout


def test_keys_go_to_dom0(mini: Path) -> None:
    """On a terminal a key counts at once, and is shown by dom0 alone."""
    master, slave = pty.openpty()
    process = subprocess.Popen([*RUN, "boot", str(mini), "--cmdline", "echo"], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    try:
        deadline = time.monotonic() + 120
        while b"mini kernel: done" not in seen and time.monotonic() < deadline:
            if select.select([master], [], [], 0.2)[0]:
                seen += os.read(master, 4096)
            if b"press a key" in seen and b"!" not in seen:
                os.write(master, b"!")
                time.sleep(0.1)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert b"press a key\r\n!\r\nmini kernel: done" in seen


def test_ctrl_c_cuts_the_power(mini: Path) -> None:
    process = subprocess.Popen(
        [*RUN, "boot", str(mini), "--cmdline", "hang"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while "mini kernel: hello" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "paravirt: interrupted\n")


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        ({}, ["none"], "the kernel 'none' does not exist"),
        ({"dir/x": b""}, ["dir"], "the kernel 'dir' is a directory"),
        ({"k": b"#!/bin/sh\n"}, ["k"], "the kernel 'k' is neither an ELF kernel nor a bzImage"),
        ({"k": kernel()[:80]}, ["k"], "the kernel 'k' is cut short"),
        ({"k": kernel()}, ["k", "--module", "m"], "the module 'm' does not exist"),
        ({"k": kernel(bss=32 << 20)}, ["k", "--host-memory", "16"], "k: dom0 cannot be built: the domain has"),
        ({"k": kernel()}, ["k", "--memory", "1"], "k: dom0 cannot be built: the domain has 256 pages"),
        ({"k": kernel()}, ["k", "--cmdline", "x" * 1024], "k: dom0's command line has 1024 bytes"),
        ({"k": kernel()}, ["k", "--trace", "no/where"], "cannot write the trace 'no/where'"),
    ],
)
def test_mistakes(
    files: dict[str, bytes], words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, contents in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(contents)
    result = boot(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"paravirt: {message}")
    assert result.stderr.count("\n") == 1


def test_an_emulator_that_cannot_be_used(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_hv: object) -> None:
        raise DeviceError("this version of Unicorn is not one that paravirt knows")

    monkeypatch.setattr(processor, "Processor", refuse)
    result = boot(mini)
    assert result.exit_code == 2
    assert result.stderr == "paravirt: this version of Unicorn is not one that paravirt knows\n"


def test_without_the_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "find_spec", lambda name: None)
    (tmp_path / "k").write_bytes(kernel())
    result = boot(tmp_path / "k")
    assert result.exit_code == 2
    assert result.stderr == "paravirt: machine-code kernels need the CPU emulator: pip install 'paravirt[emulator]'\n"
