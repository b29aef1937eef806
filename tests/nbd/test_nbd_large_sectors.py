"""An export of a disk that has sectors of 4096 bytes."""

import json
import random

import attrs
from nbd_scene import Scene, need, run
from raw_client import RawClient

MIB = 1 << 20


def test_clients_are_told_and_kept_to_it(scene: Scene) -> None:
    need("nbdinfo", "nbdcopy")
    guest = scene.guest()
    guest = attrs.evolve(guest, disks=(attrs.evolve(guest.disks[0], sector_size=4096, physical_sector_size=4096),))
    source, back = scene.directory / "source", scene.directory / "back"
    source.write_bytes(random.Random(2).randbytes(16 * MIB))
    found: dict[str, object] = {}
    errors: list[int] = []

    def client() -> None:
        found.update(json.loads(run("nbdinfo", "--json", scene.uri)))
        run("nbdcopy", "--flush", source, scene.uri)
        run("nbdcopy", scene.uri, back)
        with RawClient(scene.path) as raw:
            raw.hello()
            for offset, length in [(512, 4096), (0, 512), (4096, 4096)]:
                raw.request(0, offset, length)
                errors.append(raw.reply(length)[0])

    scene.serve(client, guest)
    (export,) = found["exports"]  # type: ignore[misc]
    assert export["block_size_minimum"] == 4096
    assert scene.image.read_bytes() == source.read_bytes() == back.read_bytes()
    assert errors == [22, 22, 0]
