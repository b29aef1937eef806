"""Machine-code guests as subjects: Debian's Linux is judged by its own block frontend."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from conformance.block_front.remote import DiskErrand
from conformance.kit.check import Outcome, Skip
from conformance.kit.hands import ConsoleHands
from conformance.kit.machine_guest import MachineGuest, open_config
from conformance.kit.runner import World, run_check
from conformance.subjects import SubjectError
from conformance.suites import SUITES
from examples.linux import build as debian
from toolstack.cli import main
from toolstack.xl_config import parse_config

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/conformance/linux"
VARIABLE = "PARAVIRT_LINUX_BUILD"
HOW_MANY = "PARAVIRT_LINUX_CHECKS"
"""How many checks of a suite Linux is booted for; `all` for all of them."""
FEW = {"xenbus-frontend": "3"}
USUAL_FEW = "6"


def guest(tmp_path: Path) -> MachineGuest:
    (tmp_path / "kernel.py").write_text("")
    text = 'name = "mine"\nkernel = "kernel.py"\nmemory = 32\nvcpus = 2\non_crash = "restart"\n'
    return MachineGuest(parse_config(text, "guest.cfg", tmp_path), "frontend")


def test_what_a_guest_says_on_its_console(tmp_path: Path) -> None:
    one = guest(tmp_path)
    hands = ConsoleHands(one)
    assert not hands.ready
    for text in (b"boot\r\nparavirt: rea", b"dy\r\nparavirt: 1 ok\r\n[ 1.0] paravirt: 2 error\n"):
        one._take(text)
    one._take(b"paravirt: 3 ok " + base64.b64encode(b"data") + b"\nparavirt: 4 ok !\nparavirt: x ok\nparavirt:\n\xff\n")
    assert hands.ready
    assert hands.results == {1: (True, b""), 2: (False, b""), 3: (True, b"data")}


def test_what_is_typed(tmp_path: Path) -> None:
    one = guest(tmp_path)
    hands = ConsoleHands(one)
    hands.ask(1, DiskErrand("read", 40, 8))
    hands.ask(2, DiskErrand("write", 0, 1, b"\xab\xcd" * 256))
    hands.ask(3, DiskErrand("flush"))
    assert one._waiting == b"paravirt: 1 read 40 8\nparavirt: 2 write 0 1 abcd\nparavirt: 3 flush\n"
    with pytest.raises(Skip):
        hands.ask(4, DiskErrand("write", 0, 1, os.urandom(512)))


def test_the_guest_keeps_its_settings_but_for_name_devices_and_ends(tmp_path: Path) -> None:
    one = guest(tmp_path)
    (tmp_path / "disk.img").write_bytes(bytes(512))
    text = f'name = "frontend"\nkernel = "kernel.py"\ndisk = ["{tmp_path}/disk.img,raw,xvda,w"]\n'
    given = one.configure(parse_config(text, "given.cfg", tmp_path))
    assert (given.name, given.memory, given.vcpus, given.on_crash) == ("frontend", 32, 2, "destroy")
    assert len(given.disks) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cfg:/nowhere.cfg", "the configuration file '/nowhere.cfg' does not exist"),
        ("elf:/etc/passwd", "'/etc/passwd' is no kernel of machine code"),
    ],
)
def test_mistakes(text: str, sentence: str) -> None:
    with pytest.raises(SubjectError, match=sentence):
        open_config(text)
    done = CliRunner().invoke(main, ["check", "run", "--suite", "blkif-frontend", text])
    assert done.exit_code == 2
    assert sentence in done.output
    assert len(done.output.splitlines()) == 1


def test_a_class_is_none(tmp_path: Path) -> None:
    assert open_config("frontends.block:BlockFront") is None


BUS_FINDINGS = ("007", "008", "009", "013", "020", "022", "023", "025", "026", "040", "041", "042", "043", "050")
EXPLAINED = {
    # (docs/conformance-machine-code.md says where in Linux, and why.)
    "NETIF-FRONTEND-004": Outcome.failure,
    "NETIF-FRONTEND-016": Outcome.failure,
    "NETIF-FRONTEND-029": Outcome.failure,
    **dict.fromkeys(
        (f"XENBUS-FRONTEND-{number}" for number in BUS_FINDINGS),
        Outcome.failure,
    ),
}
"""Checks that Debian's Linux does not pass."""
OF_DISKS_ONLY = ("XENBUS-FRONTEND-007",)
GUESTS = {
    "blkif-frontend": ("blkif-frontend", "disk", ()),
    "netif-frontend": ("netif-frontend", "net", ()),
    "a disk on the bus": ("xenbus-frontend", "bus", ("vbd",)),
    "an interface on the bus": ("xenbus-frontend", "bus", ("vif",)),
}
"""What is judged → the suite, the job of the ramdisk, and the class of devices if the suite has several."""


def build_linux(directory: Path, program: str) -> Path:
    """Make Debian's kernel and a ramdisk with a job of the example; return the configuration of the guest."""
    if VARIABLE not in os.environ:
        pytest.skip(f"no packages of a Linux kernel ({VARIABLE} names a directory for them; it may be empty)")
    pytest.importorskip("unicorn", reason="machine code needs the extra 'emulator'")
    packages = Path(os.environ[VARIABLE]).resolve() / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    (directory / "packages").symlink_to(packages)
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("what runs in the guest is written in C, and there is no compiler")
    source, added = EXAMPLE / f"{program}.c", []
    if source.exists():
        flags = ["-static", "-O2", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([compiler, *flags, "-o", directory / program, source], check=True)
        added = [directory / program]
    debian.build("cloud-amd64", directory, EXAMPLE / f"{program}.sh", added)
    config = directory / "linux.cfg"
    config.write_text(
        'name = "linux"\nkernel = "vmlinuz"\nramdisk = "initrd.gz"\nextra = "console=hvc0 quiet"\nmemory = 192\n'
    )
    return config


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    """Return the worlds with Debian's Linux in them."""
    programs = dict.fromkeys(program for _, program, _ in GUESTS.values())
    configs = {program: build_linux(tmp_path_factory.mktemp(program), program) for program in programs}
    return {
        what: SUITES[suite].world(f"cfg:{configs[program]}", *type) for what, (suite, program, type) in GUESTS.items()
    }


@pytest.mark.parametrize("what", GUESTS)
def test_linuxs_frontends_conform(guests: dict[str, World], what: str) -> None:
    """Each check boots Linux, which takes 9 seconds of processor time: by default some checks from all of the suite."""
    suite, _, type = GUESTS[what]
    found, checks = {}, SUITES[suite].checks
    wanted = os.environ.get(HOW_MANY, FEW.get(suite, USUAL_FEW))
    if wanted != "all":
        checks = checks[:: max(1, len(checks) // int(wanted))]
    for check in checks:
        result = run_check(check, guests[what])
        if result.outcome not in (Outcome.success, Outcome.skip):
            found[check.id] = result.outcome, result.message
    assert {id: outcome for id, (outcome, _) in found.items()} == {
        check.id: EXPLAINED[check.id]
        for check in checks
        if check.id in EXPLAINED and (type != ("vif",) or check.id not in OF_DISKS_ONLY)
    }, found
