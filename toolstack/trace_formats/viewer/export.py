"""The file: the page, its style and scripts, and the trace as compressed columns."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

from hypervisor.abi import tracepoints as tp
from toolstack.trace_formats.text import describe
from toolstack.trace_formats.timeline import Timeline
from toolstack.trace_formats.viewer.narration import Narrator
from toolstack.trace_formats.viewer.state import TABLES, StateTables

SCRIPTS: Final = ("tables.js", "timeline.js", "events.js", "panels.js", "main.js")
"""In the order in which the browser reads them."""
_LINE: Final = 1 << 14
"""Bytes of the compressed trace in a line of the file."""


def format_html(header: Mapping[str, Any], records: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """Yield the file, in pieces. `header` is that of the trace, and may have a `title`."""
    data = collect(header, records)
    title = html.escape(header.get("title") or f"Trace of a host, seed {header.get('seed', 0)}")
    page = _part("page.html").replace("{{title}}", title).replace("{{style}}", _part("style.css"))
    page = page.replace("{{scripts}}", "\n".join(_part(name) for name in SCRIPTS))
    before, after = page.split("{{data}}")
    yield before.encode()
    packed = base64.b64encode(gzip.compress(json.dumps(data, separators=(",", ":")).encode(), 6, mtime=0))
    for at in range(0, len(packed), _LINE):
        yield packed[at : at + _LINE] + b"\n"
    yield after.encode()


@cache
def _part(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")


def collect(header: Mapping[str, Any], records: Iterable[Sequence[Any]]) -> dict[str, Any]:
    """Return all that the page needs of a trace, as columns.

    `events`: for each record that is an event its time, pCPU, vCPU, kind, text, sentence and source; `changes`: event,
    table, key and new row, the event being the one after which it is so. Texts stand once, in `texts`.
    """
    events: dict[str, list[int]] = {name: [] for name in ("time", "pcpu", "who", "kind", "text", "say", "source")}
    changes: list[list[Any]] = []
    texts, whos, kinds = _Numbers(), _Numbers(), _Numbers()
    states: set[int] = set()
    tables, narrator, timeline = StateTables(), Narrator(), Timeline()

    def plain(stream: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """Pass on the events; put down what all records change, and what the narrator learns of them."""
        for record in stream:
            state = record[3] in tp.STATES
            if state:
                states.add(record[3])
                narrator.tell(record)
            number = len(events["time"]) - state
            changes.extend([max(number, 0), table, key, row] for table, key, row in tables.changes(record))
            if not state:
                yield record

    for placed in timeline.follow(plain(records)):
        name, _ = tp.KINDS.get(placed.kind, (f"kind-{placed.kind}", ()))
        said, source = narrator.tell([placed.time, *placed.who, placed.kind, *placed.fields])
        row = (
            placed.time,
            placed.pcpu,
            whos.of(f"d{placed.who[0]}v{placed.who[1]}"),
            kinds.of(name),
            texts.of(describe(placed.kind, placed.fields)),
            texts.of(said),
            texts.of(source),
        )
        for column, value in zip(events.values(), row, strict=True):
            column.append(value)
    return {
        "seed": header.get("seed", 0),
        "about": header.get("about", {}),
        "state": bool(states),
        "tables": TABLES,
        "kinds": list(kinds),
        "whos": list(whos),
        "texts": list(texts),
        "events": events,
        "changes": changes,
    }


class _Numbers(dict[str, int]):
    """Numbers for texts, in the order in which they come."""

    def of(self, text: str) -> int:
        """Return the number of a text."""
        return self.setdefault(text, len(self))
