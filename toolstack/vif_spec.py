"""Network interface specifications, as in xl-network-configuration(5): `mac=…,bridge=…,ip=…,rate=…,vifname=…`."""

import hashlib
import ipaddress
import re
from collections.abc import Callable, Container
from typing import Any

import attrs

from backends.net.vlan import parse_bridge
from toolstack.errors import SpecError, did_you_mean

DEFAULT_BRIDGE = "xenbr0"
XEN_OUI = "00:16:3e"
_MAX_VIFNAME = 15  # IFNAMSIZ less its NUL
_MAX_RATE_INTERVAL_US = 10_000_000
_DEFAULT_RATE_INTERVAL_US = 50_000
_KEYS = ("mac", "bridge", "ip", "rate", "vifname", "backend", "devid", "script", "type", "mtu", "mirror")
_ELSEWHERE = ("model", "gatewaydev", "forwarddev", "accel")
_SCRIPTS = ("vif-bridge", "vif-openvswitch")
"""Xen's scripts whose work the backend's bridge does: VLANs behind a bridge's name are understood with either."""
TRUST = {"trusted": True, "untrusted": False}
"""Words without a value: whether the frontend is to trust its backend."""
_MAC = re.compile(r"[0-9a-f]{1,2}(:[0-9a-f]{1,2}){5}")
_RATE = re.compile(r"([0-9]+)([GMK]?)([Bb])/s(?:@([0-9]+)(ms|us|s))?")
_SCALE = {"": 1, "K": 1000, "M": 1000_000, "G": 1000_000_000}
_UNITS_US = {"s": 1_000_000, "ms": 1000, "us": 1}


@attrs.frozen
class Rate:
    """A transmit limit: at most `nbytes` in any `interval_us`."""

    nbytes: int
    interval_us: int

    @property
    def node(self) -> str:
        """The value of the backend's `rate` node."""
        return f"{self.nbytes},{self.interval_us}"


@attrs.frozen
class VifSpec:
    """One virtual network interface of a domain."""

    mac: str | None = None
    """Lower-case `aa:bb:cc:dd:ee:ff`, or None: one is generated."""
    bridge: str = DEFAULT_BRIDGE
    """Name of the bridge, without its VLANs."""
    vlans: str = ""
    """`.ACCESS` and `:TRUNK`s behind the name, as the backend's node has them."""
    mirror: bool = False
    """It gets a copy of what comes into the bridge."""
    ip: tuple[str, ...] = ()
    rate: Rate | None = None
    vifname: str | None = None
    backend: str = "0"
    devid: int | None = None
    mtu: int | None = None
    script: str = "vif-bridge"
    """Name of Xen's script that would plug it into its bridge."""
    trusted: bool = True

    def number(self, place: int) -> int:
        """Return the number of the device, if this is entry `place` of the list."""
        return place if self.devid is None else self.devid


def parse_vif(text: str) -> VifSpec:
    """Parse one entry of the `vif` list; an empty text is an interface with all defaults. Raises `SpecError`."""
    spec = VifSpec()
    seen: set[str] = set()
    for word in text.split(","):
        if not word.strip():
            continue
        key, equals, value = (part.strip() for part in word.partition("="))
        key = key.lower()
        if not equals and key in TRUST:
            if seen & TRUST.keys():
                raise SpecError("a vif is trusted or untrusted, and that is said once")
            seen.add(key)
            spec = attrs.evolve(spec, trusted=TRUST[key])
            continue
        if not equals:
            raise SpecError(f"a vif parameter is key=value, and {word.strip()!r} is not")
        if key in seen:
            raise SpecError(f"the vif parameter {key!r} is given twice")
        seen.add(key)
        spec = _set(spec, key, value)
    return spec


def _set(spec: VifSpec, key: str, value: str) -> VifSpec:
    if key in _ELSEWHERE:
        raise SpecError(f"the vif parameter {key!r} is not supported")
    if key not in _KEYS:
        raise SpecError(f"unknown vif parameter {key!r}{did_you_mean(key, _KEYS)}")
    if not value:
        raise SpecError(f"the vif parameter {key!r} is empty")
    if key == "type":
        if value != "vif":
            raise SpecError(f"a PV guest has interfaces of type 'vif', not {value!r}")
        return spec
    if key == "bridge":
        name, vlans = _bridge(value)
        return attrs.evolve(spec, bridge=name, vlans=vlans)
    changed: dict[str, Any] = {key: _CONVERT[key](value)}
    return attrs.evolve(spec, **changed)


