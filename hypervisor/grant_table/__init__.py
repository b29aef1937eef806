"""Grant tables: what a domain lets others have of its memory, page by page, and who uses it."""

from hypervisor.grant_table.ops import GrantTableOps
from hypervisor.grant_table.table import GrantTable

__all__ = ("GrantTable", "GrantTableOps")
