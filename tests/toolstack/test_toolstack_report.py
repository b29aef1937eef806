"""The closing table says what there is, as it is."""

from __future__ import annotations

import pytest

from toolstack.report import DomainResult, HostResult, make_console, print_table


def test_names_between_colons_are_no_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(
        HostResult([DomainResult("Domain-0", 0, 1, "poweroff"), DomainResult(":cat:", 1, 1, "crash")]), make_console()
    )
    assert ":cat:" in capsys.readouterr().out
