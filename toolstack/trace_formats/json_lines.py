"""A trace as JSON, one object a line: for jq and for programs in other languages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hypervisor.abi import tracepoints


def format_json(records: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield one line for each record: `time` (ns), `domid`, `vcpu`, `event`, and its fields by their names.

    Bytes that are no UTF-8 are written as escapes. A field that this program has no name for is `field4`, `field5`...
    by its place in the record.
    """
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_bytes).encode
    for time, domid, vcpu_id, kind, *fields in records:
        name, labels = tracepoints.KINDS.get(kind, (f"kind-{kind}", ()))
        line = {"time": time, "domid": domid, "vcpu": vcpu_id, "event": name}
        for index, value in enumerate(fields):
            line[labels[index] if index < len(labels) else f"field{index + 4}"] = value
        yield encode(line)


def _bytes(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    raise TypeError(f"a trace holds no {type(value).__name__}")
