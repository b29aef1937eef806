"""Which buffers the other end has, in the order in which it will give them back.

A list says so: for each slot of a ring between the last response taken and the last request put, the id of one buffer.
A backend that answers in order, as all known ones do, is thus checked by comparing two lists.
"""

from __future__ import annotations

from collections.abc import Sequence

from guest_kernel.net.ring_words import read_run, write_run
from hypervisor.abi.io.ring import FrontRing


def reorder(ring: FrontRing, order: list[int], idents: list[int], extras: Sequence[int] = ()) -> bool:
    """Make `order` say that these buffers are answered first; False if one of them is not out.

    Answers at `extras` have no id: they stand where the request was that they answer, and its id is filled in.
    """
    out = read_run(order, ring.rsp_cons, ring.outstanding())
    for place in extras:
        idents[place] = out[place]
    for place, ident in enumerate(idents):
        try:
            found = out.index(ident, place)
        except ValueError:
            return False
        out[found], out[place] = out[place], ident
    write_run(order, ring.rsp_cons, out)
    return True
