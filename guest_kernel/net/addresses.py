"""Ethernet and IPv4 addresses as text and as bytes."""

from __future__ import annotations

import ipaddress

from guest_kernel.net.errors import NetError

BROADCAST_MAC = b"\xff" * 6
NO_MAC = bytes(6)


def mac_from_text(text: str) -> bytes:
    """Return the six bytes of `00:16:3e:…`. Raises NetError."""
    try:
        mac = bytes(int(part, 16) for part in text.strip().split(":"))
    except ValueError:
        mac = b""
    if len(mac) != 6:
        raise NetError(f"{text!r} is not an Ethernet address")
    return mac


def ip_from_text(text: str) -> bytes:
    """Return the four bytes of an IPv4 address. Raises NetError."""
    try:
        return ipaddress.IPv4Address(text).packed
    except ValueError:
        raise NetError(f"{text!r} is not an IPv4 address") from None


def ip_to_text(ip: bytes) -> str:
    """Return `10.0.0.1`."""
    return ".".join(map(str, ip))


def parse_interface(text: str) -> ipaddress.IPv4Interface:
    """Return address and network of `10.0.0.1/24`. Raises NetError."""
    try:
        return ipaddress.IPv4Interface(text)
    except ValueError:
        raise NetError(f"{text!r} is not an IPv4 address with a prefix length, such as 10.0.0.1/24") from None
