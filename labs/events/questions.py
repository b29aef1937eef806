"""The questions of lab 5."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from hypervisor.abi import callback, xen
from hypervisor.abi import event_channel as ev
from labs.events.checks import CALLBACK, Run, Scene, kernels, pause
from labs.kit.questions import Question

# What the questions need of a submission: nothing.
NOBODY = SimpleNamespace(Events=lambda *arguments: None)


def _install(scene: Scene, handler: Any) -> None:

    scene.cpu.text[CALLBACK] = handler
    layout = callback.callback_register
    layout.pack_into(scene.cpu.view(scene.page), 0, type=callback.CALLBACKTYPE_event, address=CALLBACK)
    assert scene.cpu.hypercall(xen.HYPERVISOR_callback_op, callback.CALLBACKOP_register, scene.page) == 0
    scene.shared[1] = 0


def _upcalls(sends: int, look_between: bool) -> int:
    """Return how many upcalls so many notifications make."""

    def use(scene: Scene) -> Run:
        calls = [0]

        def handler() -> None:
            calls[0] += 1
            scene.shared[0] = 0
            scene.words[1] = 0
            scene.words[256] = 0

        _install(scene, handler)
        port = scene.bind_ipi()
        scene.operate(ev.EVTCHNOP_unmask, ev.evtchn_unmask, port=port)
        for _ in range(sends):
            scene.raise_event(port)
            if look_between:
                yield 0
        yield from pause()
        return calls[0]

    return int(kernels(NOBODY, use)[0])


def _bits(masked: bool) -> str:
    """Return pending bit, selector bit and upcall flag after an event, with upcalls masked."""

    def use(scene: Scene) -> str:
        port = scene.bind_ipi()
        scene.shared[1] = 1
        if not masked:
            scene.operate(ev.EVTCHNOP_unmask, ev.evtchn_unmask, port=port)
        scene.raise_event(port)
        return f"{int(scene.is_pending(port))} {scene.words[1] & 1} {scene.shared[0]}"

    return str(kernels(NOBODY, use)[0])


def questions(rng: random.Random) -> list[Question]:
    """Make the questions of one student."""
    sends = rng.randrange(3, 60)
    port = rng.randrange(4096)
    return [
        Question(
            f"A kernel sends {sends} times to a port of its own, with no place in between where an upcall could "
            "come. How often is its callback called then?",
            lambda: _upcalls(sends, False),
            "An event is a bit. A handler must look at all that may have happened, not at one thing for each call.",
        ),
        Question(
            f"And if an upcall can come after each of the {sends} notifications, and the handler clears the bits?",
            lambda: _upcalls(sends, True),
            "Now each finds the bit clear.",
        ),
        Question(
            "A kernel has masked a port. An event comes. Which are then 1: the pending bit, the bit in "
            "evtchn_pending_sel, evtchn_upcall_pending? (three digits)",
            lambda: _bits(True),
            "The mask stops the event below the pending bit. Unmasking has to make up for the rest.",
        ),
        Question(
            "The port is not masked, but upcalls are (evtchn_upcall_mask is 1). Which are 1 after the event?",
            lambda: _bits(False),
            "All three: the vCPU is called up when it unmasks upcalls.",
        ),
        Question(
            f"Which word of evtchn_pending, and which bit of it, belongs to port {port}? (word.bit)",
            lambda: f"{port // 64}.{port % 64}",
            "And that word's number is the bit in evtchn_pending_sel.",
        ),
    ]
