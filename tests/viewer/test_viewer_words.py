"""What the viewer says of records."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hypervisor.abi import callback, event_channel, grant_table, sched, xen
from hypervisor.abi import tracepoints as tp
from hypervisor.abi.io import blkif, netif
from hypervisor.trace import read_records
from tests.viewer.conftest import record
from toolstack.cli import main
from toolstack.trace_formats.viewer.narration import _TELLERS, Narrator
from toolstack.trace_formats.viewer.operations import OPERATIONS
from toolstack.trace_formats.viewer.slots import decode_slot

HEADERS = Path("/usr/include/xen")


def page_of(trace: Path) -> str:
    out = trace.with_suffix(".html")
    done = CliRunner().invoke(main, ["trace", str(trace), "--format", "html", "-o", str(out)])
    assert done.exit_code == 0, done.output
    return out.read_text()


def data_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="text/plain" id="data">\n(.*?)</script>', page, re.DOTALL)
    assert match is not None
    data: dict[str, Any] = json.loads(gzip.decompress(b64decode(match[1])))
    return data


def test_every_event_has_words() -> None:
    assert set(_TELLERS) == set(tp.KINDS) - tp.STATES


@pytest.mark.parametrize(
    "names", [event_channel.NAMES, grant_table.NAMES, sched.NAMES, callback.NAMES, xen.HYPERCALL_NAMES]
)
def test_every_hypercall_has_words(names: dict[int, str]) -> None:
    missing = [name for name in names.values() if name not in OPERATIONS and not name.startswith("arch_")]
    assert not missing


def test_words_take_five_arguments() -> None:
    for what, source in OPERATIONS.values():
        assert what.format(1, 2, 3, 4, 5)
        assert source


@pytest.mark.skipif(not HEADERS.is_dir(), reason="Xen's headers are not here (Debian: libxen-dev)")
def test_sources_are_in_the_headers() -> None:
    for what, source in OPERATIONS.values():
        for header in re.findall(r"[\w/-]+\.h", source):
            text = HEADERS / header
            assert text.is_file(), f"{what}: there is no {header}"
            named = re.findall(rf"{re.escape(header)}, (\w+)", source)
            for name in named:
                found = name.replace("HYPERVISOR_", "__HYPERVISOR_") if name.startswith("HYPERVISOR_") else name
                assert found in text.read_text() or name in ("struct", "Virtual"), f"{header} does not name {name}"


def test_a_trace_in_words(state_trace: Path) -> None:
    narrator = Narrator()
    told = [narrator.tell(record) for record in read_records(state_trace)]
    whole = "\n".join(sentence for sentence, _ in told)
    assert all(sentence and source for sentence, source in told)
    for words in (
        "guest1 (d1) notifies the other end of a port",
        "Domain-0 maps the page that guest1 (d1) grants by reference 8, writable; its handle is",
        "guest1 (d1) shows what it has put into ring req of xvda",
        "takes device/vbd/51712 from Initialised to Connected",
        "xenstored tells",
        "the read of 88 sectors from 0 on xvda is done",
    ):
        assert words in whole


def test_a_refusal_is_told() -> None:
    sentence, source = Narrator().tell([0, 3, 0, tp.HYPERCALL, xen.HYPERVISOR_event_channel_op, 4, 0, 0, 0, 0, -22])
    assert sentence == "domain 3 notifies the other end of a port. Xen refuses: -EINVAL."
    assert source == "event_channel.h, EVTCHNOP_send"


def test_unknown_records_and_hypercalls_are_told() -> None:
    narrator = Narrator()
    assert "kind-99" in narrator.tell([0, 1, 0, 99, "x"])[0]
    assert "no name" in narrator.tell([0, 1, 0, tp.HYPERCALL, 63, 0, 0, 0, 0, 0, -38])[0]


def test_slots_in_words() -> None:
    request = blkif.blkif_request.pack(
        operation=blkif.BLKIF_OP_WRITE,
        nr_segments=1,
        id=7,
        sector_number=8,
        seg=[{"gref": 9, "first_sect": 0, "last_sect": 7}],
    )
    assert decode_slot("blkif", request)[0] == "WRITE id=7 sector=8 [gref 9 sectors 0-7]"
    response = blkif.blkif_response.pack(id=7, operation=1, status=-1).ljust(112, b"\0")
    assert decode_slot("blkif", response)[1] == "WRITE id=7 BLKIF_RSP_ERROR"
    sent = netif.netif_tx_request.pack(gref=5, offset=2, flags=netif.NETTXF_more_data, id=3, size=1500)
    assert decode_slot("netif_tx", sent)[0] == "id=3 gref 5 offset 2 size 1500 more_data"
    assert decode_slot("netif_rx", netif.netif_rx_response.pack(id=3, offset=0, flags=2, status=60))[1] == (
        "id=3 offset 0 60 bytes csum_blank"
    )
    assert decode_slot("xenstore", b"a\0b") == ("a·b", "a·b")
    assert decode_slot("of the future", b"abc") == ("", "")


def test_the_page_has_everything_in_itself(state_trace: Path) -> None:
    page = page_of(state_trace)
    assert not re.search(r"""(?:src|href)\s*=|https?://|@import|url\(""", page)
    data = data_of(page)
    events = data["events"]
    assert len({len(column) for column in events.values()}) == 1
    shown = [record for record in read_records(state_trace) if record[3] not in tp.STATES]
    assert len(events["time"]) == len(shown)
    assert data["state"]
    assert [change[0] for change in data["changes"]] == sorted(change[0] for change in data["changes"])


def test_the_page_is_the_same_each_time(guests: Path, state_trace: Path) -> None:
    again = record(guests, "again.trace", "--trace-state")
    assert page_of(again) == page_of(state_trace)


def test_a_plain_trace_makes_a_page_too(guests: Path) -> None:
    data = data_of(page_of(record(guests, "bare.trace")))
    assert not data["state"]
    assert any(data["tables"][change[1]] == "devices" for change in data["changes"])


def test_state_needs_a_trace(guests: Path) -> None:
    done = CliRunner().invoke(main, ["run", "--trace-state", str(guests / "guest1.cfg")])
    assert done.exit_code == 2
    assert "it needs --trace FILE" in done.output
