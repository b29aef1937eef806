"""Disks on whole hosts: real file systems, guests that misbehave, ends that die. Every run ends with a leak check."""

import os
import re
import shutil
import subprocess
import textwrap
import time
from functools import partial
from pathlib import Path

import pytest
from block_scene import RANDOM_TRAFFIC, Scene

import toolstack.host
from backends.block import BlockBack
from toolstack.errors import UsageError
from toolstack.xl_config import load_config

TOOLS = ("mkfs.ext4", "dumpe2fs", "e2fsck", "debugfs")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("schedule", ["fifo", "random:7"])
def test_random_traffic(scene: Scene, monkeypatch: pytest.MonkeyPatch, persistent: bool, schedule: str) -> None:
    monkeypatch.setattr(toolstack.host, "BlockBack", partial(BlockBack, persistent=persistent))
    images = [scene.image(f"{n}.img") for n in range(2)]
    guests = [scene.guest(f"guest{n}", RANDOM_TRAFFIC.format(seed=n), image) for n, image in enumerate(images)]
    result = scene.run(*guests, schedule=schedule)
    assert result.exit_code == 0, scene.text
    assert scene.text.count(f"all is well: {persistent}") == 2
    assert images[0].read_bytes() != images[1].read_bytes()


def test_real_time(scene: Scene) -> None:
    result = scene.run(scene.guest("guest", RANDOM_TRAFFIC.format(seed=5), scene.image("a.img")), time="real")
    assert result.exit_code == 0, scene.text


def test_several_disks_do_not_mix(scene: Scene) -> None:
    images = [scene.image(f"{n}.img", data=bytes([n + 1]) * 4096) for n in range(4)]
    guest = scene.guest(
        "guest",
        """
        for n in range(4):
            disk = await self.disk("xvd" + "abcd"[n])
            assert await disk.read(0, 9) == bytes([n + 1]) * 4096 + bytes(512)
            await disk.write(1000, bytes([n + 101]) * 512)
        """,
        *images,
    )
    assert scene.run(guest).exit_code == 0, scene.text
    for n, image in enumerate(images):
        assert image.read_bytes()[512000:512512] == bytes([n + 101]) * 512


def test_a_read_only_disk(scene: Scene) -> None:
    image = scene.image("ro.img", data=b"r" * 512)
    image.chmod(0o444)
    guest = scene.guest(
        "guest",
        """
        disk = await self.disk("xvda")
        assert disk.readonly
        assert await disk.read(0, 1) == b"r" * 512
        try:
            await disk.write(0, bytes(512))
        except OSError as error:
            self.print("refused:", error)
        """,
        image,
        access="ro",
    )
    assert scene.run(guest).exit_code == 0, scene.text
    assert "refused: xvda: write of 1 sectors at 0: read-only file system" in scene.text
    assert image.read_bytes()[:512] == b"r" * 512


def test_an_image_that_shrinks_is_an_error_of_the_disk(scene: Scene) -> None:
    image = scene.image("short.img")
    guest = scene.guest(
        "guest",
        f"""
        import os
        disk = await self.disk("xvda")
        await disk.read(2000, 8)
        os.truncate({str(image)!r}, 512 * 100)
        try:
            await disk.read(2000, 8)
        except OSError as error:
            self.print(error)
        await disk.read(0, 8)
        """,
        image,
    )
    assert scene.run(guest).exit_code == 0, scene.text
    assert "xvda: read of 8 sectors at 2000: input/output error" in scene.text


def test_a_disk_in_memory_is_empty_at_first_and_the_guests_own(scene: Scene) -> None:
    body = """
    disk = await self.disk("xvda")
    assert disk.size == 1 << 40 and not any(await disk.read(disk.sectors - 8, 8))
    await disk.write(disk.sectors - 8, bytes([{0}]) * 4096)
    await disk.flush()
    await self.sleep(1_000_000)
    assert await disk.read(disk.sectors - 8, 8) == bytes([{0}]) * 4096
    await disk.discard(disk.sectors - 8, 8)
    assert not any(await disk.read(disk.sectors - 8, 8))
    """
    guests = [scene.guest(f"g{n}", body.format(n), Path("1T"), kind="format=memory") for n in (1, 2)]
    assert scene.run(*guests).exit_code == 0, scene.text
    with pytest.raises(UsageError, match="in memory"):
        scene.run(scene.guest("g1", "pass", Path("1048576T"), kind="format=memory"))


