"""The pages say of each key of the protocols what has become of it: the keys are those of Xen's headers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEADERS = Path("/usr/include/xen/io")


def keys_of(header: str) -> set[str]:
    """The xenstore nodes that a header documents: headings with their values below, and quoted features."""
    text = (HEADERS / header).read_text()
    found = set(re.findall(r"^ \* ([a-z][a-z0-9-]+)\n \* +Values:", text, re.MULTILINE))
    found |= set(re.findall(r"[\"'/]((?:feature|request|multi-queue)-[a-z0-9-]+)", text))
    return found


def rows() -> list[list[str]]:
    """The cells of every table row of SUPPORT.md about keys."""
    page = (ROOT / "SUPPORT.md").read_text()
    part = page[page.index("## Keys of the block protocol") : page.index("## Toolstack")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| `")
    ]


@pytest.mark.parametrize(("header", "least"), [("blkif.h", 25), ("netif.h", 10)])
def test_every_key_of_the_headers_has_a_row(header: str, least: int) -> None:
    if not (HEADERS / header).exists():
        pytest.skip(f"no {header} here (Debian: libxen-dev)")
    keys = keys_of(header)
    assert len(keys) >= least, "the header was not understood"
    listed = {key for row in rows() for key in re.findall(r"`([a-z0-9-]+)`", row[0])}
    assert keys - listed == set()


def test_every_row_has_a_status() -> None:
    assert len(rows()) > 20
    for row in rows():
        assert len(row) == 5
        assert re.match(r"(complete|partial|not built)\b", row[3]), row


def test_a_key_that_is_not_built_is_in_no_driver() -> None:
    """A driver that learns a key must tell it here."""
    code = "".join(path.read_text() for part in ("backends", "frontends") for path in (ROOT / part).rglob("*.py"))
    for row in rows():
        if row[3].startswith("not built") and row[1] == "no" and row[2] == "no":
            assert [key for key in re.findall(r"`([a-z0-9-]+)`", row[0]) if f'"{key}"' in code] == []
