"""Disk and vif specifications against the rules of xl-disk-configuration(5) and xl-network-configuration(5)."""

import contextlib
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.machine.nbd_address import NbdAddress
from toolstack.device_spec import DeviceSpec, parse_device
from toolstack.disk_spec import DiskSpec, parse_disk, parse_size, vdev_number
from toolstack.errors import SpecError
from toolstack.nodes import disk_nodes
from toolstack.vif_spec import Rate, VifSpec, generate_mac, parse_mac, parse_rate, parse_vif


@pytest.mark.parametrize(
    "text",
    [
        "/x.img,raw,xvda,rw",
        "/x.img,raw,xvda,w",
        "/x.img,,xvda",
        "file:/x.img,xvda,w",
        "phy:/x.img,xvda,w",
        "raw:/x.img,xvda,w",
        "/x.img, raw, xvda, RW",
        "format=raw,vdev=xvda,access=rw,target=/x.img",
        "FORMAT=RAW, vdev=xvda, access=w, target=/x.img",
        "vdev=xvda,backendtype=qdisk,/x.img",
        "vdev=xvda,target=/x.img",
    ],
)
def test_ways_to_say_one_disk(text: str) -> None:
    assert parse_disk(text) == DiskSpec("/x.img", "xvda")


def test_disks_in_memory() -> None:
    disk = parse_disk("format=memory,vdev=xvda,target=64M")
    assert disk == DiskSpec("64M", "xvda", format="memory")
    assert disk.resolved(Path("/somewhere")) == disk
    assert parse_disk("8k,memory,xvdb,ro").target == "8k"


def test_overlays() -> None:
    disk = parse_disk("format=overlay,vdev=xvda,base=a.img,target=b")
    assert disk == DiskSpec("b", "xvda", format="overlay", base="a.img")
    assert parse_disk("b,overlay,xvda,ro,base=a.img") == attrs.evolve(disk, writable=False, discard=False)
    assert disk.resolved(Path("/d")) == attrs.evolve(disk, target="/d/b", base="/d/a.img")
    assert parse_disk("b,,xvda").resolved(Path("/d")) == DiskSpec("/d/b", "xvda")


@pytest.mark.parametrize(
    ("target", "address", "resolved"),
    [
        ("nbd:unix:/a.sock", NbdAddress(path="/a.sock"), "nbd:unix:/a.sock"),
        (
            "nbd:unix:a:b.sock:exportname=x:y,z",
            NbdAddress("a:b.sock", export="x:y,z"),
            "nbd:unix:/d/a:b.sock:exportname=x:y,z",
        ),
        ("nbd:localhost", NbdAddress(host="localhost"), "nbd:localhost:10809"),
        ("nbd:10.0.0.1:7:exportname=e", NbdAddress(host="10.0.0.1", port=7, export="e"), "nbd:10.0.0.1:7:exportname=e"),
    ],
)
def test_nbd_targets(target: str, address: NbdAddress, resolved: str) -> None:
    disk = parse_disk(f"vdev=xvda,target={target}")
    assert disk.nbd == address
    assert disk.resolved(Path("/d")).target == resolved
    assert parse_disk("vdev=xvda,target=/x").nbd is None
    assert disk.reconnect_delay == 0
    assert parse_disk(f"vdev=xvda,reconnect-delay=60,target={target}") == attrs.evolve(disk, reconnect_delay=60)


def test_sizes() -> None:
    sizes = {"512": 512, "3k": 3 << 10, "64M": 64 << 20, " 2G ": 2 << 30, "1T": 1 << 40}
    assert {text: parse_size(text) for text in sizes} == sizes
    for text in ("", "0", "M", "-1", "1.5G", "1 M", "1MB", "\u0661", "9" * 15 + "T", "9" * 99):
        with pytest.raises(SpecError, match="is no size of a disk"):
            parse_size(text)


