"""The schedulers by name (Xen's command line, `sched=`) and by number (XEN_SCHEDULER_*)."""

from __future__ import annotations

from hypervisor.sched.algorithm import Algorithm, FifoOrder
from hypervisor.sched.credit2 import Credit2

DEFAULT = "credit2"
XENS: dict[str, type[Algorithm]] = {algorithm.name: algorithm for algorithm in (Credit2,)}
"""Those of Xen, which pools of pCPUs can have."""
ALGORITHMS: dict[str, type[Algorithm]] = {**XENS, FifoOrder.name: FifoOrder}
