"""Results for people and for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

from conformance.kit.check import Outcome
from conformance.kit.html_report import as_html
from conformance.kit.runner import Result


def summary(results: Sequence[Result]) -> str:
    """Return one line that says how many checks ended how."""
    counts = Counter(result.outcome for result in results)
    told = ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in Outcome if counts[outcome])
    return f"{len(results)} checks: {told or 'none'}"


def as_json(suite: str, subject: str, results: Sequence[Result]) -> str:
    """Return the results as a JSON object."""
    rows = [
        {
            "id": result.check.id,
            "title": result.check.title,
            "level": result.check.level.value,
            "source": result.check.source,
            "outcome": result.outcome.value,
            "message": result.message,
            "seconds": round(result.seconds, 6),
        }
        for result in results
    ]
    return json.dumps({"suite": suite, "subject": subject, "results": rows}, indent=1) + "\n"


def as_junit(suite: str, subject: str, results: Sequence[Result]) -> str:
    """Return the results as JUnit XML, as CI systems read it. A `may` that fails is a skipped case there."""
    counts = Counter(result.outcome for result in results)
    root = ElementTree.Element("testsuites")
    top = ElementTree.SubElement(
        root,
        "testsuite",
        name=suite,
        tests=str(len(results)),
        failures=str(sum(result.condemns for result in results)),
        errors=str(counts[Outcome.error]),
        skipped=str(counts[Outcome.skip] + sum(_only_told(result) for result in results)),
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    for result in results:
        case = ElementTree.SubElement(
            top, "testcase", classname=f"{suite}.{subject}", name=f"{result.check.id} {result.check.title}",
            time=f"{result.seconds:.3f}",
        )  # fmt: skip
        if result.outcome is Outcome.error:
            ElementTree.SubElement(case, "error", message=result.message).text = result.details
        elif result.condemns:
            ElementTree.SubElement(case, "failure", message=result.message).text = result.check.source
        elif result.outcome is not Outcome.success:
            ElementTree.SubElement(case, "skipped", message=result.message)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _only_told(result: Result) -> bool:
    return result.outcome is Outcome.failure and not result.condemns


REPORTS: dict[str, Callable[[str, str, Sequence[Result]], str]] = {
    "json": as_json,
    "junit": as_junit,
    "html": as_html,
}
"""What `--report FORMAT=FILE` takes."""
WITH_TRACES = frozenset({"html"})
"""The formats that show traces, where results have some."""
