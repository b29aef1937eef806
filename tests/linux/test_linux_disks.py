"""What Linux's block layer makes of our disks: large and several rings, discards."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Build, paravirt

MIB = 1 << 20


@pytest.mark.parametrize(("order", "queues"), [(4, 1), (2, 2)])
def test_larger_and_more_rings(build: Build, tmp_path: Path, order: int, queues: int) -> None:
    """A disk is copied through rings of 16 pages, and through two of four pages each."""
    image, copy = tmp_path / "disk.img", tmp_path / "copy.img"
    data = random.Random(order).randbytes(MIB) * 8
    image.write_bytes(data)
    copy.write_bytes(bytes(len(data)))
    linux = build(
        """
        for part in 0 1 2 3; do
            dd if=/dev/xvda of=/dev/xvdb bs=1M count=2 skip=$((2 * part)) seek=$((2 * part)) conv=fsync 2>/dev/null &
        done
        wait
        echo "hash: $(dd if=/dev/xvdb bs=64k 2>/dev/null | md5sum)"
        """
    )
    # Linux keeps a page for each segment of each request of a ring: with large ones that would be all of its memory.
    words = f"xen_blkfront.max_ring_page_order={order} xen_blkfront.max_queues={queues}"
    words += " xen_blkfront.max_indirect_segments=0"
    disks = f'disk = ["{image},raw,xvda,r", "{copy},raw,xvdb,w"]'
    config = linux.config(tmp_path / "linux.cfg", disks, f"vcpus = {queues}", memory=256, extra=words)
    trace = tmp_path / "trace"
    done = paravirt("run", "--trace", trace, config)
    assert done.exit_code == 0, done.output
    assert f"hash: {hashlib.md5(data).hexdigest()}" in done.output
    assert copy.read_bytes() == data
    shown = paravirt("trace", trace).output
    rings = re.findall(r"ring_connect .*refs=\[([^]]*)\]", shown)
    assert [len(refs.split(",")) for refs in rings if refs.count(",")] == [1 << order] * queues * 2


def test_discards(build: Build, tmp_path: Path) -> None:
    """blkdiscard empties an image; what a file system does not use any more leaves another one when it is trimmed."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4 here (Debian: e2fsprogs)")
    raw, ext4, fixed = tmp_path / "raw.img", tmp_path / "ext4.img", tmp_path / "fixed.img"
    for image in (raw, fixed):
        image.write_bytes(b"x" * (4 * MIB))
    ext4.write_bytes(b"x" * (16 * MIB))
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard", ext4], check=True, capture_output=True)
    before = ext4.stat().st_blocks
    linux = build(
        """
        blkdiscard /dev/xvda && echo "step: discarded"
        blkdiscard -o 1048576 -l 1048576 /dev/xvdc || echo "step: refused"
        mount -t ext4 /dev/xvdb /mnt
        echo kept > /mnt/kept
        dd if=/dev/zero of=/mnt/gone bs=1M count=4 2>/dev/null
        sync; rm /mnt/gone; sync
        fstrim -v /mnt | sed 's/^/step: /'
        umount /mnt
        """
    )
    disks = f'disk = ["{raw},raw,xvda", "{ext4},raw,xvdb", "{fixed},raw,xvdc,w,no-discard"]'
    done = paravirt("run", linux.config(tmp_path / "linux.cfg", disks))
    assert done.exit_code == 0, done.output
    assert "step: discarded" in done.output
    assert "step: refused" in done.output
    assert (raw.stat().st_blocks, raw.read_bytes()) == (0, bytes(4 * MIB))
    assert fixed.read_bytes() == b"x" * (4 * MIB)
    assert re.search(r"step: /mnt: \d+ bytes trimmed", done.output), done.output
    assert ext4.stat().st_blocks < before // 2
    checked = subprocess.run(["e2fsck", "-fn", ext4], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    shown = subprocess.run(["debugfs", "-R", "cat kept", ext4], capture_output=True, text=True, check=True)
    assert shown.stdout == "kept\n"
