"""The two-level event ABI from the guest's side: a bitmap in shared_info, and a selector in each vcpu_info.

Xen tells a vCPU of events in three steps: a bit per port in `evtchn_pending`, a bit per word of those in the vCPU's
`evtchn_pending_sel`, and a byte `evtchn_upcall_pending`. An upcall goes the other way: clear the byte, take the
selector, and of each word that it names take the pending bits that are not masked. A bit is cleared before its handler
runs, so an event that comes meanwhile is not lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from guest_kernel.hypercalls import Hypercalls
from guest_kernel.threads import FAILURES, INTERRUPTS
from hypervisor.abi.event_channel import EVTCHNOP_unmask, evtchn_unmask
from hypervisor.abi.xen import shared_info, vcpu_info

Handler = Callable[[], None]
Word = list[Any]
"""[index of 64 pending bits in shared_info, those of them that are not masked, handlers by bit, those not masked]"""

_PENDING = shared_info.offset("evtchn_pending") >> 3
_MASK = shared_info.offset("evtchn_mask") >> 3
_WORDS = 64
_ALL = (1 << 64) - 1


def run_all(handlers: dict[int, Handler], pending: int) -> None:
    """Call the handlers of all bits in `pending`. A port that one of them closes has none any more."""
    while pending:
        handler = handlers.get(pending & -pending)
        pending &= pending - 1
        if handler is not None:
            handler()


class TwoLevelPorts:
    """Handlers and masks of the ports, up to number 4095. `shared` is the shared_info page."""

    def __init__(self, hypercalls: Hypercalls, shared: memoryview, on_failure: Callable[[BaseException], None]) -> None:
        self._hypercalls = hypercalls
        self._bytes = shared
        self._words = shared.cast("Q")
        self._by_selector: dict[int, Word] = {}
        """The words in which ports are or were bound, by selector bit."""
        self._on_failure = on_failure
        # Every port begins masked; binding one unmasks it. Nobody else changes the mask, so it need not be read.
        for word in range(_WORDS):
            self._words[_MASK + word] = _ALL

    def make_upcall(self, vcpu_id: int) -> Handler:
        """Return the code that Xen enters on vCPU `vcpu_id` when events are pending."""
        info = shared_info.offset(f"vcpu_info[{vcpu_id}]")
        flag = info + vcpu_info.offset("evtchn_upcall_pending")
        selector_at = info + vcpu_info.offset("evtchn_pending_sel") >> 3
        shared_bytes, words, on_failure = self._bytes, self._words, self._on_failure
        find_word = self._by_selector.get
        dispatch = self._dispatch

        def upcall() -> None:
            shared_bytes[flag] = 0
            selector = words[selector_at]
            words[selector_at] = 0
            try:
                word = find_word(selector)
                if word is None:
                    dispatch(selector)
                    return
                at, unmasked, handlers, live = word
                raw = words[at]
                handler = live.get(raw)
                if handler is not None:
                    # Nearly always one bit of one word is set.
                    words[at] = 0
                    handler()
                else:
                    pending = raw & unmasked
                    words[at] = raw ^ pending
                    run_all(handlers, pending)
            except INTERRUPTS:
                raise
            except FAILURES as failure:
                on_failure(failure)

        return upcall

    def _dispatch(self, selector: int) -> None:
        """Take the pending events of several words, lowest port first."""
        words = self._words
        while selector:
            word = self._by_selector.get(selector & -selector)
            selector &= selector - 1
            if word is None:
                continue  # somebody else wrote into the selector: no port of that word is unmasked
            at, unmasked, handlers, _ = word
            raw = words[at]
            pending = raw & unmasked
            words[at] = raw ^ pending
            run_all(handlers, pending)

    def _word(self, port: int) -> Word:
        number = port >> 6
        word = self._by_selector.get(1 << number)
        if word is None:
            word = self._by_selector[1 << number] = [_PENDING + number, 0, {}, {}]
        return word

    def set_handler(self, port: int, handler: Handler) -> None:
        """Put another handler on a bound port."""
        bit = 1 << (port & 63)
        _, unmasked, handlers, live = self._word(port)
        handlers[bit] = handler
        if unmasked & bit:
            live[bit] = handler

    def remove_handler(self, port: int) -> None:
        """Forget the handler of a port that has been closed."""
        self._word(port)[2].pop(1 << (port & 63), None)

    def mask(self, port: int) -> None:
        """Hold the events of a port back; one that comes is remembered."""
        bit = 1 << (port & 63)
        word = self._word(port)
        word[1] &= ~bit
        word[3].pop(bit, None)
        self._words[word[0] + _MASK - _PENDING] = _ALL ^ word[1]

    def unmask(self, port: int) -> None:
        """Let the events of a port through; one that is pending comes at the next yield."""
        bit = 1 << (port & 63)
        word = self._word(port)
        word[1] |= bit
        if bit in word[2]:
            word[3][bit] = word[2][bit]
        if self._words[word[0]] & bit:
            # Xen has to look: the selector and the upcall flag were not set for a masked port.
            self._hypercalls.event_channel(EVTCHNOP_unmask, evtchn_unmask, "EVTCHNOP_unmask", port=port)
        else:
            self._words[word[0] + _MASK - _PENDING] = _ALL ^ word[1]

    def bound(self) -> list[int]:
        """Return the ports that have a handler."""
        return [
            64 * (at - _PENDING) + bit.bit_length() - 1
            for at, _, handlers, _ in self._by_selector.values()
            for bit in handlers
        ]

    def is_pending(self, port: int) -> bool:
        """Return whether an event waits on a port (a masked one, or one whose upcall has not come yet)."""
        return bool(self._words[_PENDING + (port >> 6)] >> (port & 63) & 1)
