"""A dom0 without a hypervisor: the guest kernel's scheduler over pages, ports and a clock of the test's own."""

from collections.abc import Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any

from guest_kernel.errors import XenError
from guest_kernel.grants import MappedGrant
from guest_kernel.mm import ForeignMapping
from guest_kernel.run_loop import run_threads
from guest_kernel.threads import Scheduler, Thread, WaitQueue, reschedule
from guest_kernel.xenbus.client import XenbusClient
from hypervisor.abi.domctl import XEN_DOMINF_dying, XEN_DOMINF_shutdown
from hypervisor.abi.grant_table import GNTST_bad_gntref, GNTST_okay

DOM0_PORT = 9
DOM0_MFN = 99


class FakeGuest:
    """A domain: its pages by grant reference, and what dom0 has signalled it."""

    def __init__(self, dom0: "FakeDom0", domid: int) -> None:
        self.dom0 = dom0
        self.domid = domid
        self.pages: dict[int, memoryview] = {}
        self.granted = True
        self.flags = 0
        self.signals: list[int] = []
        self.on_signal: Callable[[], None] = lambda: None

    def page(self, ref: int) -> memoryview:
        return self.pages.setdefault(ref, memoryview(bytearray(4096)))

    def notify(self, remote_port: int) -> None:
        self.dom0.raise_event((self.domid, remote_port))


class FakeDom0:
    """What a daemon needs of the kernel of dom0.  `run` lets its threads run until all of them wait."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.scheduler = Scheduler(lambda thread, failure: self.failures.append(failure))
        self.now = 0
        self.guests: dict[int, FakeGuest] = {}
        self.asked: list[int] = []
        self.mapped = 0
        self.printed: list[str] = []
        self._timers: list[tuple[int, int, WaitQueue]] = []
        self._ports: dict[int, tuple[tuple[int, int], Callable[[], None]]] = {}
        self._pending: dict[int, None] = {}
        self._masked: set[int] = set()
        self._next_port = 100
        self._idle = False
        self.console = SimpleNamespace(printk=self.printed.append)
        self.cpu = SimpleNamespace(trace=None)
        self.events = self
        self.grants = self
        self.mm = self
        self._page = memoryview(bytearray(4096))
        self.xenbus = XenbusClient(self._page, lambda: self.raise_event((0x7FF0, DOM0_PORT)), self.scheduler.spawn)
        self.xenbus.dom0_interface = (DOM0_MFN, DOM0_PORT)
        self._running = run_threads(self.scheduler)

    # ---- for tests

    def guest(self, domid: int) -> FakeGuest:
        guest = self.guests[domid] = FakeGuest(self, domid)
        return guest

    def info(self, domid: int) -> Any:
        self.asked.append(domid)
        guest = self.guests.get(domid)
        return None if guest is None else SimpleNamespace(domain=domid, flags=guest.flags)

    def infos(self) -> list[Any]:
        return [SimpleNamespace(domain=domid, flags=guest.flags) for domid, guest in self.guests.items()]

    def shut_down(self, domid: int) -> None:
        self.guests[domid].flags = XEN_DOMINF_shutdown
        self.raise_event((-1, 3))

    def die(self, domid: int) -> None:
        self.guests[domid].flags = XEN_DOMINF_dying
        self.raise_event((-1, 3))

    def vanish(self, domid: int) -> None:
        del self.guests[domid]
        self.raise_event((-1, 3))

    def raise_event(self, far_end: tuple[int, int]) -> None:
        for port, (end, _) in self._ports.items():
            if end == far_end:
                self._pending[port] = None

    @property
    def bound(self) -> list[tuple[int, int]]:
        return [end for end, _ in self._ports.values()]

    def run(self) -> None:
        """Until every thread waits and no event is pending."""
        for _ in range(100_000):
            self._idle = next(self._running) is self.scheduler.ready
            self._upcall()
            if self._idle and not self.scheduler.ready:
                if self.failures:
                    raise self.failures[0]
                return
        raise AssertionError("dom0 does not come to rest")

    def pass_time(self, ns: int) -> None:
        """Run, and go on to each timer that is due within `ns`."""
        end = self.now + ns
        self.run()
        while self._timers and min(self._timers)[0] <= end:
            timer = min(self._timers)
            self._timers.remove(timer)
            self.now = max(self.now, timer[0])
            timer[2].wake()
            self.run()
        self.now = end

    def do(self, coro: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine as a thread of dom0, to its end."""
        thread = self.scheduler.spawn(coro, "test", panics=False)
        self.run()
        assert thread.done, "the thread waits for something that does not come"
        if thread.exception is not None:
            raise thread.exception
        return thread.result

    def _upcall(self) -> None:
        for port in [port for port in self._pending if port not in self._masked]:
            del self._pending[port]
            if port in self._ports:
                self._idle = False
                self._ports[port][1]()

    # ---- the kernel

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str = "", *, panics: bool = True) -> Thread:
        return self.scheduler.spawn(coro, name, panics=panics)

    def monotonic_ns(self) -> int:
        return self.now

    async def yield_(self) -> None:
        await reschedule()

    async def sleep(self, ns: int) -> None:
        queue = WaitQueue()
        self._timers.append((self.now + ns, len(self._timers), queue))
        await queue.wait()

    # events

    def bind_interdomain(self, domid: int, remote_port: int, handler: Callable[[], None]) -> int:
        if domid != 0x7FF0 and (domid not in self.guests or remote_port > 4095):
            raise XenError(22, "EVTCHNOP_bind_interdomain")
        return self._bind((domid, remote_port), handler)

    def bind_virq(self, virq: int, handler: Callable[[], None]) -> int:
        return self._bind((-1, virq), handler)

    def _bind(self, end: tuple[int, int], handler: Callable[[], None]) -> int:
        self._next_port += 1
        self._ports[self._next_port] = (end, handler)
        return self._next_port

    def unbind(self, port: int) -> None:
        del self._ports[port]
        self._pending.pop(port, None)
        self._masked.discard(port)

    def mask(self, port: int) -> None:
        self._masked.add(port)

    def unmask(self, port: int) -> None:
        self._masked.discard(port)

    def notify(self, port: int) -> None:
        (domid, remote_port), _ = self._ports[port]
        if domid == 0x7FF0:
            self.xenbus.on_event()
            return
        guest = self.guests.get(domid)
        if guest is None:
            raise XenError(22, "EVTCHNOP_send")
        guest.signals.append(remote_port)
        guest.on_signal()

    # memory

    def page_at(self, mfn: int) -> Any:
        assert mfn == DOM0_MFN
        return SimpleNamespace(view=self._page)

    def map_refs(self, domid: int, refs: Sequence[int], writable: bool = True) -> list[MappedGrant]:
        guest = self.guests.get(domid)
        if guest is None or not guest.granted:
            return [MappedGrant(ref, GNTST_bad_gntref) for ref in refs]
        self.mapped += len(refs)
        return [MappedGrant(ref, GNTST_okay, view=guest.page(ref)) for ref in refs]

    def unmap(self, grants: Sequence[MappedGrant]) -> None:
        for grant in grants:
            if grant.status == GNTST_okay:
                self.mapped -= 1
                grant.status = -1

    def map_foreign(self, domid: int, mfns: Sequence[int]) -> ForeignMapping:
        guest = self.guests.get(domid)
        if guest is None:
            raise XenError(3, "mmu_update")
        self.mapped += len(mfns)
        return ForeignMapping(0, [guest.page(mfn) for mfn in mfns])

    def unmap_foreign(self, mapping: ForeignMapping) -> None:
        self.mapped -= len(mapping)
        mapping.clear()
