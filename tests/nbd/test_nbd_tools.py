"""What other people's programs make of an exported disk. Each test needs the programs that it names."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from nbd_scene import Scene, fio, need, run

MIB = 1 << 20


def test_nbdinfo_sees_what_the_guest_sees(scene: Scene) -> None:
    need("nbdinfo")
    found: dict[str, object] = {}
    scene.serve(lambda: found.update(json.loads(run("nbdinfo", "--json", scene.uri))))
    (export,) = found["exports"]  # type: ignore[misc]
    assert export["export-size"] == 16 * MIB
    assert export["block_size_minimum"] == 512
    can = ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn")
    assert {key: export[key] for key in can} == dict.fromkeys(can, True)
    assert not export["is_read_only"]


def test_nbdinfo_lists_the_disk_by_its_name(scene: Scene) -> None:
    need("nbdinfo")
    listed: list[str] = []
    scene.serve(lambda: listed.append(run("nbdinfo", "--list", scene.uri)))
    assert 'export="xvda"' in listed[0]
    assert "xvda of guest, through its split driver" in listed[0]


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_nbdcopy_both_ways(scene: Scene, clock: str) -> None:
    need("nbdcopy")
    source, back = scene.directory / "source", scene.directory / "back"
    data = random.Random(1).randbytes(16 * MIB)
    source.write_bytes(data)

    def client() -> None:
        run("nbdcopy", "--flush", source, scene.uri)
        assert scene.image.read_bytes() == data
        run("nbdcopy", scene.uri, back)

    result = scene.serve(client, time=clock)
    assert back.read_bytes() == data
    (guest,) = (domain for domain in result.domains if domain.name == "guest")
    assert guest.usage.block_bytes >= 2 * len(data), "through the split driver"


def test_a_small_guest_serves_as_well(scene: Scene) -> None:
    need("nbdcopy")
    source, back = scene.directory / "source", scene.directory / "back"
    source.write_bytes(random.Random(2).randbytes(16 * MIB))

    def client() -> None:
        run("nbdcopy", "--flush", "--request-size=4194304", source, scene.uri)
        run("nbdcopy", "--request-size=8388608", scene.uri, back)

    scene.serve(client, scene.guest(memory=4))
    assert back.read_bytes() == source.read_bytes()


def test_fio_verifies_what_it_wrote(scene: Scene) -> None:
    need("fio")
    scene.make_image(32 * MIB)

    def client() -> None:
        seconds = int(os.environ.get("PARAVIRT_FIO_SECONDS", "3"))
        common = (
            "--rw=randwrite",
            "--bsrange=1k-1M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_backlog=16",
            "--size=8M",
        )
        jobs = [
            word
            for n in range(4)
            for word in (f"--name=job{n}", *common, f"--offset={8 * n}M", f"--iodepth={(1, 4, 16, 32)[n]}")
        ]
        fio(scene.uri, *jobs, seconds=seconds)

    scene.serve(client)


def test_fio_in_mixed_order_over_one_disk(scene: Scene) -> None:
    need("fio")
    jobs = [
        word
        for kind in ("randread", "randrw", "trimwrite")
        for word in (f"--name={kind}", f"--rw={kind}", "--bs=4k", "--iodepth=32", "--size=16M", "--fsync=20")
    ]
    scene.serve(lambda: fio(scene.uri, *jobs, seconds=1))


def test_qemu_img(scene: Scene) -> None:
    need("qemu-img")
    source = scene.directory / "source.img"
    data = random.Random(3).randbytes(4 * MIB) + bytes(8 * MIB) + random.Random(4).randbytes(4 * MIB)
    source.write_bytes(data)

    def client() -> None:
        info = json.loads(run("qemu-img", "info", "--output=json", scene.uri))
        assert info["virtual-size"] == 16 * MIB
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, scene.uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, scene.uri)
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", scene.uri, scene.directory / "back.qcow2")
        run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, scene.directory / "back.qcow2")

    scene.serve(client)
    assert scene.image.read_bytes() == data


def test_a_file_system_through_nbdfuse(scene: Scene) -> None:
    need("nbdfuse", "fusermount3", "mkfs.ext4", "debugfs", "e2fsck")
    if not Path("/dev/fuse").exists():
        pytest.skip("there is no /dev/fuse, so nbdfuse cannot mount anything")
    mounted = scene.directory / "mnt"
    mounted.mkdir()
    document, back = scene.directory / "document", scene.directory / "back"
    document.write_bytes(random.Random(5).randbytes(3 * MIB + 123))

    def client() -> None:
        pid = scene.directory / "pid"
        with subprocess.Popen(["nbdfuse", "-P", pid, mounted / "disk", scene.uri], stderr=subprocess.PIPE) as server:
            try:
                while not pid.exists():
                    if server.poll() is not None:
                        assert server.stderr is not None
                        pytest.skip(f"nbdfuse cannot mount here: {server.stderr.read().decode().strip()}")
                use(mounted / "disk")
            finally:
                subprocess.run(["fusermount3", "-u", mounted], check=False)

    def use(disk: Path) -> None:
        run("mkfs.ext4", "-q", "-F", disk)
        run("debugfs", "-w", "-R", f"write {document} document", disk)
        run("e2fsck", "-f", "-n", disk)
        run("debugfs", "-R", f"dump document {back}", disk)

    scene.serve(client)
    assert back.read_bytes() == document.read_bytes()
    run("e2fsck", "-f", "-n", scene.image)
