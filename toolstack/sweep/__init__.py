"""Campaigns: one scenario, many seeds and settings, a table of results.

`grid` says which runs there are, `scenario` makes a host of one, `worker` runs it in a process of its own, `local` and
`cluster` keep many of those busy, `results` keeps what came out. What a scenario file needs is here.
"""

from toolstack.sweep.scenario import Scenario

__all__ = ["Scenario"]
