"""The tree of a fresh guest, node by node, with permissions, against a literal table.

Sources: xenstore-paths.pandoc (the tags say what a guest may write), and what libxl of 4.17 makes of it
(libxl__domain_make, libxl__build_post, libxl__device_generic_add, libxl__device_console_add, device_disk_add,
libxl__set_xenstore_nic). `ro` is dom0's and the guest may read it, `own` is the guest's alone, `front` the guest's and
its backend may read it, `hid` is for dom0 only. `*` stands for a value that differs from host to host.
"""

from pathlib import Path

import pytest
import trio
from control_host import Steered, steered

from toolstack.xl_config import DomainConfig

UUID = "11111111-2222-3333-4444-555555555555"
VM = f"/vm/{UUID}"
PERMISSIONS = {"ro": "n0 r1", "own": "n1", "front": "n1 r0", "hid": "n0"}

TREE = """
~                                                   ro
~/vm                                                ro    /vm/11111111-2222-3333-4444-555555555555
~/name                                              ro    one
~/domid                                             ro    1
~/memory                                            ro
~/memory/static-max                                 ro    8192
~/memory/target                                     ro    4096
~/memory/videoram                                   ro    0
~/cpu                                               ro
~/cpu/0                                             ro
~/cpu/0/availability                                ro    online
~/cpu/1                                             ro
~/cpu/1/availability                                ro    offline
~/device                                            ro
~/device/suspend                                    ro
~/device/suspend/event-channel                      own
~/control                                           ro
~/control/shutdown                                  own
~/control/feature-poweroff                          own
~/control/feature-reboot                            own
~/control/feature-suspend                           own
~/control/sysrq                                     own
~/control/platform-feature-multiprocessor-suspend   ro    1
~/control/platform-feature-xs_reset_watches         ro    1
~/data                                              own
~/drivers                                           own
~/feature                                           own
~/attr                                              own
~/error                                             own
~/store                                             ro
~/store/port                                        ro    1
~/store/ring-ref                                    ro    *
~/console                                           ro
~/console/backend                                   ro    /local/domain/0/backend/console/1/0
~/console/backend-id                                front 0
~/console/limit                                     ro    1048576
~/console/type                                      ro    xenconsoled
~/console/output                                    ro    pty
~/console/tty                                       ro
~/console/port                                      ro    2
~/console/ring-ref                                  ro    *
~/device/vbd                                        ro
~/device/vbd/51712                                  front
~/device/vbd/51712/backend                          front /local/domain/0/backend/vbd/1/51712
~/device/vbd/51712/backend-id                       front 0
~/device/vbd/51712/state                            front 1
~/device/vbd/51712/virtual-device                   front 51712
~/device/vbd/51712/device-type                      front disk
~/device/vbd/51712/trusted                          front 1
~/device/vbd/51712/protocol                         front x86_64-abi
~/device/vif                                        ro
~/device/vif/0                                      front
~/device/vif/0/backend                              front /local/domain/0/backend/vif/1/0
~/device/vif/0/backend-id                           front 0
~/device/vif/0/state                                front 1
~/device/vif/0/handle                               front 0
~/device/vif/0/mac                                  front 00:16:3e:00:00:01
~/device/vif/0/trusted                              front 1
/local/domain/0/backend/console/1/0                 ro
/local/domain/0/backend/console/1/0/frontend        ro    /local/domain/1/console
/local/domain/0/backend/console/1/0/frontend-id     ro    1
/local/domain/0/backend/console/1/0/online          ro    1
/local/domain/0/backend/console/1/0/state           ro    1
/local/domain/0/backend/console/1/0/protocol        ro    vt100
/local/domain/0/backend/vbd/1                       hid
/local/domain/0/backend/vbd/1/51712                 ro
/local/domain/0/backend/vbd/1/51712/frontend        ro    /local/domain/1/device/vbd/51712
/local/domain/0/backend/vbd/1/51712/frontend-id     ro    1
/local/domain/0/backend/vbd/1/51712/online          ro    1
/local/domain/0/backend/vbd/1/51712/state           ro    2
/local/domain/0/backend/vbd/1/51712/removable       ro    0
/local/domain/0/backend/vbd/1/51712/bootable        ro    1
/local/domain/0/backend/vbd/1/51712/dev             ro    xvda
/local/domain/0/backend/vbd/1/51712/type            ro    phy
/local/domain/0/backend/vbd/1/51712/mode            ro    r
/local/domain/0/backend/vbd/1/51712/device-type     ro    disk
/local/domain/0/backend/vbd/1/51712/discard-enable  ro    0
/local/domain/0/backend/vbd/1/51712/specification   ro    xen
/local/domain/0/backend/vbd/1/51712/params          ro    *
/local/domain/0/backend/vbd/1/51712/script          ro    /etc/xen/scripts/block
/local/domain/0/backend/vbd/1/51712/physical-device ro    8:0
/local/domain/0/backend/vbd/1/51712/hotplug-status  ro    connected
/local/domain/0/backend/vif/1                       hid
/local/domain/0/backend/vif/1/0                     ro
/local/domain/0/backend/vif/1/0/frontend            ro    /local/domain/1/device/vif/0
/local/domain/0/backend/vif/1/0/frontend-id         ro    1
/local/domain/0/backend/vif/1/0/online              ro    1
/local/domain/0/backend/vif/1/0/state               ro    2
/local/domain/0/backend/vif/1/0/mac                 ro    00:16:3e:00:00:01
/local/domain/0/backend/vif/1/0/bridge              ro    xenbr0
/local/domain/0/backend/vif/1/0/handle              ro    0
/local/domain/0/backend/vif/1/0/type                ro    vif
/local/domain/0/backend/vif/1/0/script              ro    /etc/xen/scripts/vif-bridge
/local/domain/0/backend/vif/1/0/hotplug-status      ro    connected
/libxl/1                                            hid
/libxl/1/type                                       hid   pv
/libxl/1/device                                     hid
/libxl/1/device/vbd                                 hid
/libxl/1/device/vbd/51712                           hid
/libxl/1/device/vbd/51712/frontend                  hid   /local/domain/1/device/vbd/51712
/libxl/1/device/vbd/51712/backend                   hid   /local/domain/0/backend/vbd/1/51712
/libxl/1/device/vbd/51712/frontend-id               hid   1
/libxl/1/device/vbd/51712/online                    hid   1
/libxl/1/device/vbd/51712/state                     hid   1
/libxl/1/device/vbd/51712/removable                 hid   0
/libxl/1/device/vbd/51712/bootable                  hid   1
/libxl/1/device/vbd/51712/dev                       hid   xvda
/libxl/1/device/vbd/51712/type                      hid   phy
/libxl/1/device/vbd/51712/mode                      hid   r
/libxl/1/device/vbd/51712/device-type               hid   disk
/libxl/1/device/vbd/51712/discard-enable            hid   0
/libxl/1/device/vbd/51712/specification             hid   xen
/libxl/1/device/vbd/51712/params                    hid   *
/libxl/1/device/vbd/51712/script                    hid   /etc/xen/scripts/block
/libxl/1/device/vbd/51712/physical-device           hid   8:0
/libxl/1/device/vif                                 hid
/libxl/1/device/vif/0                               hid
/libxl/1/device/vif/0/frontend                      hid   /local/domain/1/device/vif/0
/libxl/1/device/vif/0/backend                       hid   /local/domain/0/backend/vif/1/0
/libxl/1/device/vif/0/frontend-id                   hid   1
/libxl/1/device/vif/0/online                        hid   1
/libxl/1/device/vif/0/state                         hid   1
/libxl/1/device/vif/0/mac                           hid   00:16:3e:00:00:01
/libxl/1/device/vif/0/bridge                        hid   xenbr0
/libxl/1/device/vif/0/handle                        hid   0
/libxl/1/device/vif/0/type                          hid   vif
/libxl/1/device/vif/0/script                        hid   /etc/xen/scripts/vif-bridge
/libxl/1/device/vif/0/hotplug-status                hid
/vm/UUID                                            ro
/vm/UUID/uuid                                       ro    11111111-2222-3333-4444-555555555555
/vm/UUID/name                                       ro    one
/vm/UUID/image                                      ro
/vm/UUID/image/ostype                               ro    linux
/vm/UUID/image/kernel                               ro    *
/vm/UUID/image/cmdline                              ro    some words
/vm/UUID/start_time                                 ro    1700000000.00
"""
"""At the moment when the backends are in InitWait and the guest has not run yet."""
BACKENDS_OWN = ("feature-", "carrier", "max-ring-page-order", "multi-queue-max-queues", "max-ring-pages")
"""What the backends have written themselves by then is their business."""

