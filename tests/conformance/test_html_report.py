"""The report for a browser: what it says, and that its pages can be stepped through."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backends.block import BlockBack
from conformance.block.world import scene
from conformance.kit.check import CHECKS, Check, Failure, Level, Outcome, Skip
from conformance.kit.html_report import as_html
from conformance.kit.recording import NOTE, host_options
from conformance.kit.runner import Result, run_check, run_checks
from conformance.ring.world import OurRings
from hypervisor.abi.tracepoints import GUEST_NOTE
from hypervisor.trace import read_records
from tests.mutants.block_backends import MUTANTS
from toolstack.cli import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MUTANT = "wrong-id"


def check(name: str, level: Level, function: Any) -> Check:
    function.__doc__ = f"{name} <is> so.\n\nBecause of this & that.\n\nAnd more."
    return Check(f"X-{name}", level, "some.h, <section>", function)


def made(outcome: Outcome, level: Level = Level.must, message: str = "", details: str = "") -> Result:
    return Result(check(outcome.value, level, lambda _: None), outcome, message, 0.5, details)


def test_it_says_what_came_of_everything() -> None:
    page = as_html(
        "suite",
        "my<b>:{{rows}}",
        [
            made(Outcome.success),
            made(Outcome.failure, message="It is <red>."),
            made(Outcome.error, message="KeyError: 'x'", details="Traceback & line 5"),
            made(Outcome.skip, message="It is not there."),
        ],
    )
    assert "<title>suite: my&lt;b&gt;:{{rows}}</title>" in page
    assert '<b class="failure">does not conform</b>' in page
    for outcome in Outcome:
        assert f'<span class="{outcome.value}">1 {outcome.value}</span>' in page
    assert '<section class="finding failure" id="X-failure">' in page
    assert '<p class="message">It is &lt;red&gt;.</p>' in page
    assert "<p>Because of this &amp; that.</p>\n<p>And more.</p>" in page
    assert "<pre>Traceback &amp; line 5</pre>" in page
    assert "Source: some.h, &lt;section&gt;" in page
    assert page.count("<section") == 3
    assert '<tr class="success"><td>X-success</td>' in page
    # Nothing is asked of any network.
    assert not re.search(r"(src|href)=\"(?!#)|https?:", page)


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ([made(Outcome.success), made(Outcome.failure, Level.may)], "conforms"),
        ([made(Outcome.error)], "could not be judged"),
        ([made(Outcome.failure, Level.should), made(Outcome.error)], "does not conform"),
    ],
)
def test_verdicts(results: list[Result], verdict: str) -> None:
    assert f">{verdict}</b>" in as_html("suite", "subject", results)


def test_without_a_report_hosts_leave_no_traces() -> None:
    assert host_options() == {}
    found: list[dict[str, Any]] = []
    (result,) = run_checks([check("a", Level.must, lambda _: found.append(host_options()))], OurWorld)
    assert result.outcome is Outcome.success
    assert found == [{}]


class OurWorld:
    """A world with nothing in it."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def test_traces_of_what_succeeds_are_thrown_away(tmp_path: Path) -> None:
    def leaves_a_trace(error: Exception | None) -> Any:
        def function(_: None) -> None:
            host_options()["trace_file"].write_bytes(b"x")
            if error is not None:
                raise error

        return function

    checks = [
        check("good", Level.must, leaves_a_trace(None)),
        check("bad", Level.must, leaves_a_trace(Failure("It is."))),
        check("ugly", Level.must, leaves_a_trace(KeyError("x"))),
        check("away", Level.must, leaves_a_trace(Skip("It is not."))),
        check("ring", Level.must, lambda _: None),
    ]
    results = list(run_checks(checks, OurWorld, tmp_path))
    assert [result.trace is not None for result in results] == [False, True, True, False, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["X-bad.trace", "X-ugly.trace"]


@pytest.fixture
def failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """What came of a check of a faulty disk, with the trace of its host."""
    _, meant_for_it, patch = MUTANTS[MUTANT]
    patch(monkeypatch)
    (result,) = run_checks([CHECKS[meant_for_it]], lambda: scene(BlockBack), tmp_path)
    assert result.outcome is Outcome.failure
    assert result.trace is not None
    return result


@pytest.mark.breaks_host("its backend is broken")
def test_the_trace_says_where_the_check_fails(failed: Result) -> None:
    assert failed.trace is not None
    notes = [record[4] for record in read_records(failed.trace) if record[3] == GUEST_NOTE]
    assert notes == [f"{NOTE}{failed.message}"]


@pytest.mark.breaks_host("its backend is broken")
def test_being_recorded_changes_nothing(failed: Result) -> None:
    again = run_check(failed.check, lambda: scene(BlockBack))
    assert (again.outcome, again.message) == (failed.outcome, failed.message)


@pytest.mark.breaks_host("its backend is broken")
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: chromium)")
def test_the_host_can_be_stepped_through(failed: Result, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")
    page = tmp_path / "report.html"
    page.write_text(as_html("blkif-backend", "bad:Disk", [made(Outcome.success), failed]))
    complaints: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True).new_page()
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda text: complaints.append(text.text) if text.type == "error" else None)
        tab.goto(page.as_uri())
        assert tab.locator("iframe").count() == 0
        tab.get_by_label("show successes").uncheck()
        assert not tab.locator("tr.success").is_visible()
        tab.get_by_role("link", name=failed.check.id).click()
        viewer = tab.frame_locator(f"#{failed.check.id} iframe")
        viewer.locator("#position").get_by_text("event").wait_for()
        assert failed.message in viewer.locator("#narration").inner_text()
        assert failed.check.title in viewer.locator("h1").inner_text()
        before = viewer.locator("#position").inner_text()
        viewer.locator("#back").click()
        assert viewer.locator("#position").inner_text() != before
        browser.close()
    assert complaints == []


def test_the_command_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "r.html"
    words = ["check", "run", "--suite", "ring", "--report", f"html={file}", f"{OurRings.__module__}:OurRings"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    page = file.read_text()
    assert '<b class="success">conforms</b>' in page
    assert page.count('<tr class="success">') == 23
