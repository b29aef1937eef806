"""The one trace of a host: a header map, then batches of records.

A record is `[time_ns, domid, vcpu_id, kind, *fields]`; kinds and fields are in `hypervisor.abi.tracepoints`. Everything
else (the text log, other formats, replay) reads this stream. How records are kept in the file is for speed: see `tape`
for what is written, `tape_decoder` for how it is read, docs/trace.md for both.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgpack

from hypervisor.abi.tracepoints import KINDS
from hypervisor.tape import DEFINE, OTHER, Tape, register
from hypervisor.tape_decoder import Decoder

MAGIC = "paravirt trace"
VERSION = 2
_OTHERS = 256
"""Records kept as a whole that are packed together: so few that they are still in the processor's cache."""
_HELD = 1 << 18
"""So many bytes are written together."""

Emit = Callable[..., None]
"""`emit(domid, vcpu_id, kind, *fields)`."""


class TraceError(Exception):
    """A file is not a readable trace; the message is a sentence for a person."""


class TraceWriter:
    """Writes records to a file. `now` is asked for the time of each record that does not come by the `tape`."""

    def __init__(self, file: BinaryIO, *, seed: int, about: dict[str, Any] | None = None) -> None:
        self._file = file
        self._pack = msgpack.Packer().pack
        self._others: list[tuple[Any, ...]] = []
        """Records as a whole, and definitions."""
        self.tape = Tape(self._others, self._keep)
        """Takes records as numbers, where that is possible."""
        self.now: Callable[[], int] = lambda: 0
        header = {"magic": MAGIC, "version": VERSION, "seed": seed, "about": about or {}}
        header["kinds"] = {str(kind): [name, list(fields)] for kind, (name, fields) in KINDS.items()}
        self._packed: list[bytes] = [self._pack(header)]
        self._held = 0
        self.emit = self._make_emit()
        """Append one record, stamped with the current time. Fields are kept a while: they must not change."""
        self.failure: OSError | None = None
        """Why the file takes no more: the disk is full. The host goes on."""

    def _make_emit(self) -> Emit:
        """Return `emit`, on local names: it is called for every event of the host that is not for the tape."""
        others, words, keep = self._others, self.tape.words, self._keep
        append = others.append

        def emit(domid: int, vcpu_id: int, kind: int, *fields: Any) -> None:
            append((self.now(), domid, vcpu_id, kind) + fields)  # noqa: RUF005 - a third faster than unpacking
            words.append(OTHER)
            if len(others) >= _OTHERS:
                keep()

        return emit

    def _keep(self) -> None:
        """Pack the records of a while all at once: that takes much less time than one by one."""
        words, others = self.tape.words, self._others
        # (Where there is nothing but whole records, nobody needs to be told so word by word.)
        numbers = b"" if len(words) == len(others) and DEFINE not in words else _packed_words(words)
        try:
            piece = self._pack((numbers, others))
        except (TypeError, ValueError, OverflowError):
            piece = self._pack((numbers, [tuple(map(_packable, record)) for record in others]))
        self.tape.clear()
        others.clear()
        self._packed.append(piece)
        self._held += len(piece)
        if self._held >= _HELD:
            self._write()

    def flush(self) -> None:
        """Write what is kept."""
        if self.tape.words:
            self._keep()
        self._write()

    def _write(self) -> None:
        data = b"".join(self._packed)
        self._packed.clear()
        self._held = 0
        if self.failure is None:
            try:
                self._file.write(data)
                self._file.flush()
            except OSError as error:
                self.failure = error

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self.flush()
        try:
            self._file.close()
        except OSError as error:
            self.failure = self.failure or error

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.tape.cut()
        self.close()


def _packed_words(words: list[int]) -> bytes:
    """Return words as they are in the file: 64 bits each, low byte first."""
    try:
        packed = array("Q", words)
    except Exception:
        # A guest has passed a hypercall what fits no register, or even what says something else whenever it is asked.
        packed = array("Q", map(register, words))
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _packable(field: Any) -> Any:
    """Return a field of a record that a file can hold: nothing, for what a guest has made up."""
    try:
        msgpack.packb(field)
    except (TypeError, ValueError, OverflowError):
        return None
    return field


def read_trace(path: Path) -> tuple[dict[str, Any], Generator[list[Any], None, None]]:
    """Return the header of a trace and an iterator over its records. Raises TraceError."""
    file = path.open("rb")
    unpacker = msgpack.Unpacker(file, strict_map_key=False, raw=False, max_buffer_size=1 << 30)
    try:
        header = unpacker.unpack()
    except (msgpack.exceptions.UnpackException, ValueError) as error:
        file.close()
        empty = isinstance(error, msgpack.exceptions.OutOfData)
        raise TraceError(f"{path} is not a trace: {'it ends before its header' if empty else error}") from None
    if not isinstance(header, dict) or header.get("magic") != MAGIC:
        file.close()
        raise TraceError(f"{path} is not a trace: it does not begin with a {MAGIC!r} header")
    if header.get("version") != VERSION:
        file.close()
        raise TraceError(f"{path} is a trace of version {header.get('version')}; this program reads version {VERSION}")

    def records() -> Generator[list[Any], None, None]:
        with file:
            # From here on the file is closed with the generator, even if nobody asks for a record.
            yield []
            whole = unpacker.tell()
            decoder = Decoder()
            try:
                for batch in unpacker:
                    whole = unpacker.tell()
                    yield from decoder.batch(batch)
            except (msgpack.exceptions.UnpackException, ValueError) as error:
                raise TraceError(f"{path} is damaged: {error}") from None
            if whole != file.tell():
                raise TraceError(f"{path} is damaged: it ends in the middle of a batch of records")

    stream = records()
    next(stream)
    return header, stream


def read_records(path: Path) -> Iterator[list[Any]]:
    """Iterate over the records of a trace."""
    return read_trace(path)[1]
