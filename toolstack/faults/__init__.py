"""Faults on a menu: what can break on a host, broken on purpose, at a chosen moment and repeatably.

    host = Host(faults=[parse_fault("event-drop:domain=web:probability=0.01")])

`menu` has the list, `spec` what can be said of one, `order` how a person says it, `injector` what brings the
faults of a run to their host.
"""

from toolstack.faults.menu import MENU
from toolstack.faults.order import parse_fault
from toolstack.faults.spec import FaultSpec

__all__ = ["MENU", "FaultSpec", "parse_fault"]