Table = dict[str, tuple[str, str | None]]


def expected() -> Table:
    rows: Table = {}
    for line in TREE.strip().splitlines():
        path, kind, *value = line.split(None, 2)
        path = path.replace("~", "/local/domain/1", 1).replace("/vm/UUID", VM)
        text = value[0] if value else ""
        rows[path] = PERMISSIONS[kind], None if text == "*" else text
    return rows


def found(host: Steered) -> Table:
    roots = ("/local/domain/1", "/local/domain/0/backend/", "/libxl/1", VM)
    tree = host.host.xenstored.server.store.tree
    rows: Table = {}
    for raw, node in tree.walk(b"/"):
        path = raw.decode()
        backends = "/backend/" in path and path.rpartition("/")[2].startswith(BACKENDS_OWN)
        if path.startswith(roots) and not backends:
            rows[path] = str(node.perms), node.value.decode()
    for shared in ("console", "console/1", "vbd", "vif"):  # directories of all guests
        rows.pop(f"/local/domain/0/backend/{shared}", None)
    return rows


def paused(host: Steered) -> list[DomainConfig]:
    host.image("a.img")
    settings = (
        'disk = ["a.img,,xvda,ro"]',
        'vif = ["mac=00:16:3e:00:00:01"]',
        "vcpus = 1",
        "maxvcpus = 2",
        "maxmem = 8",
        f'uuid = "{UUID}"',
        'extra = "some words"',
    )
    return [host.guest("one", "await self.kernel.never()", *settings)]


