"""What came out of a campaign: a directory with a journal, from which it can be taken up again, and a table.

`journal.jsonl` gets a line for each run when that is over; its first line says of what scenario. `results.csv` has a
row for each run, in the order of the campaign, and `columns.json` says of what type each of its columns is: int64,
double, bool or string. All cells of a column are of one type, or empty: any reader of tables takes them as they are.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from toolstack.errors import UsageError
from toolstack.sweep.grid import Run, Value
from toolstack.sweep.worker import OK, Row

JOURNAL = "journal.jsonl"
TABLE = "results.csv"
COLUMNS = "columns.json"
MAGIC = "paravirt sweep"
VERSION = 1
UNREPEATABLE = ("wall_s",)
"""What is in the journal only: the same campaign gives the same table."""


class Results:
    """The directory of a campaign, and what is known of its runs. Close it."""

    def __init__(self, directory: Path, digest: str) -> None:
        """Open or make it. Raises `UsageError`: it cannot be written, or is that of another scenario."""
        self.directory = directory
        self.rows: dict[str, Row] = {}
        """What is known, by the runs' keys."""
        path = directory / JOURNAL
        try:
            directory.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            if not is_new:
                end = self._read(path, digest)
                os.truncate(path, end)
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot keep results in {str(directory)!r}: {error.strerror}") from None
        if is_new:
            self._write({"magic": MAGIC, "version": VERSION, "scenario": digest})

    def _read(self, path: Path, digest: str) -> int:
        """Learn what has been done; return where the last whole line ends, for the one behind it was cut off."""
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        try:
            lines = [json.loads(line) for line in data[:end].splitlines()]
        except ValueError:
            raise UsageError(f"{str(path)!r} is no journal of a campaign") from None
        if lines and not (isinstance(lines[0], dict) and lines[0].get("magic") == MAGIC):
            raise UsageError(f"{str(path)!r} is no journal of a campaign")
        if not lines:
            raise UsageError(f"{str(path)!r} is empty: remove it, or name another directory (-o)")
        if lines[0].get("version") != VERSION:
            raise UsageError(f"{str(path)!r} is of version {lines[0].get('version')}; this program writes {VERSION}")
        if lines[0].get("scenario") != digest:
            raise UsageError(
                f"the results in {str(self.directory)!r} are of another scenario, or of this one before it was "
                "changed: name another directory (-o)"
            )
        for line in lines[1:]:
            self.rows[Run(line["seed"], line["settings"]).key] = line["row"]
        return end

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the journal."""
        self._file.close()

    def add(self, run: Run, row: Row) -> None:
        """Note a run that is over. Raises `UsageError` if the disk is full."""
        self.rows[run.key] = row
        self._write({"seed": run.seed, "settings": dict(run.settings), "row": row})

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise UsageError(f"cannot write to {self._file.name!r}: {error.strerror}") from None

    def missing(self, runs: Sequence[Run], *, again: bool = False) -> list[Run]:
        """Return the runs that are still to be done; with `again` also those that did not end in order."""
        return [run for run in runs if (row := self.rows.get(run.key)) is None or (again and row["outcome"] != OK)]

    def save_table(self, runs: Sequence[Run]) -> Path:
        """Write the table of those of the runs that are known. Raises `UsageError`."""
        rows = [full_row(run, self.rows[run.key]) for run in runs if run.key in self.rows]
        columns = column_types(rows)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row.get(name), kind) for name, kind in columns.items()])
        path = self.directory / TABLE
        self._replace(path, text.getvalue())
        self._replace(self.directory / COLUMNS, json.dumps(columns, indent=1) + "\n")
        return path

    def _replace(self, path: Path, text: str) -> None:
        draft = path.with_name(path.name + ".new")
        try:
            draft.write_text(text, "utf-8")
            draft.replace(path)
        except OSError as error:
            raise UsageError(f"cannot write {str(path)!r}: {error.strerror}") from None


def full_row(run: Run, row: Row) -> Row:
    """Return a row of the table: settings and seed first."""
    return {**run.settings, "seed": run.seed} | {key: cell for key, cell in row.items() if key not in UNREPEATABLE}


def column_types(rows: Sequence[Mapping[str, Value]]) -> dict[str, str]:
    """Return the columns in the order in which they come, and their types: the narrowest that takes all cells."""
    seen: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            seen.setdefault(name, set()).add(type(value))
    return {name: _type(types) for name, types in seen.items()}


def _type(types: set[type]) -> str:
    if types == {bool}:
        return "bool"
    if types == {int}:
        return "int64"
    return "double" if types <= {int, float} else "string"


def _cell(value: Value | None, kind: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(float(value)) if kind == "double" else str(value)
