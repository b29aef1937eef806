"""One ring of a block backend: takes requests, has the disk perform them, answers. Never waits.

    upcall of the event channel -> wake: the whole ring: copy, check, map, submit; one doorbell
    upcall of the disk          -> finished, or finish: responses into the ring; when all that was submitted is done,
                                   one unmap, one push, one notification at most

Every byte in the ring is the frontend's. A request is copied out once, and only the copy is looked at (XSA-155). What
is wrong in it is answered with an error; indices that cannot be stop the ring for good (XSA-39).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, final

from backends.block.indirect import REST, DescriptorCopier, KnownTables
from backends.block.mapping import GrantMapper, Mapping, Plan
from backends.block.protocol import Protocol as RingProtocol
from backends.block.protocol import Segment, parse_segments
from guest_kernel.block import DISCARD, FLUSH, READ, SECURE_DISCARD, WRITE
from guest_kernel.errors import OutOfMemory
from guest_kernel.threads import WaitQueue
from hypervisor.abi.io.blkif import (
    BLKIF_DISCARD_SECURE,
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
)
from hypervisor.abi.io.ring import MASK32, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, BackRing
from hypervisor.abi.tracepoints import BLOCK_REQUEST, FLAG, RING_PUSH, SIGNED, WORD

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel

_STEPS = {
    BLKIF_OP_READ: (READ,),
    BLKIF_OP_WRITE: (WRITE,),
    BLKIF_OP_FLUSH_DISKCACHE: (FLUSH, WRITE),
    BLKIF_OP_WRITE_BARRIER: (FLUSH, WRITE, FLUSH),
}
"""What the disk does for each operation; of a flush or barrier without segments only the first step is left."""


Step = tuple[int, int, bytes]
"""A command of the disk: operation, from which sector of the request on, extents."""
Request = tuple[int, int, int, int, int, bytes]
"""A copied request: operation, nr_segments, handle, id, sector_number, segment descriptors."""


def _steps(op: int, plan: Plan) -> tuple[Step, ...]:
    """Return what the disk has to do for a request, in order."""
    steps: list[Step] = []
    for part in _STEPS[op] if plan.extents else _STEPS[op][:1]:
        if part == FLUSH:
            steps.append((FLUSH, 0, b""))
        else:
            steps.append((part, 0, plan.extents))
            steps += [(part, at, extents) for at, extents in plan.more]
    return tuple(steps)


class Disk(Protocol):
    """What a server needs of a disk driver of this domain (see `guest_kernel.hw`)."""

    @property
    def sectors(self) -> int:
        """Capacity in sectors."""
        ...

    @property
    def sector_size(self) -> int:
        """Bytes of one, which is what the frontend is told and counts in: 512 to 4096."""
        ...

    @property
    def physical_sector_size(self) -> int:
        """Bytes that the medium transfers at one go."""
        ...

    @property
    def readonly(self) -> bool:
        """Whether the medium cannot be written."""
        ...

    @property
    def discards(self) -> bool:
        """Whether it takes DISCARD."""
        ...

    @property
    def discards_securely(self) -> bool:
        """Whether it takes SECURE_DISCARD."""
        ...

    def submit(self, op: int, sector: int, segments: bytes, done: Callable[[int], None], sectors: int = 0, /) -> None:
        """Queue a READ, WRITE, FLUSH, or a discard of `sectors`.

        `done(0 or -errno)` is called in an upcall, after the DMA.
        """
        ...

    def submit_one(self, op: int, sector: int, segments: bytes, job: _Job, owner: BlockServer, /) -> None:
        """Queue a READ or WRITE. `job.done` is called as that of `submit`, or, where nobody else uses the disk and
        all went well, `owner.finished_one`, or `owner.finished` once for several.
        """
        ...

    def submit_all(self, commands: Sequence[tuple[int, int, bytes, _Job]], owner: BlockServer, /) -> None:
        """The same for several: operation, sector, segments and job of each."""
        ...

    def kick(self) -> None:
        """Start what was submitted."""
        ...

    def afterwards(self, callback: Callable[[], None], /) -> None:
        """Have this called once, when all completions that are being handed out have been."""
        ...

    def watch(self, callback: Callable[[], None] | None, /) -> None:
        """Have this called, in an upcall, when `sectors` has changed; None: no more."""
        ...


@final
class Statistics:
    """What one server has done: requests by kind, sectors (of the disk's size), refusals."""

    __slots__ = (
        "barriers",
        "discards",
        "errors",
        "flushes",
        "reads",
        "sectors_discarded",
        "sectors_read",
        "sectors_written",
        "writes",
    )

    def __init__(self) -> None:
        self.reads = self.writes = self.flushes = self.barriers = self.discards = self.errors = 0
        self.sectors_read = self.sectors_written = self.sectors_discarded = 0

    @classmethod
    def total(cls, parts: Iterable[Statistics], sector_size: int = 512) -> Statistics:
        """Return the sums over the rings of a disk; sectors are counted as such of 512 bytes."""
        whole = cls()
        for part in parts:
            for name in cls.__slots__:
                scale = sector_size // 512 if name.startswith("sectors") else 1
                setattr(whole, name, getattr(whole, name) + scale * getattr(part, name))
        return whole


@final
class _Job:
    """A request in the disk's hands. There are as many as the ring has slots, used over and over."""

    __slots__ = ("id", "mappings", "op", "plan", "sector", "sectors", "server", "steps")

    def __init__(self, server: BlockServer) -> None:
        self.server = server
        self.id = 0
        self.op = 0
        self.sector = 0
        self.sectors = 0
        """How many of them, if there is no plan that says so."""
        self.plan: Plan | None = None
        self.mappings: list[Mapping] = []
        """Grants mapped for this request alone."""
        self.steps: tuple[Step, ...] = ()
        """What the disk has still to do after the current command."""

    def done(self, status: int) -> None:
        """The disk is done with an operation: go on with the next one, or end the request."""
        if self.steps and not status:
            self.server.step(self)
        else:
            self.server.finish(self, status)


class BlockServer:
    """Serves one ring of one frontend from one disk."""

    __slots__ = (
        "_barrier",
        "_copier",
        "_dead",
        "_jobs",
        "_mapper",
        "_notify",
        "_protocol",
        "_pushed",
        "_reading",
        "_sector_size",
        "_submit",
        "_tables",
        "_taking",
        "_trace",
        "_trace_push",
        "answering",
        "discards",
        "discards_securely",
        "disk",
        "drained",
        "free",
        "in_flight",
        "name",
        "on_broken",
        "port",
        "readonly",
        "ring",
        "sectors",
        "statistics",
        "stopped",
        "told",
        "unusual",
    )

    def __init__(
        self,
        kernel: Kernel,
        name: str,
        disk: Disk,
        ring: BackRing,
        protocol: RingProtocol,
        mapper: GrantMapper,
        *,
        discards: bool = False,
        copier: DescriptorCopier | None = None,
        tables: KnownTables | None = None,
    ) -> None:
        # (What an attribute holds is called in two steps in hot code: otherwise a method of that name is looked for.)
        self._notify = kernel.events.notify
        self._submit = disk.submit_one
        self.name = name
        self.disk = disk
        self.sectors = disk.sectors
        """Capacity that the frontend was told, or is about to be."""
        self._sector_size = disk.sector_size
        self.readonly = disk.readonly
        self.discards = discards and disk.discards
        """Whether the frontend was told that it may discard."""
        self.discards_securely = self.discards and disk.discards_securely
        self._copier = copier
        """What fetches the descriptors of indirect requests; None where they are not offered."""
        self._tables = tables
        """Where descriptors that come again are known; None without persistent grants."""
        self.ring = ring
        self._protocol = protocol
        self._mapper = mapper
        self.port = -1
        self.statistics = Statistics()
        self.on_broken: Callable[[str], None] | None = None
        """Called once when the frontend has written what no frontend writes, with a sentence. Must not block."""
        self.stopped = False
        """Nothing more is taken out of the ring."""
        self.drained = WaitQueue()
        """Woken when a stopped server has nothing left in the disk's hands."""
        self.told = False
        """Whether responses are to be shown at the end of what the disk has to say now: not all that was submitted is
        done."""
        self._jobs = [_Job(self) for _ in range(ring.size)]
        self.free = self._jobs[::-1]
        self.in_flight = 0
        self._dead: list[Mapping] = []
        """Mappings of finished requests; they must go before the responses are shown."""
        self._pushed = ring.rsp_prod_pvt
        self._barrier: _Job | None = None
        """A barrier that waits for all before it, or is being performed: nothing after it is taken."""
        self.unusual = False
        """Whether finishing a request takes more than putting its response: a barrier, a stop."""
        # What the two ends of the hot path look up each time; unpacking a tuple costs as much as one attribute.
        places = (ring, ring.shared, ring.view, ring.offsets, ring.mask)
        starting = (mapper, self.free, self.statistics, disk.submit_one, disk.kick)
        self._reading = (*places, ring.size, protocol.request.unpack_from, *starting)
        self._taking = (ring.slots, protocol.request, disk.submit_all, self.free)
        trace = kernel.cpu.trace
        self._trace = None if trace is None else trace.bind(BLOCK_REQUEST, name, WORD, WORD, WORD, SIGNED)
        self._trace_push = None if trace is None else trace.bind(RING_PUSH, name, "rsp", WORD, FLAG, WORD)
        self.answering = (*places, protocol.response.pack_into, self.free, self._trace, self._trace_push)

    # Requests

    def resize(self) -> None:
        """Serve as much of the disk as there is by now."""
        self.sectors = self.disk.sectors

    def wake(self) -> None:  # noqa: C901 - every request passes here, so it is in one piece
        """Take all requests out of the ring, as far as they may be taken, and start them: the event's handler."""
        if self.unusual and (self.stopped or self._barrier is not None):
            return
        ring, shared, view, offsets, mask, size, unpack, mapper, free, statistics, submit, kick = self._reading
        started = refused = 0
        cons = ring.req_cons
        prod = shared[REQ_PROD]
        while True:
            if prod - cons != 1 or not free:
                refused = 1
                if (prod - cons) & MASK32 > (ring.rsp_prod_pvt + size - cons) & MASK32:
                    self._break(self._lie(prod))
                    break
                if ring.pages:
                    ring.fetch(cons, prod)
                mapper.clock += 1
                started += self._take(cons, prod)
                if self._barrier is not None:
                    break
                cons = ring.req_cons
            else:
                # (There is a job for it: so it is not more ahead of the responses than the ring is long.)
                if ring.pages:
                    ring.fetch(cons, prod)
                request = unpack(view, offsets[cons & mask])
                ring.req_cons = cons = prod
                op, count, _, ident, sector, segments = request
                plan = None
                if op <= BLKIF_OP_WRITE and count <= BLKIF_MAX_SEGMENTS_PER_REQUEST:
                    plan = mapper.plans.get(segments[: 8 * count])
                if plan is None or sector + plan.sectors > self.sectors or (op and self.readonly):
                    mapper.clock += 1
                    started += self._start_unusual(request)
                    refused = 1
                    if self._barrier is not None:
                        break
                else:
                    # `_start_known`, written out.
                    plan.last_use = mapper.clock = mapper.clock + 1
                    job = free.pop()
                    job.id = ident
                    job.op = op
                    job.sector = sector
                    job.plan = plan
                    self.in_flight += 1
                    if op:
                        statistics.writes += 1
                        statistics.sectors_written += plan.sectors
                    else:
                        statistics.reads += 1
                        statistics.sectors_read += plan.sectors
                    submit(op, sector, plan.extents, job, self)
                    started = 1
            # The next request is to be told of. One that came before the frontend could know is taken at once.
            # (So is what comes after a barrier that has failed already.)
            shared[REQ_EVENT] = (cons + 1) & MASK32
            prod = shared[REQ_PROD]
            if prod == cons:
                break
        if started:
            kick()
        if refused and self._pushed != ring.rsp_prod_pvt:
            self.flush_responses()

    def _start_unusual(self, request: Request) -> int:
        """Start one request that is no direct transfer of known segments; returns how often the disk must be kicked."""
        op, count, number, ident, sector, segments = request
        if (
            op == BLKIF_OP_INDIRECT
            and count <= BLKIF_OP_WRITE
            and self._tables is not None
            and self._start_known(count, ident, sector, self._tables.recall(number, segments))
        ):
            return 1
        return self._start_slow([request])

    def _take(self, cons: int, prod: int) -> int:
        """Take the requests between two ring indices, up to a barrier; returns how many the disk must be kicked for.

        Transfers whose segments are known start at once; the others are mapped together, after that.
        """
        slots, layout, submit_all, free = self._taking
        mapper, tables = self._mapper, self._tables
        plans, clock = mapper.plans, mapper.clock
        size, readonly = self.sectors, self.readonly
        known: list[tuple[int, int, bytes, _Job]] = []
        slow: list[Request] = []
        writes = sectors = sectors_written = 0
        for request in slots(layout, cons, prod):
            op, count, number, ident, sector, segments = request
            if op <= BLKIF_OP_WRITE and count <= BLKIF_MAX_SEGMENTS_PER_REQUEST:
                plan = plans.get(segments[: 8 * count])
            elif op == BLKIF_OP_INDIRECT and count <= BLKIF_OP_WRITE and tables is not None:
                # The operation proper is where others have the number of their segments.
                op = count
                plan = tables.recall(number, segments)
            else:
                plan = None
            if plan is not None and sector + plan.sectors <= size and not (op and readonly):
                plan.last_use = clock
                job = free.pop()
                job.id = ident
                job.op = op
                job.sector = sector
                job.plan = plan
                sectors += plan.sectors
                if op:
                    writes += 1
                    sectors_written += plan.sectors
                known.append((op, sector, plan.extents, job))
                continue
            slow.append(request)
            if op == BLKIF_OP_WRITE_BARRIER:
                prod = (cons + len(known) + len(slow)) & MASK32
                break
        self.ring.req_cons = prod
        started = len(known)
        if known:
            self.in_flight += started
            submit_all(known, self)
            statistics = self.statistics
            if writes != started:
                statistics.reads += started - writes
                statistics.sectors_read += sectors - sectors_written
            if writes:
                statistics.writes += writes
                statistics.sectors_written += sectors_written
        return started + self._start_slow(slow) if slow else started

    def _start_slow(self, requests: list[Request]) -> int:
        """Start requests whose grants are not mapped yet, or that are no plain transfers; answer those that are bad.

        Returns how many the disk has to be kicked for.
        """
        if any(request[0] == BLKIF_OP_INDIRECT for request in requests):
            requests = self._resolve(requests)
        jobs: list[_Job] = []
        batch: list[tuple[bytes, list[Segment], bool]] = []
        started = 0
        for op, count, _, ident, sector, segments in requests:
            if op == BLKIF_OP_DISCARD:
                started += self._start_discard(count, ident, sector, segments)
                continue
            descriptors = segments[: 8 * count]
            if op <= BLKIF_OP_WRITE and self._start_known(op, ident, sector, self._mapper.plans.get(descriptors)):
                started += 1
                continue
            status, checked = self._check(op, count, sector, descriptors)
            if status:
                self._refuse(ident, op, sector, status)
                continue
            job = self.free.pop()
            job.id = ident
            job.op = op
            job.sector = sector
            job.sectors = 0
            job.plan = None
            self.in_flight += 1
            jobs.append(job)
            batch.append((descriptors, checked, op == BLKIF_OP_READ))
        if not jobs:
            return started
        idle = set(self.free)
        in_use = [ref for job in self._jobs if job not in idle and job.plan is not None for ref in job.plan.refs]
        for job, (plan, mappings) in zip(jobs, self._mapper.map(batch, in_use), strict=True):
            job.mappings = mappings
            if plan is None:
                self.finish(job, -errno.EFAULT)
                continue
            job.plan = plan
            self._count(job.op, plan.sectors)
            job.steps = _steps(job.op, plan)
            if job.op == BLKIF_OP_WRITE_BARRIER:
                self._barrier = job
                self.unusual = True
            else:
                self.step(job, kick=False)
                started += 1
        if self._barrier is not None and self.in_flight == 1:
            self.step(self._barrier, kick=False)
            started += 1
        return started

    def _start_known(self, op: int, ident: int, sector: int, plan: Plan | None) -> bool:
        """Start a transfer whose plan is known, if there is nothing wrong with it; whether it was started."""
        if plan is None or sector + plan.sectors > self.sectors or (op and self.readonly):
            return False
        plan.last_use = self._mapper.clock
        job = self.free.pop()
        job.id = ident
        job.op = op
        job.sector = sector
        job.plan = plan
        self.in_flight += 1
        statistics = self.statistics
        if op:
            statistics.writes += 1
            statistics.sectors_written += plan.sectors
        else:
            statistics.reads += 1
            statistics.sectors_read += plan.sectors
        submit = self._submit
        submit(op, sector, plan.extents, job, self)
        return True

    def _resolve(self, requests: list[Request]) -> list[Request]:
        """Turn indirect requests into ordinary ones with many segments; answer those that are bad.

        In a `blkif_request_indirect` the operation proper is where others have the number of their segments, and that
        is where they have their handle. The response names the operation proper.
        """
        wanted: list[tuple[Sequence[int], int]] = []
        checked: list[Request] = []
        for request in requests:
            if request[0] != BLKIF_OP_INDIRECT:
                checked.append(request)
                continue
            _, op, count, ident, sector, rest = request
            if self._copier is None:
                self._refuse(ident, BLKIF_OP_INDIRECT, sector, BLKIF_RSP_EOPNOTSUPP)
            elif op > BLKIF_OP_WRITE or not 0 < count <= self._copier.max_segments:
                self._refuse(ident, op, sector, BLKIF_RSP_ERROR)
            else:
                wanted.append((REST.unpack_from(rest)[1:], count))
                checked.append(request)
        if self._copier is None or not wanted:
            return checked
        try:
            fetched = iter(self._copier.fetch(wanted))
        except OutOfMemory:
            fetched = iter([None] * len(wanted))
        resolved: list[Request] = []
        for request in checked:
            if request[0] != BLKIF_OP_INDIRECT:
                resolved.append(request)
                continue
            _, op, count, ident, sector, _ = request
            descriptors = next(fetched)
            if descriptors is None:
                self._refuse(ident, op, sector, BLKIF_RSP_ERROR)
            else:
                resolved.append((op, count, 0, ident, sector, descriptors))
        return resolved

    def _refuse(self, ident: int, op: int, sector: int, status: int) -> None:
        self.statistics.errors += 1
        self._answer(ident, op, sector, 0, status)

    def _start_discard(self, flag: int, ident: int, sector: int, rest: bytes) -> int:
        """Start a discard, or answer why not; returns how many the disk has to be kicked for.

        In a `blkif_request_discard` the flags are where others have the number of their segments, and the number of
        sectors is where their segments begin.
        """
        sectors = int.from_bytes(rest[:8], "little")
        status = BLKIF_RSP_OKAY
        secure = flag & BLKIF_DISCARD_SECURE
        if not (self.discards_securely if secure else self.discards):
            status = BLKIF_RSP_EOPNOTSUPP
        elif not sectors or sector + sectors > self.sectors:
            status = BLKIF_RSP_ERROR
        if status:
            self._refuse(ident, BLKIF_OP_DISCARD, sector, status)
            return 0
        job = self.free.pop()
        job.id = ident
        job.op = BLKIF_OP_DISCARD
        job.sector = sector
        job.sectors = sectors
        job.plan = None
        self.in_flight += 1
        self.statistics.discards += 1
        self.statistics.sectors_discarded += sectors
        self.disk.submit(SECURE_DISCARD if secure else DISCARD, sector, b"", job.done, sectors)
        return 1

    def _check(self, op: int, count: int, sector: int, descriptors: bytes) -> tuple[int, list[Segment]]:
        """Return BLKIF_RSP_OKAY and the segments of a request that may be performed, or why it may not."""
        if op not in _STEPS or (FLUSH in _STEPS[op] and self.readonly):
            return BLKIF_RSP_EOPNOTSUPP, []
        if len(descriptors) != 8 * count or (not count and op <= BLKIF_OP_WRITE):
            return BLKIF_RSP_ERROR, []
        segments = parse_segments(descriptors, self._sector_size)
        if segments is None or (op != BLKIF_OP_READ and self.readonly):
            return BLKIF_RSP_ERROR, []
        if segments and sector + sum(size for _, _, size in segments) // self._sector_size > self.sectors:
            return BLKIF_RSP_ERROR, []
        return BLKIF_RSP_OKAY, segments

    def _count(self, op: int, sectors: int) -> None:
        statistics = self.statistics
        if op == BLKIF_OP_READ:
            statistics.reads += 1
            statistics.sectors_read += sectors
            return
        statistics.sectors_written += sectors
        if op == BLKIF_OP_WRITE:
            statistics.writes += 1
        elif op == BLKIF_OP_FLUSH_DISKCACHE:
            statistics.flushes += 1
        else:
            statistics.barriers += 1

    def step(self, job: _Job, kick: bool = True) -> None:
        """Give the disk the next operation of a request."""
        op, at, extents = job.steps[0]
        job.steps = job.steps[1:]
        self.disk.submit(op, job.sector + at, extents, job.done)
        if kick:
            self.disk.kick()

    # Responses

    def finished_one(self, job: _Job) -> None:
        """The disk is done with a request of one step, and all is well: `finish` in the usual case."""
        if self.unusual:
            self.finish(job, 0)
            return
        ring, shared, view, offsets, mask, pack_into, free, trace, trace_push = self.answering
        prod = ring.rsp_prod_pvt
        pack_into(view, offsets[prod & mask], job.id, job.op, BLKIF_RSP_OKAY)
        ring.rsp_prod_pvt = new = (prod + 1) & MASK32
        if trace is not None:
            assert job.plan is not None
            trace(job.op, job.sector, job.plan.sectors, BLKIF_RSP_OKAY)
        free.append(job)
        self.in_flight = left = self.in_flight - 1
        if not left:
            if self._dead or ring.pages:
                self.flush_responses()
                return
            # The same, written out.
            old = self._pushed
            self._pushed = shared[RSP_PROD] = new
            event = shared[RSP_EVENT]
            notify = event == new or (new - event) & MASK32 < (new - old) & MASK32
            if trace_push is not None:
                trace_push(new, notify, ring.req_cons)
            if notify and self.port >= 0:
                send = self._notify
                send(self.port)
        elif not self.told:
            self.told = True
            self.disk.afterwards(self.flush_responses)

    def finished(self, jobs: Sequence[_Job]) -> None:
        """The same, for many."""
        if self.unusual:
            for job in jobs:
                self.finish(job, 0)
            return
        ring, _, view, offsets, mask, pack_into, free, trace, _ = self.answering
        prod = ring.rsp_prod_pvt
        for job in jobs:
            pack_into(view, offsets[prod & mask], job.id, job.op, BLKIF_RSP_OKAY)
            prod = (prod + 1) & MASK32
            if trace is not None:
                assert job.plan is not None
                trace(job.op, job.sector, job.plan.sectors, BLKIF_RSP_OKAY)
        ring.rsp_prod_pvt = prod
        free += jobs
        self.in_flight = left = self.in_flight - len(jobs)
        if not left:
            self.flush_responses()
        elif not self.told:
            self.told = True
            self.disk.afterwards(self.flush_responses)

    def finish(self, job: _Job, status: int) -> None:
        """A request is done: put its response; show it when nothing else is about to finish."""
        plan = job.plan
        sectors = plan.sectors if plan is not None else job.sectors
        if status == 0:
            self._answer(job.id, job.op, job.sector, sectors, BLKIF_RSP_OKAY)
        else:
            self.statistics.errors += 1
            reply = BLKIF_RSP_EOPNOTSUPP if status == -errno.EOPNOTSUPP else BLKIF_RSP_ERROR
            self._answer(job.id, job.op, job.sector, sectors, reply)
        if job.mappings:
            self._dead += job.mappings
            job.mappings = []
        job.steps = ()
        self.free.append(job)
        self.in_flight -= 1
        barrier = self._barrier
        if not self.in_flight:
            self.flush_responses()
            if barrier is job:
                self._barrier = None
                self.unusual = self.stopped
                self.wake()
            if self.stopped:
                self.drained.wake_all()
        elif barrier is not None and self.in_flight == 1 and barrier is not job:
            self.step(barrier)
        elif not self.told:
            self.told = True
            self.disk.afterwards(self.flush_responses)

    def _answer(self, ident: int, op: int, sector: int, sectors: int, status: int) -> None:
        ring = self.ring
        prod = ring.rsp_prod_pvt
        self._protocol.response.pack_into(ring.view, ring.offsets[prod & ring.mask], ident, op, status)
        ring.rsp_prod_pvt = (prod + 1) & MASK32
        if self._trace is not None:
            self._trace(op, sector, sectors, status)

    def flush_responses(self) -> None:
        """Unmap what finished requests had mapped, show their responses, and notify as ring.h says."""
        self.told = False
        if self._dead:
            dead, self._dead = self._dead, []
            self._mapper.unmap(dead)
        ring = self.ring
        new = ring.rsp_prod_pvt
        old = self._pushed
        if new == old:
            return
        self._pushed = new
        if ring.pages:
            ring.show(old, new)
        shared = ring.shared
        shared[RSP_PROD] = new
        event = shared[RSP_EVENT]
        notify = event == new or (new - event) & MASK32 < (new - old) & MASK32
        if self._trace_push is not None:
            self._trace_push(new, notify, ring.req_cons)
        if notify and self.port >= 0:
            send = self._notify
            send(self.port)

    # The end

    def _lie(self, prod: int) -> str:
        """Say what is wrong with a `req_prod`. One that goes back would have requests taken twice."""
        ring = self.ring
        if ring.request_overflow(prod):
            return f"req_prod {prod} is more than {ring.size} ahead of the responses at {ring.rsp_prod_pvt}"
        return f"req_prod {prod} is behind {ring.req_cons}, up to where requests have been taken"

    def _break(self, why: str) -> None:
        self.stop()
        if self.on_broken is not None:
            self.on_broken(why)

    def stop(self) -> None:
        """Take no more requests. What was taken is still performed and answered: wait for `drained` then."""
        self.stopped = self.unusual = True

    def release(self) -> None:
        """Let go of the ring's views, so that it can be unmapped. Nothing may be in flight; the server is unusable."""
        self.port = -1
        self._reading = self._taking = self.answering = None  # type: ignore[assignment]
        self.ring.release()
