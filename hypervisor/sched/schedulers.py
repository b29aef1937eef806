"""The schedulers by name (Xen's command line, `sched=`) and by number (XEN_SCHEDULER_*)."""

from __future__ import annotations

from hypervisor.sched.algorithm import Algorithm, FifoOrder
from hypervisor.sched.arinc653 import Arinc653
from hypervisor.sched.credit import Credit, SampledCredit
from hypervisor.sched.credit2 import Credit2
from hypervisor.sched.null import Null
from hypervisor.sched.rtds import Rtds

DEFAULT = "credit2"
XENS: dict[str, type[Algorithm]] = {algorithm.name: algorithm for algorithm in (Credit2, Credit, Rtds, Null, Arinc653)}
"""Those of Xen, which pools of pCPUs can have."""
CHOICES = (*XENS, SampledCredit.name)
"""Those that a person can choose."""
ALGORITHMS: dict[str, type[Algorithm]] = {**XENS, SampledCredit.name: SampledCredit, FifoOrder.name: FifoOrder}
BY_NUMBER = {algorithm.sched_id: algorithm for algorithm in XENS.values()}
"""Those of Xen by XEN_SCHEDULER_*."""
