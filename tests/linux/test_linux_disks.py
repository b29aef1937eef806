"""What Linux's block layer makes of our disks: large and several rings."""

from __future__ import annotations

import hashlib
import random
import re
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
