"""The one trace of a host: a header map, then one msgpack array per event.

A record is `[time_ns, domid, vcpu_id, kind, *fields]`; kinds and fields are in `hypervisor.abi.tracepoints`. Everything
else (the text log, other formats, replay) reads this stream.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgpack

from hypervisor.abi.tracepoints import KINDS

MAGIC = "paravirt trace"
VERSION = 1
_BATCH = 256
"""Records that are packed together: so few that they are still in the processor's cache."""
_BATCHES = 32
"""... and how often that is done before it is written."""

Emit = Callable[..., None]
"""`emit(domid, vcpu_id, kind, *fields)`."""


class TraceError(Exception):
    """A file is not a readable trace; the message is a sentence for a person."""


class TraceWriter:
    """Writes records to a file. `now` is asked for the time of each record."""

    def __init__(self, file: BinaryIO, *, seed: int, about: dict[str, Any] | None = None) -> None:
        self._file = file
        self._pack = msgpack.Packer().pack
        self._records: list[tuple[Any, ...]] = []
        self.now: Callable[[], int] = lambda: 0
        header = {"magic": MAGIC, "version": VERSION, "seed": seed, "about": about or {}}
        header["kinds"] = {str(kind): [name, list(fields)] for kind, (name, fields) in KINDS.items()}
        self._packed: list[bytes] = [self._pack(header)]
        self.emit = self._make_emit()
        """Append one record, stamped with the current time. Fields are kept a while: they must not change."""
        self.failure: OSError | None = None
        """Why the file takes no more: the disk is full. The host goes on."""

    def _make_emit(self) -> Emit:
        """Return `emit`, on local names: it is called for every event of the host."""
        records, keep = self._records, self._keep
        append = records.append

        def emit(domid: int, vcpu_id: int, kind: int, *fields: Any) -> None:
            append((self.now(), domid, vcpu_id, kind) + fields)  # noqa: RUF005 - a third faster than unpacking
            if len(records) >= _BATCH:
                keep()

        return emit

    def _keep(self) -> None:
        """Pack the records of a while all at once: that takes half as long as one by one."""
        records = self._records
        self._packed.append(self._pack(records)[_array_header(len(records)) :])
        records.clear()
        if len(self._packed) >= _BATCHES:
            self.flush()

    def flush(self) -> None:
        """Write what is kept."""
        records = self._records
        self._packed.append(self._pack(records)[_array_header(len(records)) :])
        records.clear()
        data = b"".join(self._packed)
        self._packed.clear()
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
        self.close()


def _array_header(length: int) -> int:
    """Return how many bytes msgpack puts before the elements of an array."""
    return 1 if length < 16 else 3 if length < 1 << 16 else 5


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
            try:
                for record in unpacker:
                    if not isinstance(record, list) or len(record) < 4:
                        raise ValueError("there is something else between its records")
                    whole = unpacker.tell()
                    yield record
            except (msgpack.exceptions.UnpackException, ValueError) as error:
                raise TraceError(f"{path} is damaged: {error}") from None
            if whole != file.tell():
                raise TraceError(f"{path} is damaged: it ends in the middle of a record")

    stream = records()
    next(stream)
    return header, stream


def read_records(path: Path) -> Iterator[list[Any]]:
    """Iterate over the records of a trace."""
    return read_trace(path)[1]
