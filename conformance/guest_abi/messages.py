"""One direction of a xenstore ring as its reader sees it: messages, put together from pieces."""

from __future__ import annotations

from typing import Final, final

from hypervisor.abi.io import xs_wire
from hypervisor.machine.memory import Memory

_SIZE: Final = xs_wire.XENSTORE_RING_SIZE
_HEADER: Final = xs_wire.xsd_sockmsg
_U32: Final = 0xFFFF_FFFF
_MOST_TEXT: Final = 40


@final
class Messages:
    """Reads along: what the guest asks, or what it is answered and told."""

    def __init__(self, memory: Memory, mfn: int, is_requests: bool) -> None:
        layout = xs_wire.xenstore_domain_interface
        self._memory = memory
        self._is_requests = is_requests
        self._data = (mfn << 12) + layout.offset("req" if is_requests else "rsp")
        self._produced = (mfn << 12) + layout.offset("req_prod" if is_requests else "rsp_prod") >> 2
        self._seen = memory.i[self._produced]
        self._partial = b""
        self._lost = False

    def new(self) -> list[str]:
        """Return the messages that are whole since the last look, in words."""
        produced = self._memory.i[self._produced]
        count = (produced - self._seen) & _U32
        if not count or self._lost:
            return []
        if count > _SIZE:
            self._lost = True
            return [f"{count} bytes at once, and there is room for {_SIZE}"]
        self._partial += bytes(
            self._memory.b[self._data + (at & _SIZE - 1)] for at in range(self._seen, self._seen + count)
        )
        self._seen = produced
        return self._whole()

    def _whole(self) -> list[str]:
        found: list[str] = []
        while len(self._partial) >= _HEADER.size:
            head = _HEADER.unpack_from(self._partial)
            name = xs_wire.NAMES.get(head.type, f"type {head.type}")
            if head.len > xs_wire.XENSTORE_PAYLOAD_MAX:
                self._lost = True
                return [*found, f"{name} of {head.len} bytes, and {xs_wire.XENSTORE_PAYLOAD_MAX} are allowed"]
            end = _HEADER.size + head.len
            if len(self._partial) < end:
                break
            # A value goes without the zero that ends all other strings.
            ends = not (self._is_requests and head.type == xs_wire.XS_WRITE)
            found.append(f"{name} {_words(self._partial[_HEADER.size : end], ends)}")
            self._partial = self._partial[end:]
        return found


def _words(payload: bytes, ends_with_zero: bool) -> str:
    parts = (payload.removesuffix(b"\0") if ends_with_zero else payload).split(b"\0")
    return " ".join(map(_short, parts[:3])) + (" ..." if len(parts) > 3 else "")


def _short(part: bytes) -> str:
    text = part.decode("utf-8", "backslashreplace")
    return repr(text) if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]!r}... ({len(part)} bytes)"
