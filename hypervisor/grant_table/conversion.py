"""GNTTABOP_set_version: from one format of entries to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import errno

if TYPE_CHECKING:
    from hypervisor.grant_table.table import GrantTable


def set_version(table: GrantTable, version: int) -> int:
    """Change the format of a table; returns 0 or a positive errno, with nothing changed."""
    if version not in (1, 2):
        return errno.EINVAL
    if version > table.max_version:
        return errno.ENOSYS
    return 0
