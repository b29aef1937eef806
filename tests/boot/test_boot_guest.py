"""Machine-code kernels as `kernel =` of a configuration, beside guests in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from elf_maker import kernel
from mini_kernel import build

import toolstack.host as host_module
from hypervisor.emulator import processor
from hypervisor.errors import DeviceError
from hypervisor.hypervisor import Hypervisor
from hypervisor.trace import read_records
from toolstack import machine_code
from toolstack.cli import main

HELLO = """
from guest_kernel.guest import Guest

class Hello(Guest):
    async def main(self):
        self.print("hello from Python")
"""


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("unicorn", reason="machine code needs the extra 'emulator'")
    return build(tmp_path_factory.mktemp("mini"))


def run(directory: Path, *configs: str, options: tuple[str, ...] = ()) -> Result:
    paths = []
    for number, text in enumerate(configs):
        path = directory / f"g{number}.cfg"
        path.write_text(text)
        paths.append(str(path))
    return CliRunner().invoke(main, ["run", *options, *paths], catch_exceptions=False)


def config(kernel: Path | str, *lines: str, name: str = "mini") -> str:
    return "\n".join([f'name = "{name}"', f'kernel = "{kernel}"', "memory = 8", *lines])


def test_machine_code_beside_python(mini: Path, tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(HELLO)
    (tmp_path / "rd").write_text("from the ramdisk")
    result = run(
        tmp_path,
        config(mini, 'ramdisk = "rd"', 'extra = "quiet"'),
        config("hello.py", name="snake"),
        config(mini, 'root = "/dev/xvda"', 'extra = "crash"', name="other"),
    )
    assert result.exit_code == 0
    lines = [line.split(" | ", 1) for line in result.stdout.splitlines() if " | " in line]
    said = {tag.strip(): [text for one, text in lines if one == tag] for tag, _ in lines}
    assert said["mini"] == ["mini kernel: hello", "from the ramdisk", "mini kernel: done"]
    assert said["snake"] == ["hello from Python"]
    # (`root` comes first on the command line, so that "crash" is not its first word.)
    assert said["other"] == ["mini kernel: hello", "mini kernel: done"]


def test_a_crash_is_told_with_its_reason(mini: Path, tmp_path: Path) -> None:
    result = run(tmp_path, config(mini, 'extra = "crash"'))
    assert result.exit_code == 1
    assert "Domain 1 (vcpu#0) crashed on cpu#0:" in result.stdout
    assert "rax: 000000001234abcd" in result.stdout
    assert result.stderr.startswith("paravirt: mini crashed: vCPU 0: unhandled exception 6 at 0xffffffff80000")


def test_on_crash_restarts_it(mini: Path, tmp_path: Path) -> None:
    result = run(tmp_path, config(mini, 'extra = "crash"', 'on_crash = "restart"'))
    assert result.exit_code == 1
    assert "Domain 1 (vcpu#0) crashed" in result.stdout
    assert "Domain 5 (vcpu#0) crashed" in result.stdout
    assert "mini has ended 5 times within a second of its start" in result.stderr


def test_two_traces_are_the_same(mini: Path, tmp_path: Path) -> None:
    traces = []
    for name in ("one", "two"):
        result = run(tmp_path, config(mini), config(mini, name="twin"), options=("--trace", str(tmp_path / name)))
        assert result.exit_code == 0
        traces.append((tmp_path / name).read_bytes())
    assert traces[0] == traces[1]


@pytest.mark.parametrize(
    ("data", "lines", "message"),
    [
        (kernel()[:80], [], "g0.cfg:2: the kernel '{}' is cut short"),
        (kernel(), ['ramdisk = "none"'], "g0.cfg:4: the ramdisk '{dir}/none' does not exist"),
        (kernel(), ["driver_domain = 1"], "g0.cfg:4: the machine's disks and network cards are driven by"),
        (kernel(bss=16 << 20), [], "g0.cfg:3: too little memory: the domain has 2048 pages"),
    ],
)
def test_mistakes(data: bytes, lines: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(data)
    result = run(tmp_path, config("k", *lines))
    assert result.exit_code in (1, 2)
    assert message.format(path, dir=tmp_path) in result.stderr


def test_an_emulator_that_cannot_be_used(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_hv: object) -> None:
        raise DeviceError("this version of Unicorn is not one that paravirt knows")

    monkeypatch.setattr(processor, "Processor", refuse)
    result = run(tmp_path, config(mini))
    assert result.exit_code == 2
    assert result.stderr == "paravirt: this version of Unicorn is not one that paravirt knows\n"


def test_without_the_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "find_spec", lambda name: None)
    (tmp_path / "k").write_bytes(kernel())
    result = run(tmp_path, config("k"))
    assert result.exit_code == 2
    assert "g0.cfg:2: machine-code kernels need the CPU emulator: pip install 'paravirt[emulator]'" in result.stderr


def test_what_cpuid_is_to_tell(mini: Path, tmp_path: Path) -> None:
    def ask(*lines: str) -> list[int]:
        result = run(tmp_path, config(mini, 'extra = "cpuid"', *lines))
        assert result.exit_code == 0, result.stdout
        text = next(line for line in result.stdout.splitlines() if line.count(" ") > 3 and "4000000" in line)
        return [int(word, 16) for word in text.split(" | ")[1].split()]

    ecx, edx, last, xen = ask()
    assert (last, xen) == (0xD, 0x40000005)
    # Without SSE2 there is nothing that stands on it: SSE3, SSSE3, SSE4, AES, PCLMULQDQ.
    assert ask('cpuid = "host,sse2=0,popcnt=1,maxleaf=7,maxhvleaf=3"') == [
        ecx & ~(1 | 1 << 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 25),
        edx & ~(1 << 26),
        7,
        0x40000003,
    ]
    assert ask('cpuid = "host,aes=0"') == [ecx & ~(1 << 25), edx, last, xen]


def test_a_python_guest_has_no_cpuid(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(HELLO)
    result = run(tmp_path, config("hello.py", 'cpuid = "host,aes=0"'))
    assert result.exit_code == 2
    assert "a guest written in Python executes no CPUID" in result.output


def test_the_tape_follows_the_time_of_machine_code(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a guest in Python, whose records are on the tape."""
    (tmp_path / "hello.py").write_text(HELLO)
    configs = config(mini), config("hello.py", name="snake")
    taped: list[bool] = []
    told = []
    for settings in ({"tape": None}, {}):

        def make(*args: Any, settings: dict[str, Any] = settings, **more: Any) -> Hypervisor:
            hv = Hypervisor(*args, **more | settings)
            taped.append(hv.tape is not None)
            return hv

        monkeypatch.setattr(host_module, "Hypervisor", make)
        result = run(tmp_path, *configs, options=("--quiet", "--trace", str(tmp_path / "host.trace")))
        assert result.exit_code == 0
        told.append(list(read_records(tmp_path / "host.trace")))
    assert taped == [False, True]
    assert told[0] == told[1]
