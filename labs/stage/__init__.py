"""A host whose domains are led by hand, one hypercall at a time, and pictures of it: for notebooks and lectures."""

from labs.stage.drawing import draw_events, draw_grants, draw_ring
from labs.stage.host import Puppet, Stage

__all__ = ("Puppet", "Stage", "draw_events", "draw_grants", "draw_ring")
