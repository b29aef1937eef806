"""The whole table of cases: every answer as real Xen gave it."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracle_run import KERNEL, RECORDING, VARIABLE, boot, cases, compare, folder

from hypervisor.abi import sched

pytest.importorskip("unicorn", reason="machine code needs the extra 'emulator'")


@pytest.fixture(scope="module")
def oracle() -> Path:
    """The folder with the kernel and the recording."""
    where = folder()
    if not all((where / name).exists() for name in (KERNEL, RECORDING)):
        pytest.skip(f"no recording of real Xen in {where} ({VARIABLE} says where else to look)")
    return where


def test_every_recorded_case(oracle: Path) -> None:
    log, result = boot(oracle)
    differences, total = compare((oracle / RECORDING).read_text(), log)
    assert total > 1000
    listed = "\n".join(map(str, differences))
    assert not differences, f"{len(differences)} of {total} cases differ:\n{listed}"
    assert result.shutdown_reason == sched.SHUTDOWN_reboot


def test_two_runs_print_the_same(oracle: Path) -> None:
    groups = ["startinfo", "sharedinfo", "version", "evtchn_basic"]
    first, second = boot(oracle, groups), boot(oracle, groups)
    assert first == second


def test_the_comparison_counts_repeated_names_and_masks_frames() -> None:
    recording = "dom0/a.x rc=0 mfn=0x1234\ndom0/a.x~2 rc=0 mfn=0x12\ndom0/si.p2m rc=0 at=1\ndom0/b rc=-1\n"
    log = "(XEN) hello\nCASE dom0/a.x rc=0 mfn=0xfff\r\nCASE dom0/a.x rc=0 mfn=0x12\n"
    log += "CASE dom0/b rc=-2\nCASE dom0/c rc=0\n"
    assert list(cases(log.splitlines())) == ["dom0/a.x", "dom0/a.x~2", "dom0/b", "dom0/c"]
    differences, total = compare(recording, log)
    assert total == 3
    assert [str(one) for one in differences] == ["dom0/b\n    xen : rc=-1\n    ours: rc=-2"]