def parse_mac(text: str) -> str:
    """Return the address in lower case with two digits a byte. Raises `SpecError`, also for a group address."""
    lowered = text.lower()
    if not _MAC.fullmatch(lowered):
        raise SpecError(f"{text!r} is no MAC address (such as 00:16:3e:12:34:56)")
    octets = [int(part, 16) for part in lowered.split(":")]
    if octets[0] & 1:
        raise SpecError(f"the MAC address {text!r} is a multicast address")
    if not any(octets):
        raise SpecError("the MAC address of a vif cannot be all zero")
    return ":".join(f"{octet:02x}" for octet in octets)


def _addresses(text: str) -> tuple[str, ...]:
    for word in text.split():
        try:
            ipaddress.ip_interface(word)
        except ValueError:
            raise SpecError(f"{word!r} is no IP address") from None
    return tuple(text.split())


def parse_rate(text: str) -> Rate:
    """Parse `10Mb/s`, `250KB/s` or `1MB/s@20ms` (b: bits, B: bytes; the interval is 50 ms by default)."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise SpecError(f"{text!r} is no rate (such as 10Mb/s, 250KB/s or 1MB/s@20ms)")
    per_second = int(match[1]) * _SCALE[match[2]]
    if match[3] == "b":
        per_second //= 8
    interval = int(match[4]) * _UNITS_US[match[5]] if match[4] else _DEFAULT_RATE_INTERVAL_US
    if not 0 < interval <= _MAX_RATE_INTERVAL_US:
        raise SpecError(f"the interval of the rate {text!r} is not between 1 us and 10 s")
    nbytes = per_second * interval // 1_000_000
    if nbytes == 0:
        raise SpecError(f"the rate {text!r} lets no byte pass in its interval")
    return Rate(nbytes, interval)


def _vifname(text: str) -> str:
    if len(text) > _MAX_VIFNAME or not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        raise SpecError(f"{text!r} is no interface name (at most {_MAX_VIFNAME} letters and digits)")
    return text


def _bridge(text: str) -> tuple[str, str]:
    """Return the name of a bridge, and the VLANs behind it as they are. Raises `SpecError`."""
    try:
        name, _ = parse_bridge(text)
    except ValueError as error:
        raise SpecError(str(error)) from None
    return _vifname(name), text[len(name) :]


def _script(text: str) -> str:
    name = text.rpartition("/")[2]
    if name not in _SCRIPTS:
        raise SpecError(
            f"the script {text!r} is not supported (only {' and '.join(_SCRIPTS)}, which need not be there)"
        )
    return name


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise SpecError(f"mirror is 0 or 1, not {text!r}")
    return text == "1"


def _devid(text: str) -> int:
    if not text.isdecimal() or len(text) > 6:
        raise SpecError(f"the devid of a vif is a small number, not {text!r}")
    return int(text)


def _mtu(text: str) -> int:
    if not text.isdecimal() or len(text) > 6 or not 68 <= int(text) <= 65535:
        raise SpecError(f"the mtu of a vif is between 68 and 65535, not {text!r}")
    return int(text)


_CONVERT: dict[str, Callable[[str], object]] = {
    "mac": parse_mac,
    "mirror": _flag,
    "ip": _addresses,
    "rate": parse_rate,
    "vifname": _vifname,
    "backend": str,
    "devid": _devid,
    "mtu": _mtu,
    "script": _script,
}


def generate_mac(seed: int, domain: str, devid: int, taken: Container[str] = ()) -> str:
    """Return an address in Xen's range that depends on the arguments only and is not in `taken`.

    The three bytes behind the OUI come from SHA-256 of seed, domain name and device number; as with xl the top bit
    of the first of them is clear.
    """
    attempt = 0
    while True:
        digest = hashlib.sha256(f"{seed}/{domain}/{devid}/{attempt}".encode()).digest()
        mac = f"{XEN_OUI}:{digest[0] & 0x7F:02x}:{digest[1]:02x}:{digest[2]:02x}"
        if mac not in taken:
            return mac
        attempt += 1