@pytest.fixture
def never_unpaused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `xl create -p`: the domain is built and stays paused."""
    monkeypatch.setattr("toolstack.xc.Xc.unpause", lambda self, domid: None)


@pytest.mark.usefixtures("never_unpaused")
async def test_the_tree_of_a_fresh_guest(tmp_path: Path) -> None:
    async with steered(tmp_path, paused) as host:
        while host.store("/local/domain/0/backend/vif/1/0/hotplug-status") != "connected":  # noqa: ASYNC110
            await trio.sleep(0.001)
        await host.ask("list")
        want, have = expected(), found(host)
        assert have.keys() - want.keys() == set()
        assert want.keys() - have.keys() == set()
        for path, (permissions, value) in want.items():
            assert have[path][0] == permissions, path
            assert value in (None, have[path][1]), path
        await host.ask("destroy", domain="one")


async def test_a_guest_writes_where_it_may_and_nowhere_else(tmp_path: Path) -> None:
    """Tag [w] of xenstore-paths, tried from inside."""
    body = """
        for path in sorted(await walk(self.kernel.xenbus, "/local/domain/1")):
            try:
                await self.kernel.xenbus.write(path + "/probe", "x")
                self.print("may", path)
            except XenstoreError as error:
                self.print("not", path, error.name)
        for path in ("/libxl/1", "/local/domain/0", "/local", "/end"):
            try:
                await self.kernel.xenbus.write(path + "/probe", "x")
                self.print("may", path)
            except XenstoreError as error:
                self.print("not", path, error.name)
        await self.kernel.never()
    """
    head = """
from guest_kernel.xenbus.client import XenstoreError

async def walk(client, path):
    found = [path]
    for name in await client.directory(path):
        found += await walk(client, f"{path}/{name}")
    return found
"""

    def configure(host: Steered) -> list[DomainConfig]:
        return [host.guest("one", body, head=head), host.guest("two", "await self.kernel.never()")]

    async with steered(tmp_path, configure) as host:
        await host.says("one | not /end ")
    may = {line.split()[3] for line in host.lines if line.startswith("one | may ")}
    home = "/local/domain/1"
    assert may == {
        *(f"{home}/{name}" for name in ("data", "drivers", "feature", "attr", "error")),
        *(f"{home}/control/{name}" for name in ("shutdown", "sysrq")),
        *(f"{home}/control/feature-{name}" for name in ("poweroff", "reboot", "suspend")),
        f"{home}/device/suspend/event-channel",
        f"{home}/console/backend-id",
    }
    refused = {line.split()[4].strip() for line in host.lines if line.startswith("one | not ")}
    assert refused == {"EACCES"}
