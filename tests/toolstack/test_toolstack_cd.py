"""CD drives: what is in them comes and goes while the guest runs."""

from pathlib import Path

import attrs
import pytest
from control_host import Steered, steered

from toolstack.control.protocol import ControlError
from toolstack.disk_spec import DiskSpec, parse_disk
from toolstack.errors import SpecError
from toolstack.xl_config import DomainConfig

WATCHES = """
    disk = await self.disk("xvdc")
    assert disk.removable and disk.readonly

    async def look():
        try:
            self.print(f"sees {disk.sectors} sectors,", (await disk.read(0, 1))[:5].decode())
        except OSError as error:
            self.print(f"sees {disk.sectors} sectors, errno", error.errno)

    await look()
    while True:
        await disk.resized()
        await look()
"""
BACK = "/local/domain/{}/backend/vbd/{}/51744"


def media(host: Steered) -> None:
    for name in ("one", "two"):
        host.image(f"{name}.iso").write_bytes((f"CD {name}" + " " * 512)[:512].encode() * 8)


def with_drive(*words: str, backend: str = "0") -> list[str]:
    return [",".join(["vdev=xvdc", "devtype=cdrom", f"backend={backend}", *words])]


@pytest.mark.parametrize("backend", ["0", "storage"])
async def test_media_come_and_go(tmp_path: Path, backend: str) -> None:
    def configure(host: Steered) -> list[DomainConfig]:
        media(host)
        storage = host.guest("storage", "await self.kernel.never()", "driver_domain = 1")
        disks = with_drive("target=one.iso", backend=backend)
        return [storage, host.guest("guest", WATCHES, f"disk = {disks!r}")]

    async with steered(tmp_path, configure) as host:
        back = BACK.format(0 if backend == "0" else 1, 2)
        await host.says("guest | sees 8 sectors, CD on")
        assert host.store(f"{back}/info") == "7"  # VDISK_CDROM | VDISK_REMOVABLE | VDISK_READONLY
        assert host.store("/local/domain/2/device/vbd/51744/device-type") == "cdrom"
        for _ in range(2):
            host.lines.clear()
            await host.ask("cd-eject", domain="guest", device="xvdc")
            await host.says("guest | sees 0 sectors, errno 123")
            assert (host.store(f"{back}/params"), host.store(f"{back}/sectors")) == ("", "0")
            assert host.store("/libxl/2/device/vbd/51744/params") == ""
            assert host.store(f"{back}/state") == "4"
            await host.ask("cd-insert", domain="guest", device="xvdc", target="two.iso", cwd=str(tmp_path))
            await host.says("guest | sees 8 sectors, CD tw")
            for home in (back, "/libxl/2/device/vbd/51744"):
                assert host.store(f"{home}/params") == str(tmp_path / "two.iso")
        host.lines.clear()
        await host.ask("cd-insert", domain="guest", device="51744", target="one.iso", cwd=str(tmp_path))
        await host.says("guest | sees 8 sectors, CD on")
        # One medium in the place of another of the same size is a change that can be seen.
        assert "guest | sees 0 sectors, errno 123\n" in host.lines


async def test_a_drive_may_be_empty_at_first_and_keeps_its_medium_over_a_reboot(tmp_path: Path) -> None:
    def configure(host: Steered) -> list[DomainConfig]:
        media(host)
        return [host.guest("guest", WATCHES, f"disk = {with_drive('format=empty')!r}")]

    async with steered(tmp_path, configure) as host:
        await host.says("sees 0 sectors, errno 123")
        await host.ask("cd-insert", domain="guest", device="xvdc", target="one.iso", cwd=str(tmp_path))
        await host.says("sees 8 sectors, CD on")
        host.lines.clear()
        await host.ask("reboot", domain="guest", wait=True)
        await host.says("sees 8 sectors, CD on")
        await host.ask("cd-eject", domain="guest", device="xvdc")
        await host.ask("cd-eject", domain="guest", device="xvdc")  # an empty one stays empty
        await host.says("sees 0 sectors, errno 123")


async def test_what_is_in_a_drive_is_free_when_it_has_been_taken_out(tmp_path: Path) -> None:
    def configure(host: Steered) -> list[DomainConfig]:
        media(host)
        disks = with_drive("target=one.iso")
        return [host.guest("guest", WATCHES, f"disk = {disks!r}"), host.guest("other", "await self.kernel.never()")]

    async with steered(tmp_path, configure) as host:
        await host.says("sees 8 sectors")
        attach = {"domain": "other", "spec": "one.iso,,xvdb,w", "cwd": str(tmp_path)}
        with pytest.raises(ControlError, match="is used by 'guest' already, and one of the two writes to it"):
            await host.ask("block-attach", **attach)
        await host.ask("cd-eject", domain="guest", device="xvdc")
        await host.ask("block-attach", **attach)
        with pytest.raises(ControlError, match="is used by 'other' already, and one of the two writes to it"):
            await host.ask("cd-insert", domain="guest", device="xvdc", target="one.iso", cwd=str(tmp_path))


