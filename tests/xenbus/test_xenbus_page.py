"""docs/xenbus.md shows what the code does."""

import re
from pathlib import Path

import pytest
import test_xenbus_pains

from guest_kernel.xenbus import diagram

ELSEWHERE = {
    "test_cost_of_a_device_does_not_grow_with_their_number",
    "test_requests_that_were_there_before_the_backend",
}
"""Tests in other files that the page names."""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "xenbus.md"


def test_page_is_drawn_from_the_current_tables() -> None:
    text = PAGE.read_text("utf-8")
    assert diagram.redraw(text) == text, "python -m guest_kernel.xenbus.diagram docs/xenbus.md"


def test_every_picture_is_on_the_page_once() -> None:
    assert sorted(diagram.drawn(PAGE.read_text("utf-8"))) == sorted(diagram.PICTURES)


def test_drawing_replaces_what_was_there() -> None:
    page = "a\n<!-- drawn: connect -->\nold\n<!-- end -->\nb\n"
    drawn = diagram.redraw(page)
    assert "old" not in drawn
    assert drawn.startswith("a\n<!-- drawn: connect -->\n```mermaid\nsequenceDiagram")
    assert diagram.redraw(drawn) == drawn
    with pytest.raises(KeyError):
        diagram.redraw("<!-- drawn: a picture nobody draws -->\n<!-- end -->\n")


def test_command_redraws_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- drawn: unplug -->\n<!-- end -->\n")
    monkeypatch.setattr("sys.argv", ["diagram", str(page)])
    diagram.main()
    assert "sequenceDiagram" in page.read_text()


def test_every_pain_has_its_paragraph() -> None:
    names = {name for name in vars(test_xenbus_pains) if name.startswith("test_")}
    told = set(re.findall(r"`(test_[a-z_]+)`", PAGE.read_text("utf-8")))
    assert names - told == set(), "pains that the page does not tell of"
    assert told - names - ELSEWHERE == set(), "tests that there are not"
