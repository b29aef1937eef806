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


PARTS = {"block": "## Keys of the block protocol", "net": "## Keys of the network protocol", "": "## Toolstack"}


def rows(protocol: str) -> list[list[str]]:
    """The cells of every table row of SUPPORT.md about the keys of a protocol."""
    page = (ROOT / "SUPPORT.md").read_text()
    titles = list(PARTS)
    part = page[page.index(PARTS[protocol]) : page.index(PARTS[titles[titles.index(protocol) + 1]])]
    lines = [line for line in part.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(("header", "protocol", "least"), [("blkif.h", "block", 25), ("netif.h", "net", 10)])
def test_every_key_of_the_headers_has_a_row(header: str, protocol: str, least: int) -> None:
    if not (HEADERS / header).exists():
        pytest.skip(f"no {header} here (Debian: libxen-dev)")
    keys = keys_of(header)
    assert len(keys) >= least, "the header was not understood"
    listed = {key for row in rows(protocol) for key in re.findall(r"`([a-z0-9-]+)`", row[0])}
    assert keys - listed == set()


@pytest.mark.parametrize("protocol", ["block", "net"])
def test_every_row_has_a_status(protocol: str) -> None:
    assert len(rows(protocol)) > 10
    for row in rows(protocol):
        assert len(row) == 5
        assert re.match(r"(complete|partial|not built)\b", row[3]), row


@pytest.mark.parametrize("protocol", ["block", "net"])
def test_a_key_that_is_not_built_is_in_no_driver(protocol: str) -> None:
    """A driver that learns a key must tell it here."""
    files = [path for half in ("backends", "frontends") for path in (ROOT / half / protocol).rglob("*.py")]
    code = "".join(path.read_text() for path in files)
    assert code
    for row in rows(protocol):
        if row[3].startswith("not built") and row[1] == "no" and row[2] == "no":
            assert [key for key in re.findall(r"`([a-z0-9-]+)`", row[0]) if f'"{key}"' in code] == []
