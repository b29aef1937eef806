"""Names of virtual device numbers, by the table of Xen's vbd-interface document."""

import pytest

from frontends.block import disk_name


@pytest.mark.parametrize(
    ("vdev", "name"),
    [
        (51712, "xvda"),
        (51713, "xvda1"),
        (51727, "xvda15"),
        (51728, "xvdb"),
        (51952, "xvdp"),
        (1 << 28 | 16 << 8, "xvdq"),
        (1 << 28 | 25 << 8 | 3, "xvdz3"),
        (1 << 28 | 26 << 8, "xvdaa"),
        (1 << 28 | 701 << 8, "xvdzz"),
        (1 << 28 | 702 << 8, "xvdaaa"),
        (8 << 8, "sda"),
        (8 << 8 | 17, "sdb1"),
        (65 << 8, "sdq"),
        (128 << 8, "sddy"),
        (3 << 8, "hda"),
        (3 << 8 | 64 | 2, "hdb2"),
        (22 << 8, "hdc"),
        (22 << 8 | 64, "hdd"),
    ],
)
def test_names(vdev: int, name: str) -> None:
    assert disk_name(vdev) == name


@pytest.mark.parametrize("vdev", [-1, 0, 1, 5 << 8, 203 << 8, 1 << 29, 2**64])
def test_numbers_outside_of_the_ranges(vdev: int) -> None:
    with pytest.raises(ValueError, match=str(vdev)):
        disk_name(vdev)
