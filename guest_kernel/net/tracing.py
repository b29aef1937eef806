"""What both ends of a network device write into the trace."""

from collections.abc import Callable

from hypervisor.abi.cpu import Probe
from hypervisor.abi.tracepoints import FLAG, RING_PUSH, WORD


def bind_pushes(trace: Probe, name: str) -> dict[str, Callable[[int, bool, int], None]]:
    """Return what records a push, by the ring ("tx", "rx").

    It takes how far the ring goes now, whether the other end was notified, and how far the other direction has been
    consumed.
    """
    return {ring: trace.bind(RING_PUSH, name, ring, WORD, FLAG, WORD) for ring in ("tx", "rx")}