def test_other_disks() -> None:
    assert parse_disk("vdev=xvdb,access=ro,backend=storage,target=/a,b=c") == DiskSpec(
        "/a,b=c", "xvdb", writable=False, backend="storage"
    )
    assert parse_disk("/cd.iso,raw,hdc,devtype=cdrom") == DiskSpec("/cd.iso", "hdc", writable=False, removable=True)


@pytest.mark.parametrize(
    ("text", "discard"),
    [
        ("/x,raw,xvda", True),
        ("/x,raw,xvda,rw,discard", True),
        ("/x,raw,xvda,rw,no-discard", False),
        ("no-discard,vdev=xvda,target=/x", False),
        ("/x,raw,xvda,ro", False),
        ("/x,raw,xvda,ro,discard", False),
    ],
)
def test_whether_a_guest_may_discard(text: str, discard: bool) -> None:
    assert parse_disk(text).discard is discard


def test_words_that_are_for_the_two_drivers() -> None:
    """They change nothing but two nodes."""
    plain, notes = parse_disk("/x,raw,xvda"), parse_disk("/x,raw,xvda,untrusted,direct-io-safe,specification=xen")
    assert notes == attrs.evolve(plain, trusted=False, direct_io_safe=True)
    assert parse_disk("untrusted,trusted,/x,raw,xvda") == plain
    changed = [
        set(getattr(disk_nodes(1, 0, notes, 0), values)) ^ set(getattr(disk_nodes(1, 0, plain, 0), values))
        for values in ("frontend_values", "backend_values")
    ]
    assert changed == [{("trusted", 0), ("trusted", 1)}, {("direct-io-safe", 1)}]