def test_guests_on_overlays_of_one_base(scene: Scene) -> None:
    base = scene.image("base.img", data=b"b" * 8192)
    body = """
    disk = await self.disk("xvda")
    assert await disk.read(0, 17) == b"b" * 8192 + bytes(512)
    await disk.write(3, b"{0}" * 512)
    await disk.discard(8, 8)
    assert await disk.read(0, 17) == b"b" * 1536 + b"{0}" * 512 + b"b" * 2048 + bytes(4608)
    await disk.flush()
    """
    overlay = f"format=overlay,base={base}"
    again = body.replace('b"b" * 8192 + bytes(512)', 'b"b" * 1536 + b"1" * 512 + b"b" * 2048 + bytes(4608)')
    files = [scene.directory / f"{n}.changes" for n in range(2)]
    guests = [scene.guest(f"g{n}", body.format(n), file, kind=overlay) for n, file in enumerate(files)]
    assert scene.run(*guests).exit_code == 0, scene.text
    assert scene.run(scene.guest("g1", again.format(2), files[1], kind=overlay)).exit_code == 0, scene.text
    assert base.read_bytes() == b"b" * 8192 + bytes((1 << 20) - 8192)
    writer = scene.guest("writer", "pass", base)
    for pair in ([guests[0], writer], [writer, guests[0]]):
        with pytest.raises(UsageError, match=f"is used by '{pair[0].name}' already, and one of the two writes to it"):
            scene.run(*pair)
    with pytest.raises(UsageError, match="is used by 'g0' already"):
        scene.run(guests[0], scene.guest("g2", "pass", files[0], kind=overlay))
    with pytest.raises(UsageError, match="is no file of changes of a disk"):
        scene.run(scene.guest("g2", "pass", scene.image("c.img", data=b"c"), kind=overlay))


def test_a_disk_at_an_nbd_server(scene: Scene) -> None:
    if shutil.which("nbdkit") is None:
        pytest.skip("nbdkit is not installed, so no real server can be tried")
    image = scene.image("served.img")
    place = scene.directory / "s.sock"
    with subprocess.Popen(["nbdkit", "-f", "-U", place, "file", image]) as server:
        try:
            while not place.exists():
                assert server.poll() is None
                time.sleep(0.01)
            guest = scene.guest("guest", RANDOM_TRAFFIC.format(seed=8), Path("nbd:unix:s.sock"))
            assert scene.run(guest).exit_code == 0, scene.text
            assert image.read_bytes().strip(b"\0")
        finally:
            server.terminate()
    with pytest.raises(UsageError, match=r"nbd:unix:.*s\.sock: (Connection refused|No such file)"):
        scene.run(guest)


FAILURES = """
disk = await self.disk("xvda")

async def attempt(what, awaitable):
    try:
        await awaitable
    except OSError as error:
        self.print(error)
    else:
        self.print(what, "went well")

await attempt("read", disk.read(0, 8))
await attempt("read", disk.read(90, 20))
await attempt("write", disk.write(0, b"w" * 4096))
await attempt("write", disk.write(8, b"w" * 4096))
await attempt("flush", disk.flush())
assert await disk.read(0, 16) == b"w" * 6144 + bytes(2048)
"""


def test_a_disk_that_fails(scene: Scene) -> None:
    """What is wrong with the disk is the errors of one guest's requests; its neighbour notices nothing."""
    failing = scene.guest("failing", FAILURES, scene.image("a.img"), kind="faults=bad:100-199;torn:2;flush")
    sound = scene.guest("sound", RANDOM_TRAFFIC.format(seed=4), scene.image("b.img"))
    assert scene.run(failing, sound).exit_code == 0, scene.text
    assert "all is well" in scene.text
    lines = [
        "read went well",
        "xvda: read of 20 sectors at 90: input/output error",
        "write went well",
        "xvda: write of 8 sectors at 8: input/output error",
        "xvda: flush: input/output error",
    ]
    said = [line.partition("] ")[2] or line for line in scene.text.splitlines() if "xvda" in line or "went" in line]
    assert [next(line for line in lines if text.endswith(line)) for text in said] == lines


@pytest.mark.parametrize("time", ["virtual", "real"])
def test_a_slow_disk(scene: Scene, time: str) -> None:
    body = """
    disk = await self.disk("xvda")
    started = self.kernel.monotonic_ns()
    await disk.read(0, 8)
    taken = self.kernel.monotonic_ns() - started
    assert 30_000_000 <= taken < 5_000_000_000, taken
    """
    guest = scene.guest("guest", body, scene.image("a.img"), kind="faults=slow:30")
    assert scene.run(guest, time=time).exit_code == 0, scene.text


def test_a_guest_that_dies_in_the_middle_of_its_requests(scene: Scene) -> None:
    """Its requests are with the disk, its pages mapped; the neighbour on the same backend notices nothing."""
    dying = scene.guest(
        "dying",
        """
        disk = await self.disk("xvda")
        for n in range(40):
            self.kernel.spawn(disk.read(n, 88))
        await self.kernel.yield_()
        raise ValueError("enough")
        """,
        scene.image("a.img"),
    )
    other = scene.guest("other", RANDOM_TRAFFIC.format(seed=3), scene.image("b.img"))
    result = scene.run(dying, other)
    assert scene.of(result, "dying").reason == "crash"
    assert scene.of(result, "other").reason == "poweroff", scene.text
    assert "all is well" in scene.text


