"""The pictures of the schedulers are drawn by runs of the program: each scene plays, and shows what its page says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


pictures = load()


def widths(svg: str) -> dict[str, float]:
    """How much of the picture each row is dark."""
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    names = {
        float(text.get("y")) - 13: text.text for text in root.iter(f"{space}text") if text.get("text-anchor") == "end"
    }
    dark = dict.fromkeys((name for name in names.values() if name != "ms"), 0.0)
    for rect in root.iter(f"{space}rect"):
        if rect.get("fill") in pictures.COLOURS:
            dark[names[float(rect.get("y"))]] += float(rect.get("width")) / pictures.WIDTH
    return dark


@pytest.mark.parametrize(
    ("name", "shares"),
    {
        "credit2": {"heavy": 0.6, "plain": 0.3, "light": 0.1},
        "credit2-cap": {"capped": 0.4, "hog": 0.6},
        "credit-thief": {"thief": 0.95, "victim": 0.05},
        "credit-no-thief": {"thief": 0.5, "victim": 0.5},
        "rtds": {"ten": 0.2, "twenty": 0.3, "extra": 0.5},
        "null": {"a": 1, "b": 0.1},
        "arinc653": {"a": 0.4},
    }.items(),
)
def test_a_picture_shows_what_its_page_says(name, shares):
    drawn = widths(pictures.picture(name))
    assert {guest: drawn[guest] for guest in shares} == {
        guest: pytest.approx(share, abs=0.06) for guest, share in shares.items()
    }


def test_every_picture_is_on_a_page():
    shown = set()
    for page in (ROOT / "docs" / "schedulers").glob("*.md"):
        shown |= set(re.findall(r"\]\(([\w-]+)\.svg\)", page.read_text()))
    files = {path.stem for path in (ROOT / "docs" / "schedulers").glob("*.svg")}
    assert shown == files == set(pictures.SCENES)