@pytest.mark.parametrize(
    ("text", "secure"),
    [
        ("/x,raw,xvda", False),
        ("/x,raw,xvda,discard-secure=1", True),
        ("/x,overlay,xvda,base=/y,discard-secure=0", False),
        ("format=memory,vdev=xvda,target=1M", True),
        ("format=memory,vdev=xvda,discard-secure=0,target=1M", False),
        ("1M,memory,xvda,ro", False),
        ("1M,memory,xvda,rw,no-discard", False),
    ],
)
def test_whether_what_is_discarded_is_gone_for_good(text: str, secure: bool) -> None:
    assert parse_disk(text).discard_secure is secure


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no target"),
        (",raw,xvda", "no target"),
        ("/x", "no vdev"),
        ("/x,qcow2,xvda", "'qcow2' is not supported"),
        ("/x,rwa,xvda", "unknown disk format 'rwa'; did you mean 'raw'"),
        ("tap:aio:/x,xvda,w", "prefix 'tap:' is not supported"),
        ("/x,raw,xvda,rx", "access is 'ro' or 'rw', not 'rx'"),
        ("/x,raw,xvda,rw,more", "'more' is the fifth"),
        ("/x,raw,vda", "'vda' is no virtual disk name"),
        ("vdev=xvda,vdev=xvdb,target=/x", "'vdev' is given twice"),
        ("/y,vdev=xvda,target=/x", "'target' is given twice"),
        ("fromat=raw,vdev=xvda,target=/x", "unknown disk parameter 'fromat'; did you mean 'format'"),
        ("/x,raw,xvda,script=block-foo", "'script' is not supported"),
        ("/x,raw,xvda,devtype=tape", "unknown devtype"),
        ("/x,raw,xvda,backendtype=tap", "unknown backendtype"),
        ("/x,raw,xvda,backend=", "'backend' is empty"),
        ("/x,raw,xvda,faults=bad:x", "'bad:x' is not of the form bad:SECTOR or bad:FIRST-LAST"),
        ("/x,raw,xvda,faults=flush,faults=flush", "'faults' is given twice"),
        ("vdev=xvda,target=nbd:", "is not of the form nbd:unix:PATH or nbd:HOST:PORT"),
        ("vdev=xvda,target=nbd:unix:", "is not of the form"),
        ("vdev=xvda,target=nbd:host:0", "is not of the form"),
        ("vdev=xvda,target=nbd:host:65536", "is not of the form"),
        ("vdev=xvda,target=nbd:a..b", "is not of the form"),
        (f"vdev=xvda,target=nbd:{'a' * 64}:1", "is not of the form"),
        ("vdev=xvda,target=nbd:unix:/x:exportname=\ud800", "is not of the form"),
        ("vdev=xvda,target=nbd:\ud800", "is not of the form"),
        ("/x,raw,xvda,discard-secure=yes", "discard-secure is 0 or 1, not 'yes'"),
        ("/x,raw,xvda,ro,discard-secure=1", "what cannot be discarded cannot be discarded securely"),
        ("/x,raw,xvda,no-discard,discard-secure=1", "what cannot be discarded cannot be discarded securely"),
        ("/x,overlay,xvda,base=/y,discard-secure=1", "nobody can promise that the base of an overlay forgets"),
        ("vdev=xvda,discard-secure=1,target=nbd:host", "nobody can promise that an NBD server forgets"),
        ("/x,raw,xvda,reconnect-delay=5", "only a disk at an NBD server has a 'reconnect-delay'"),
        ("vdev=xvda,reconnect-delay=-1,target=nbd:host", "a number of seconds, up to 86400, not '-1'"),
        ("vdev=xvda,reconnect-delay=86401,target=nbd:host", "a number of seconds, up to 86400"),
        ("vdev=xvda,reconnect-delay=1,reconnect-delay=2,target=nbd:host", "'reconnect-delay' is given twice"),
        ("format=overlay,base=b,vdev=xvda,target=nbd:host", "a disk of format 'raw', not 'overlay'"),
        ("/x,memory,xvda", "'/x' is no size of a disk"),
        ("1000,memory,xvda", "a disk has whole sectors of 512 bytes, so it cannot have 1000"),
        ("format=memory,vdev=xvda,sector-size=4096,target=1537K", "whole sectors of 4096 bytes"),
        ("format=memory,base=b,vdev=xvda,target=1M", "only an overlay has a base"),
        ("/x,overlay,xvda", "an overlay needs a base"),
        ("/x,overlay,xvda,base=nbd:unix:/s", "the base of an overlay is an image file, and 'nbd:unix:/s' is at an NBD"),
        ("/x,raw,xvda,specification=virtio", "unknown specification 'virtio'; there is xen"),
        ("/x,overlay,xvda,base=", "an overlay needs a base"),
        ("/x,raw,xvda,base=/y", "only an overlay has a base, and this is a disk of format 'raw'"),
        ("/x,overlaid,xvda", "unknown disk format 'overlaid'; did you mean 'overlay'"),
    ],
)
def test_disk_mistakes(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_disk(text)


@pytest.mark.parametrize(
    ("vdev", "number"),
    [
        # The numbers of xen-vbd-interface(7).
        ("xvda", 202 << 8),
        ("xvda1", 202 << 8 | 1),
        ("xvdb", 51728),
        ("xvdp15", 202 << 8 | 15 << 4 | 15),
        ("xvdq", 1 << 28 | 16 << 8),
        ("xvda16", 1 << 28 | 16),
        ("xvdaa", 1 << 28 | 26 << 8),
        ("d2", 202 << 8 | 2 << 4),
        ("d5p3", 202 << 8 | 5 << 4 | 3),
        ("hda", 0x300),
        ("hdb1", 0x341),
        ("hdc", 0x1600),
        ("hdd2", 0x1642),
        ("sda", 0x800),
        ("sdb3", 0x813),
    ],
)
def test_virtual_disk_numbers(vdev: str, number: int) -> None:
    assert vdev_number(vdev) == number


def test_vifs() -> None:
    text = "mac=00:16:3E:1:2:3,bridge=br7,ip=10.0.0.1 fe80::1/64,rate=1MB/s@20ms"
    text += ",vifname=vif-g,backend=net,devid=3,mtu=9000"
    assert parse_vif(text) == VifSpec(
        mac="00:16:3e:01:02:03",
        bridge="br7",
        ip=("10.0.0.1", "fe80::1/64"),
        rate=Rate(20_000, 20_000),
        vifname="vif-g",
        backend="net",
        devid=3,
        mtu=9000,
    )
    assert parse_vif("") == VifSpec() == parse_vif("type=vif") == parse_vif("trusted")
    assert parse_vif("script=vif-bridge") == VifSpec() == parse_vif("script=/etc/xen/scripts/vif-bridge")
    assert parse_vif("script=vif-openvswitch") == VifSpec(script="vif-openvswitch")
    assert parse_vif("mtu=1400,untrusted") == VifSpec(mtu=1400, trusted=False)
    assert parse_vif("bridge=br7.10:20:30,mirror=1") == VifSpec(bridge="br7", vlans=".10:20:30", mirror=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mac=00:16:3e", "is no MAC address"),
        ("mac=01:00:5e:00:00:01", "is a multicast address"),
        ("mac=0:0:0:0:0:0", "cannot be all zero"),
        ("mac=00:16:3e:00:00:01,mac=00:16:3e:00:00:02", "'mac' is given twice"),
        ("xenbr0", "is key=value"),
        ("bridge=", "is empty"),
        ("bridge=br7.4095", "a VLAN is a number from 1 to 4094, not '4095'"),
        ("bridge=.10", "names no bridge"),
        ("bridge=a b.10", "is no interface name"),
        ("mirror=yes", "mirror is 0 or 1"),
        ("model=e1000", "'model' is not supported"),
        ("script=vif-route", "'vif-route' is not supported"),
        ("type=ioemu", "of type 'vif'"),
        ("macc=1", "unknown vif parameter 'macc'; did you mean 'mac'"),
        ("ip=10.0.0.300", "is no IP address"),
        ("rate=10", "is no rate"),
        ("rate=1B/s@1us", "lets no byte pass"),
        ("rate=1MB/s@99s", "interval"),
        ("vifname=averyveryverylongname", "is no interface name"),
        ("devid=x", "small number"),
        ("mtu=1", "between 68 and 65535"),
        ("trusted,untrusted", "trusted or untrusted"),
        ("trusted=1", "unknown vif parameter 'trusted'"),
    ],
)
def test_vif_mistakes(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_vif(text)


def test_rates() -> None:
    assert parse_rate("10Mb/s").node == "62500,50000"
    assert parse_rate("250KB/s").node == "12500,50000"


def test_generated_macs_depend_on_their_arguments_only() -> None:
    assert generate_mac(0, "guest1", 0) == generate_mac(0, "guest1", 0)
    macs = {generate_mac(seed, name, dev) for seed in (0, 1) for name in ("a", "b") for dev in (0, 1)}
    assert len(macs) == 8
    first = generate_mac(0, "a", 0)
    assert generate_mac(0, "a", 0, {first}) not in (first, *macs)


@given(st.integers(0, 1 << 64), st.text(max_size=20), st.integers(0, 100))
def test_generated_macs_are_in_xens_range(seed: int, name: str, devid: int) -> None:
    mac = generate_mac(seed, name, devid)
    assert parse_mac(mac) == mac
    assert mac.startswith("00:16:3e:")
    assert int(mac[9:11], 16) < 0x80


@given(st.text(max_size=40) | st.text("=,:/ raxvdwfileomtbrgc09", max_size=40))
def test_any_text_is_a_spec_or_one_sentence(text: str) -> None:
    for parse in (parse_disk, parse_vif):
        with contextlib.suppress(SpecError):  # and no other exception
            parse(text)


def test_a_device_of_another_class() -> None:
    assert parse_device(" backend=dealer , type=dice") == DeviceSpec("dice", "dealer")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "key=value"),
        ("dice", "key=value"),
        ("type=dice", "has no 'backend'"),
        ("type=dice,backend=a,backend=b", "twice"),
        ("type=dice,backnd=a", "did you mean 'backend'"),
        ("type=../x,backend=a", "no class of devices"),
        ("type=vbd,backend=a", "setting of their own"),
    ],
)
def test_devices_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse_device(text)
