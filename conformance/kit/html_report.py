"""The report for a browser: one page, with nothing outside of it, and in it the traces of what has failed."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from conformance.kit.check import Level, Outcome
from conformance.kit.recording import NOTE
from conformance.kit.runner import Result
from hypervisor.abi.tracepoints import GUEST_NOTE, STATES
from hypervisor.trace import read_trace
from toolstack.trace_formats.viewer.export import format_html


def as_html(suite: str, subject: str, results: Sequence[Result]) -> str:
    """Return the page. A result that has a trace gets the step viewer (docs/viewer.md)."""
    told = [result for result in results if result.outcome is not Outcome.success]
    title = f"{suite}: {subject}"
    parts = {
        "title": escape(title),
        "counts": " · ".join(_count(results, outcome) for outcome in Outcome),
        "verdict": _verdict(results),
        "rows": "\n".join(map(_row, results)),
        "findings": "\n".join(map(_finding, told)),
        "traces": "\n".join(_packed(result) for result in told if result.trace is not None),
    }
    page = (files(__package__) / "report.html").read_text("utf-8")
    # Piece by piece, as what is put in may itself look like a place to put something.
    pieces = page.split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))


def _count(results: Sequence[Result], outcome: Outcome) -> str:
    number = sum(result.outcome is outcome for result in results)
    return f'<span class="{outcome.value}">{number} {outcome.value}</span>'


def _verdict(results: Sequence[Result]) -> str:
    if any(result.condemns for result in results):
        return '<b class="failure">does not conform</b>'
    if any(result.outcome is Outcome.error for result in results):
        return '<b class="error">could not be judged</b>'
    return '<b class="success">conforms</b>'


def _row(result: Result) -> str:
    check = result.check
    name = check.id if result.outcome is Outcome.success else f'<a href="#{check.id}">{check.id}</a>'
    return (
        f'<tr class="{result.outcome.value}"><td>{name}</td><td>{check.level.value}</td><td>{_said(result)}</td>'
        f'<td>{escape(check.title)}</td><td class="number">{result.seconds:.2f} s</td></tr>'
    )


def _said(result: Result) -> str:
    only_told = result.outcome is Outcome.failure and result.check.level is Level.may
    return f"{result.outcome.value}{' (told only)' if only_told else ''}"


def _finding(result: Result) -> str:
    check = result.check
    lines = [
        f'<section class="finding {result.outcome.value}" id="{check.id}">',
        f"<h2>{check.id} <small>{check.level.value} · {_said(result)}</small></h2>",
        f'<p class="rule">{escape(check.title)}</p>',
        f'<p class="message">{escape(result.message)}</p>',
        *(f"<p>{escape(paragraph)}</p>" for paragraph in check.prose.split("\n\n")),
        f'<p class="source">Source: {escape(check.source)}</p>',
    ]
    if result.details:
        lines.append(f"<details><summary>Where</summary><pre>{escape(result.details)}</pre></details>")
    if result.trace is not None:
        lines.append(
            f'<details class="steps" data-trace="trace-{check.id}" data-event="{_event_of_note(result.trace)}">'
            "<summary>Step through the host</summary></details>"
        )
    return "\n".join([*lines, "</section>"])


def _event_of_note(trace: Path) -> int:
    """Return which event of a trace says that the check fails: the last one, if none does."""
    number = -1
    for record in read_trace(trace)[1]:
        if record[3] not in STATES:
            number += 1
            if record[3] == GUEST_NOTE and str(record[4]).startswith(NOTE):
                break
    return max(number, 0)


def _packed(result: Result) -> str:
    """Return the viewer's page for a trace, compressed, as a block that the script of the report finds."""
    assert result.trace is not None
    header, records = read_trace(result.trace)
    page = b"".join(format_html(_titled(header, result), records))
    text = base64.b64encode(gzip.compress(page, 6, mtime=0)).decode()
    lines = "\n".join(text[at : at + 4096] for at in range(0, len(text), 4096))
    return f'<script type="text/plain" id="trace-{result.check.id}">\n{lines}\n</script>'


def _titled(header: dict[str, Any], result: Result) -> dict[str, Any]:
    return {**header, "title": f"{result.check.id}: {result.check.title}"}
