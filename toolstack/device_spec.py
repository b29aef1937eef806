"""`device = ["type=dice,backend=dealer"]`: a split device of a class that the toolstack knows nothing of.

It gets what every device has, both ends' directories, and nothing else: its drivers come with the guests' programs.
"""

import re

import attrs

from toolstack.errors import SpecError, did_you_mean

_KIND = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_KEYS = ("type", "backend")
BUILT_IN = {"vbd": "disk", "vif": "vif", "console": "console"}
"""Classes that have a setting of their own."""


@attrs.frozen
class DeviceSpec:
    """A device's class, and the domain of its backend."""

    kind: str
    backend: str


def parse_device(text: str) -> DeviceSpec:
    """Parse one entry of the `device` list. Raises `SpecError`."""
    found: dict[str, str] = {}
    for word in text.split(","):
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals or not value:
            raise SpecError(f"a device is type=CLASS,backend=DOMAIN, and {word.strip()!r} is not key=value")
        if key not in _KEYS:
            raise SpecError(f"unknown device parameter {key!r}{did_you_mean(key, _KEYS)}")
        if key in found:
            raise SpecError(f"the device parameter {key!r} is given twice")
        found[key] = value
    for key in _KEYS:
        if key not in found:
            raise SpecError(f"the device {text!r} has no {key!r}")
    kind = found["type"]
    if not _KIND.fullmatch(kind):
        raise SpecError(f"{kind!r} is no class of devices (small letters, digits, - and _, at most 32)")
    if kind in BUILT_IN:
        raise SpecError(f"devices of class {kind!r} have a setting of their own, or are always there")
    return DeviceSpec(kind, found["backend"])
