"""The kit itself: its checks are well formed, its command and reports say what they should."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from c_daemon import CDaemon
from click.testing import CliRunner

from conformance.kit.check import CHECKS, Check, Failure, Level, Outcome, Skip
from conformance.kit.runner import run_check
from conformance.suites import SUITES
from conformance.xenstore.world import open_subject
from tests.mutants.stores import MUTANTS
from tests.xenstored.store_process import ThreadedStore
from toolstack.cli import main


def paravirt(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["check", *words])
    return done.exit_code, done.output


def test_every_check_is_whole() -> None:
    for check in CHECKS.values():
        assert check.suite in SUITES
        assert check.source
        assert len(check.prose) > 20
        assert len(check.title) < 160


def test_every_check_is_listed_and_explained() -> None:
    code, text = paravirt("list")
    assert code == 0
    for check in CHECKS.values():
        assert check.id in text
    code, text = paravirt("explain", "xenstore-062")
    assert code == 0
    assert "EAGAIN" in text
    assert "Source: docs/misc/xenstore.txt, TRANSACTION_END" in text


def outcome(function: Any) -> tuple[Outcome, str]:
    @contextmanager
    def world() -> Iterator[None]:
        yield None

    result = run_check(Check("X-1", Level.must, "nowhere", function), world)
    return result.outcome, result.message


def test_the_four_outcomes() -> None:
    def fails(_: Any) -> None:
        raise Failure("It is green.")

    def skips(_: Any) -> None:
        raise Skip("It is not there.")

    def breaks(_: Any) -> None:
        raise KeyError("x")

    assert outcome(lambda _: None) == (Outcome.success, "")
    assert outcome(fails) == (Outcome.failure, "It is green.")
    assert outcome(skips) == (Outcome.skip, "It is not there.")
    assert outcome(breaks) == (Outcome.error, "KeyError: 'x'")


def test_a_run_with_reports(tmp_path: Path) -> None:
    files = [f"json={tmp_path / 'r.json'}", f"junit={tmp_path / 'r.xml'}"]
    options = [word for file in files for word in ("--report", file)]
    code, text = paravirt("run", "--suite", "ring", *options, "conformance.ring.world:OurRings")
    assert (code, text) == (0, "23 checks: 23 success\n")
    rows = json.loads((tmp_path / "r.json").read_text())["results"]
    assert {row["outcome"] for row in rows} == {"success"}
    suite = ElementTree.parse(tmp_path / "r.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), len(suite)) == ("23", "0", 23)


def test_a_broken_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_ring.py").write_text(
        "from conformance.ring.world import OurRings\n"
        "class Rings(OurRings):\n"
        "    @staticmethod\n"
        "    def front(view, entry_size):\n"
        "        ring = OurRings.front(view, entry_size)\n"
        "        view.cast('I')[1] = 0\n"
        "        return ring\n"
    )
    monkeypatch.chdir(tmp_path)
    code, text = paravirt("run", "--suite", "ring", "--report", "junit=out.xml", "broken_ring:Rings")
    assert code == 1
    assert "failure  RING-001 must" in text
    assert "req_event of a fresh ring is 0; it should be 1." in text
    assert "<failure" in Path("out.xml").read_text()


def test_a_may_is_only_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ThreadedStore(tmp_path / "socket")
    try:
        MUTANTS["sorted-directory"][2](monkeypatch)
        code, text = paravirt("run", "--suite", "xenstore", "--only", "XENSTORE-014", f"unix:{store.path}")
    finally:
        store.stop()
    assert code == 0
    assert "told only" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("run", "--suite", "rings", "x:Y"), "there is no suite 'rings'; did you mean 'ring'?"),
        (("run", "--suite", "ring", "x"), "'x' is not module:Class"),
        (("run", "--suite", "ring", "no_such_module:Y"), "cannot import 'no_such_module'"),
        (("run", "--suite", "ring", "conformance:Y"), "there is no 'Y' in 'conformance'"),
        (("run", "--suite", "xenstore", "unix:/nowhere"), "there is no socket at '/nowhere'"),
        (("run", "--suite", "xenstore", "/nowhere"), "is not unix:PATH"),
        (("run", "--suite", "ring", "--only", "XENSTORE-001", "x:Y"), "no check of suite 'ring'"),
        (("run", "--suite", "ring", "--report", "pdf=x", "x:Y"), "is not FORMAT=FILE"),
        (("explain", "RING-999"), "there is no check 'RING-999'"),
    ],
)
def test_mistakes(words: tuple[str, ...], sentence: str) -> None:
    code, text = paravirt(*words)
    assert code == 2
    assert sentence in text
    assert len(text.splitlines()) == 1


def test_a_block_backend_on_the_command_line() -> None:
    words = ("--only", "BLKIF-BACKEND-010", "--only", "blkif-backend-014", "backends.block:BlockBack")
    code, text = paravirt("run", "--suite", "blkif-backend", "--verbose", *words)
    assert code == 0
    assert "success  BLKIF-BACKEND-010 must" in text
    assert "2 checks: 2 success" in text


def test_a_subject_that_is_gone_is_the_kits_error(tmp_path: Path) -> None:
    store = ThreadedStore(tmp_path / "socket")
    world = open_subject(f"unix:{store.path}")
    store.stop()
    result = run_check(CHECKS["XENSTORE-001"], world)
    assert result.outcome is Outcome.error


def test_xens_own_daemon_conforms(tmp_path: Path) -> None:
    """The rules are those of the daemon that they were taken from, and not of ours."""
    with CDaemon(tmp_path) as daemon:
        results = [run_check(check, open_subject(f"unix:{daemon.path}")) for check in SUITES["xenstore"].checks]
    assert [(result.check.id, result.message) for result in results if result.outcome is not Outcome.success] == []