def test_a_guest_that_powers_off_in_the_middle_of_its_requests(scene: Scene) -> None:
    guest = scene.guest(
        "guest",
        """
        disk = await self.disk("xvda")
        for n in range(60):
            self.kernel.spawn(disk.write(n, bytes([n]) * 512))
        await self.kernel.yield_()
        """,
        scene.image("a.img"),
    )
    result = scene.run(guest)
    assert scene.of(result, "guest").reason == "poweroff", scene.text


LIES = {
    "garbage in req_prod": "ring.shared[0] = 5000",
    "req_prod runs backwards": "ring.shared[0] = ring.req_prod_pvt - 1 & 0xffffffff",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_guest_that_lies_to_its_backend_loses_its_disk_only(scene: Scene, lie: str) -> None:
    liar = scene.guest(
        "liar",
        f"""
        disk = await self.disk("xvda")
        await disk.read(0, 8)
        queue = disk.queue
        ring = queue.ring
        {LIES[lie]}
        self.kernel.events.notify(queue.port)
        await self.sleep(1)
        try:
            await disk.read(8, 8)
        except OSError as error:
            self.print("the liar gets", error)
        """,
        scene.image("a.img"),
    )
    other = scene.guest("other", RANDOM_TRAFFIC.format(seed=4), scene.image("b.img"))
    result = scene.run(liar, other)
    assert result.exit_code == 0, scene.text
    assert "the liar gets xvda: read of 8 sectors at 8: input/output error" in scene.text
    assert "all is well" in scene.text


def test_bad_grants_and_bad_segments_from_a_real_guest(scene: Scene) -> None:
    guest = scene.guest(
        "guest",
        """
        from guest_kernel.block import BlockError
        disk = await self.disk("xvda")
        await disk.read(0, 88)
        queue = disk.queue
        slot = queue._free[-1]
        shape = slot.shapes[88]
        good = shape.descriptors
        bad = [good[:-8] + (4000).to_bytes(4, "little") + bytes([0, 7, 0, 0])]       # a reference of nothing
        bad += [(999999).to_bytes(4, "little") + good[4:]]                           # beyond the table
        bad += [good[:4] + bytes([7, 0, 0, 0]) + good[8:], good[:4] + bytes([0, 8, 0, 0]) + good[8:]]
        for descriptors in bad:
            shape.descriptors = descriptors
            try:
                await disk.read(0, 88)
            except BlockError as error:
                self.print("error", error.errno)
        shape.descriptors = good
        assert await disk.read(0, 88) == b"d" * (88 * 512)
        """,
        scene.image("a.img", data=b"d" * (1 << 20)),
    )
    result = scene.run(guest)
    assert result.exit_code == 0, scene.text
    assert scene.text.count("error 5\n") == 4


def tool(name: str) -> str:
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        message = f"{name} (package e2fsprogs) is not installed, so no real file system can be attached"
        if os.environ.get("PARAVIRT_REQUIRE_LIBXEN") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


def call(name: str, *arguments: object, check: bool = True) -> str:
    command = [tool(name), *map(str, arguments)]
    done = subprocess.run(command, check=check, capture_output=True, text=True)
    return done.stdout


UUID = "3f7a1c52-9d0e-4b6f-8a21-5c6d7e8f9012"
READ_SUPERBLOCK = """
import uuid
disk = await self.disk("xvda")
superblock = await disk.read(2, 2)
assert superblock[56:58] == bytes([0x53, 0xef]), "no ext4"
self.print("label", superblock[120:136].rstrip(bytes(1)).decode())
self.print("uuid", uuid.UUID(bytes=superblock[104:120]))
"""


@pytest.mark.parametrize("block_size", [1024, 4096])
def test_a_real_file_system(scene: Scene, block_size: int) -> None:
    """Label and UUID as dumpe2fs tells them; a file's own blocks are rewritten, and e2fsck has nothing to say."""
    for name in TOOLS:
        tool(name)
    image = scene.image("ext4.img", 16 << 20)
    call("mkfs.ext4", "-q", "-b", block_size, "-L", "guest-root", "-U", UUID, image)
    before = scene.directory / "before"
    before.write_bytes(b"old contents.\n" * 8000)
    size = before.stat().st_size
    call("debugfs", "-w", "-R", f"write {before} letter", image)
    blocks = [int(block) for block in call("debugfs", "-R", "blocks letter", image).split()]
    assert len(blocks) == -(-size // block_size)

    contents = (b"the guest was here. " * 8000)[:size]
    new = scene.directory / "new"
    new.write_bytes(contents)
    body = READ_SUPERBLOCK + textwrap.dedent(
        f"""
        from pathlib import Path
        contents = Path({str(new)!r}).read_bytes()
        per_block = {block_size} // 512
        for n, block in enumerate({blocks!r}):
            piece = contents[n * {block_size} : (n + 1) * {block_size}].ljust({block_size}, bytes(1))
            await disk.write(block * per_block, piece)
        await disk.flush()
        """
    )
    result = scene.run(scene.guest("guest", body, image))
    assert result.exit_code == 0, scene.text

    header = call("dumpe2fs", "-h", image)
    label = re.search(r"^Filesystem volume name: +(\S+)$", header, re.MULTILINE)
    uuid = re.search(r"^Filesystem UUID: +(\S+)$", header, re.MULTILINE)
    assert label is not None
    assert uuid is not None
    assert f"guest | label {label[1]}\n" in scene.lines
    assert f"guest | uuid {uuid[1]}\n" in scene.lines
    assert uuid[1] == UUID
    call("e2fsck", "-fn", image)  # raises if the file system is not clean
    after = scene.directory / "after"
    call("debugfs", "-R", f"dump letter {after}", image)
    assert after.read_bytes() == contents


def test_a_discard_makes_the_image_smaller(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    image = scene.image("disk.img", data=b"x" * (1 << 20))
    kept = scene.image("kept.img", data=b"y" * (1 << 20))
    config = scene.guest(
        "guest",
        """
        disk = await self.disk("xvda")
        await disk.discard(256, 1024)
        await disk.flush()
        data = await disk.read(248, 16)
        assert data == b"x" * 4096 + bytes(4096), data[4090:4100]
        try:
            await (await self.disk("xvdb")).discard(0, 8)
        except OSError as error:
            self.print(error)
        """,
        image,
        kept,
    )
    source = Path(config.source)
    source.write_text(source.read_text().replace("format=raw,vdev=xvdb", "no-discard,format=raw,vdev=xvdb"))
    before = image.stat().st_blocks
    result = scene.run(load_config(source))
    assert scene.of(result, "guest").reason == "poweroff", scene.text
    assert "xvdb: discard of 8 sectors at 0: operation not supported" in scene.text
    assert image.read_bytes() == b"x" * 131072 + bytes(524288) + b"x" * (1048576 - 655360)
    assert image.stat().st_blocks < before
    assert kept.read_bytes() == b"y" * (1 << 20)


def test_indirect_requests_through_a_whole_host(tmp_path: Path) -> None:
    """A guest with memory enough for them copies a disk, 128 KiB a request; the same bytes arrive."""
    scene = Scene(tmp_path)
    data = os.urandom(4 << 20)
    source = scene.image("source.img", size=len(data), data=data)
    target = scene.image("target.img", size=len(data))
    config = scene.guest(
        "copier",
        """
        source, target = await self.disk("xvda"), await self.disk("xvdb")
        for sector in range(0, source.sectors, 1000):
            count = min(1000, source.sectors - sector)
            await target.write(sector, await source.read(sector, count))
        await target.flush()
        self.print(source.max_sectors, "sectors in a request")
        """,
        source,
        target,
        memory=64,
    )
    result = scene.run(config)
    assert scene.of(result, "copier").reason == "poweroff", scene.text
    assert "256 sectors in a request" in scene.text
    assert target.read_bytes() == data


def test_secure_discards_where_they_can_be_promised(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    image = scene.image("image", data=b"s" * 65536)
    body = """
    for name in ("xvda", "xvdb", "xvdc", "xvdd"):
        disk = await self.disk(name)
        await disk.write(8, b"secret! " * 512)
        await disk.flush()
        try:
            await disk.discard(8, 8, secure=True)
        except OSError as error:
            self.print(name, "cannot:", error.errno)
        else:
            assert await disk.read(8, 8) == bytes(4096)
            self.print(name, "forgets")
    """
    scene.guest("a", body, image, scene.image("plain"), scene.image("base"))
    source = tmp_path / "a.cfg"
    disks = [
        "format=raw,vdev=xvda,discard-secure=1,target=image",
        "format=raw,vdev=xvdb,target=plain",
        "format=overlay,vdev=xvdc,base=base,target=changes",
        "format=memory,vdev=xvdd,target=1M",
    ]
    source.write_text(source.read_text().split("disk =")[0] + f"disk = {disks!r}\n")
    result = scene.run(load_config(source))
    assert result.exit_code == 0, scene.text
    for words in ("xvda forgets", "xvdb cannot: 95", "xvdc cannot: 95", "xvdd forgets"):
        assert words in scene.text
    assert image.read_bytes()[:65536] == b"s" * 4096 + bytes(4096) + b"s" * 57344
