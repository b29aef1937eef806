"""Who runs when: physical CPUs, the run queue, and the policy that picks from it."""

from hypervisor.sched.pcpu import PCpu
from hypervisor.sched.policy import Fifo, Policy, Random, Replay, parse_policy
from hypervisor.sched.scheduler import Scheduler

__all__ = ["Fifo", "PCpu", "Policy", "Random", "Replay", "Scheduler", "parse_policy"]
