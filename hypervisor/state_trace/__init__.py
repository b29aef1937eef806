"""What a host looks like at each moment, as differences in its trace.

Records tell what was done. Most of what a person wants to see of a moment (the bits of event channels, grant entries,
the slots of rings, the types of pages) lies in memory that guests write without asking anybody, so no record can tell
it. `StateTrace` looks at those places after each record and adds records for what has changed: whoever adds them up,
from the first to any other, has the state of the host there. Each module here knows one kind of place.

Looking changes nothing, so the run is the same with and without it. It takes time, so it has to be asked for.
"""

from hypervisor.state_trace.observer import StateTrace

__all__ = ["StateTrace"]