@pytest.mark.parametrize(
    ("verb", "device", "target", "sentence"),
    [
        ("cd-insert", "xvdc", "gone.iso", "the disk image '{}/gone.iso' does not exist"),
        ("cd-insert", "xvdc", "odd.iso", "the disk image '{}/odd.iso' is too short"),
        ("cd-insert", "xvdc", "", "there is no image without a name (cd-eject empties a drive)"),
        ("cd-insert", "xvdc", "nbd:unix:", "'nbd:unix:' is not of the form"),
        ("cd-insert", "xvdc", "nbd:unix:gone", "nbd:unix:{}/gone: No such file or directory"),
        ("cd-insert", "xvda", "two.iso", "xvda of guest is no CD drive (devtype=cdrom)"),
        ("cd-eject", "xvda", "", "xvda of guest is no CD drive (devtype=cdrom)"),
        ("cd-eject", "xvdd", "", "guest has no disk 'xvdd'"),
        ("cd-eject", "junk", "", "'junk' is no virtual disk name"),
    ],
)
async def test_mistakes_change_nothing(tmp_path: Path, verb: str, device: str, target: str, sentence: str) -> None:
    def configure(host: Steered) -> list[DomainConfig]:
        media(host)
        host.image("odd.iso", 700)
        host.image("a.img")
        disks = [*with_drive("target=one.iso"), "a.img,,xvda"]
        return [host.guest("guest", WATCHES, f"disk = {disks!r}")]

    async with steered(tmp_path, configure) as host:
        await host.says("sees 8 sectors, CD on")
        args = {"target": target, "cwd": str(tmp_path)} if verb == "cd-insert" else {}
        with pytest.raises(ControlError) as caught:
            await host.ask(verb, domain="guest", device=device, **args)
        assert str(caught.value).startswith(sentence.replace("{}", str(tmp_path)))
        assert host.store(f"{BACK.format(0, 1)}/params") == str(tmp_path / "one.iso")
        assert host.store(f"{BACK.format(0, 1)}/sectors") == "8"


async def test_a_medium_is_taken_out_in_the_middle_of_reads(tmp_path: Path) -> None:
    """All that is asked of it fails, or has what was there; the drive goes on with the next one."""
    reads = """
    disk = await self.disk("xvdc")

    async def one(n):
        while True:
            try:
                data = await disk.read(n, 1)
                assert data[:3] == b"CD ", data
            except OSError as error:
                self.print("errno", error.errno)
                await self.sleep(0.3)
            await self.sleep(1e-5)

    for n in range(6):
        self.kernel.spawn(one(n))
    await self.kernel.never()
    """

    def configure(host: Steered) -> list[DomainConfig]:
        media(host)
        return [host.guest("guest", reads, f"disk = {with_drive('target=one.iso')!r}")]

    async with steered(tmp_path, configure, time="real") as host:
        for name in ("two", "one", "two"):
            await host.ask("cd-insert", domain="guest", device="xvdc", target=f"{name}.iso", cwd=str(tmp_path))
    assert host.result is not None
    assert host.result.exit_code == 0, host.lines
    told = {line.split("errno ")[1].strip() for line in host.lines if "errno" in line}
    assert "123" in told
    assert told <= {"5", "123"}


def test_specifications() -> None:
    empty = DiskSpec("", "xvdc", writable=False, removable=True)
    for text in (
        "vdev=xvdc,devtype=cdrom,format=empty",
        "vdev=xvdc,cdrom",
        ",empty,xvdc,,cdrom",
        ",,xvdc,r,devtype=cdrom",
    ):
        assert parse_disk(text) == empty, text
    assert empty.resolved(Path("/somewhere")) == empty
    assert parse_disk("/a.iso,,xvdc,cdrom") == attrs.evolve(empty, target="/a.iso")
    for text in (
        "vdev=xvdc,format=empty",
        "vdev=xvdc,cdrom,format=empty,target=/a.iso",
        "a.iso,empty,xvdc,,cdrom",
    ):
        with pytest.raises(SpecError, match="only a CD drive \\(devtype=cdrom\\) without a target can be empty"):
            parse_disk(text)
    with pytest.raises(SpecError, match="the disk has no target"):
        parse_disk("vdev=xvdc")
