"""Captures of whole bridges: pcapng files with one interface for each port (a guest's vif, a network card).

The format is that of draft-ietf-opsawg-pcapng: a section header, an interface description before the first packet of
each interface, an enhanced packet block for each frame. Times are in ns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from dpkt import pcapng

from toolstack.errors import UsageError

SNAP_LENGTH = 65536
EPB_FLAGS = 2
"""The option of a packet that says which way it went."""
INBOUND, OUTBOUND = b"\x01\0\0\0", b"\x02\0\0\0"
NANOSECONDS = b"\x09"
U32 = 0xFFFFFFFF


class Capture:
    """A pcapng file. `now` tells the time in ns since 1970; `failure` is a sentence once the file is not complete."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises `UsageError`."""
        self.path = path
        self.failure = ""
        self.now: Callable[[], int] = lambda: 0
        self._interfaces: dict[str, int] = {}
        try:
            # Unbuffered: what is not written shows at once, and a host that is killed leaves whole packets.
            self._file: BinaryIO = path.open("wb", buffering=0)
        except OSError as error:
            raise UsageError(f"capture file {path}: {error.strerror}") from None
        self._write(pcapng.SectionHeaderBlockLE(opts=_options((pcapng.PCAPNG_OPT_SHB_USERAPPL, b"paravirt"))))

    def watcher(self, bridge: str) -> Callable[[str, bool, bytes], None]:
        """Return what a bridge is to call, as `watch(port, inbound, frame)`, for each frame that passes a port."""

        def watch(port: str, inbound: bool, frame: bytes) -> None:
            number = self._interfaces.get(port)
            if number is None:
                number = self._add_interface(port, f"{port} on {bridge}")
            now = self.now()
            block = pcapng.EnhancedPacketBlockLE(
                iface_id=number,
                ts_high=now >> 32,
                ts_low=now & U32,
                pkt_data=frame,
                opts=_options((EPB_FLAGS, INBOUND if inbound else OUTBOUND)),
            )
            self._write(block)

        return watch

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:
            self._note(error)

    def _add_interface(self, name: str, description: str) -> int:
        options = _options(
            (pcapng.PCAPNG_OPT_IF_NAME, name.encode()),
            (pcapng.PCAPNG_OPT_IF_DESCRIPTION, description.encode()),
            (pcapng.PCAPNG_OPT_IF_TSRESOL, NANOSECONDS),
        )
        self._write(pcapng.InterfaceDescriptionBlockLE(snaplen=SNAP_LENGTH, opts=options))
        return self._interfaces.setdefault(name, len(self._interfaces))

    def _write(self, block: pcapng._PcapngBlock) -> None:
        """Append a block. What comes after one that could not be written is not written either."""
        if self.failure:
            return
        data = bytes(block)
        try:
            written = self._file.write(data)
        except OSError as error:
            self._note(error)
            return
        if written != len(data):
            self.failure = f"capture file {self.path}: the disk is full; it is not complete"

    def _note(self, error: OSError) -> None:
        """Remember why the capture is not complete; the network goes on without it."""
        self.failure = self.failure or f"capture file {self.path}: {error.strerror}; it is not complete"


def _options(*options: tuple[int, bytes]) -> list[pcapng.PcapngOptionLE]:
    made = [pcapng.PcapngOptionLE(code=code, data=data) for code, data in options]
    return [*made, pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_ENDOFOPT, data=b"")]
