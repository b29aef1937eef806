"""The state in a trace is the state of the host, and showing it changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from hypervisor.abi import tracepoints as tp
from hypervisor.event_channel.channel import FREE
from hypervisor.hypervisor import Hypervisor
from hypervisor.state_trace import StateTrace, observer
from hypervisor.trace import read_records
from tests.viewer.conftest import record
from toolstack import recording
from toolstack.host import Host
from toolstack.store_trace import StoreWatch
from toolstack.trace_formats.viewer import state as view
from toolstack.xl_config import load_config

Tables = list[dict[str, Any]]


def add(tables: Tables, changes: Any) -> None:
    """Make changes, as the page does."""
    for table, key, row in changes:
        if table == view.PAGES:
            first, count = map(int, key.split("+"))
            for mfn in range(first, first + count):
                tables[table][str(mfn)] = row
        elif row is None:
            tables[table].pop(key, None)
        else:
            tables[table][key] = row


def ports_of(hv: Hypervisor) -> tuple[set[str], dict[str, list[int]]]:
    """Return the ports in use, and their bits, by the operations that Xen itself uses."""
    ports, bits = set(), {}
    for domain in hv.domains.values():
        for channel in domain.ports:
            if channel.state != FREE:
                key = f"{domain.domid}/{channel.port}"
                ports.add(key)
                ops = domain.port_ops
                bits[key] = [int(ops.is_pending(channel)), int(ops.is_masked(channel))]
    return ports, bits


def pins_of(hv: Hypervisor) -> dict[str, int]:
    return {
        f"{domain.domid}/{ref}": pin
        for domain in hv.domains.values()
        for ref, pin in enumerate(domain.grant_table.pin)
        if pin
    }


def handles_of(hv: Hypervisor) -> dict[str, tuple[int, int]]:
    found = {}
    for domain in hv.domains.values():
        track = domain.grant_table.maptrack
        for handle in track.live():
            table = track.table[handle]
            assert table is not None
            found[f"{domain.domid}/{handle}"] = table.domain.domid, track.ref[handle]
    return found


class Comparison:
    """Adds up what is emitted, and compares it with the host every so often."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.tables: Tables = [{} for _ in view.TABLES]
        self.reader = view.StateTables()
        self.records = self.kind = self.rests = 0
        self.compared = 0
        self.hv: Hypervisor
        self.host: Host | None = None

    def take(self, record: Sequence[Any]) -> None:
        self.records += 1
        self.kind = record[3]
        add(self.tables, self.reader.changes([*record[:4], *record[4:]]))

    def look(self) -> None:
        """Be a watch after all others."""
        if self.records % self.every == 0:
            self.compare()
        if self.kind == tp.DESCHEDULE and self.host is not None and self.host.lifecycle is not None:
            self.rests += 1
            if self.rests % 9 == 0:
                self.compare_at_rest()

    def compare(self) -> None:
        hv, tables = self.hv, self.tables
        self.compared += 1
        ports, bits = ports_of(hv)
        assert {key: tables[view.BITS][key] for key in ports & tables[view.PORTS].keys()} == {
            key: bits[key] for key in ports & tables[view.PORTS].keys()
        }
        for domain in hv.domains.values():
            for vcpu in domain.online_vcpus():
                if vcpu.info:
                    shown = tables[view.UPCALLS][f"{domain.domid}/{vcpu.vcpu_id}"]
                    assert shown == [hv.memory.b[vcpu.info], hv.memory.b[vcpu.info + 1], f"{vcpu.ready_bits():#x}"]
            for ref in range(0, domain.grant_table.nr_entries, 7):
                frame = domain.grant_table.format.frame(domain.grant_table, ref)
                row = tables[view.GRANTS].get(f"{domain.domid}/{ref}")
                assert row is None or row[2] == frame

    def compare_at_rest(self) -> None:
        """Compare also what a hypercall may be in the middle of changing."""
        hv, tables = self.hv, self.tables
        assert tables[view.PORTS].keys() == ports_of(hv)[0]
        assert {key: row[3] for key, row in tables[view.GRANTS].items() if row[3]} == pins_of(hv)
        assert {key: tuple(row[:2]) for key, row in tables[view.MAPPINGS].items()} == handles_of(hv)
        frames, pages = hv.frames, tables[view.PAGES]
        for mfn in range(frames.frames):
            row = pages.get(str(mfn), [-1, "none", 0, 0, 0])
            assert row[0] == frames.owner_tag[mfn] - 1
            assert (row[2], row[3], row[4]) == (frames.type_count[mfn], frames.count[mfn], frames.flags[mfn])
        assert self.host is not None
        nodes = {path.decode(): node.value.decode() for path, node in self.host.xenstored.server.store.tree.walk()}
        assert {path: row[0] for path, row in tables[view.NODES].items()} == nodes


@pytest.mark.parametrize("schedule", ["", "random:3"])
def test_what_is_told_adds_up_to_the_host(
    guests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    comparison = Comparison(every=61)

    class Traced(StateTrace):
        def __init__(self, emit: Any) -> None:
            def told(*record: Any) -> None:
                emit(*record)
                comparison.take((0, *record))

            super().__init__(told)

        def attach(self, hv: Hypervisor) -> None:
            super().attach(hv)
            comparison.hv = hv

        def add(self, watch: observer.Watch) -> None:
            assert isinstance(watch, StoreWatch)
            watch._emit = self._emit
            super().add(watch)
            super().add(comparison)

        def finish(self) -> None:
            super().finish()
            comparison.compare_at_rest()

    monkeypatch.setattr(recording, "StateTrace", Traced)
    host = Host(pcpus=2, schedule=schedule, trace_file=tmp_path / "host.trace", trace_state=True)
    comparison.host = host
    configs = [load_config(guests / name) for name in ("guest1.cfg", "guest2.cfg")]
    trio.run(host.run, configs)
    assert comparison.compared > 40
    assert comparison.rests > 90
    assert len(comparison.tables[view.SLOTS]) > 20


def test_the_run_is_the_same_with_and_without(guests: Path, state_trace: Path) -> None:
    plain = list(read_records(record(guests, "plain.trace")))
    shown = [record for record in read_records(state_trace) if record[3] not in tp.STATES]
    assert shown == plain


def test_every_kind_of_state_is_there(state_trace: Path) -> None:
    assert {record[3] for record in read_records(state_trace)} >= tp.STATES
