"""The checks of lab 6. The submission grants in one domU, and uses grants in another."""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from typing import Any

from hypervisor.abi import grant_table as gt
from hypervisor.abi import xen
from hypervisor.abi.cpu import Cpu, PageFault
from labs.kit.bench import Bench, Dom, boot_info, free_page
from labs.kit.check import Checks, Work, expect, expect_equal

CHECKS = Checks()
check = CHECKS.check

VIRT_BASE = 0xFFFF_FFFF_8000_0000
IN_USE = gt.GTF_reading | gt.GTF_writing
Run = Generator[int, None, Any]


class Scene:
    """What a check's kernel has; its `grants` are the submission's, set up."""

    def __init__(self, lab: Any, bench: Bench, dom: Dom, said: dict[str, int], cpu: Cpu, start: int) -> None:
        self.hv, self.lab, self.cpu, self.said = bench.hv, lab, cpu, said
        self.domid = dom.domid
        self.info = boot_info(cpu, start)
        self._next = 2
        self.page = free_page(self.info, 1)
        self.grants = lab.Grants(cpu, free_page(self.info))

    def setup(self) -> None:
        """Set the table up."""
        self.grants.setup(self.alloc()[0])

    def alloc(self) -> tuple[int, int]:
        """Return the address and the frame of a page of one's own."""
        va = free_page(self.info, self._next)
        self._next += 1
        pfn = (va - VIRT_BASE) >> 12
        return va, self.cpu.view(self.info.mfn_list + (pfn >> 9 << 12)).cast("Q")[pfn & 511]

    def table_frame(self) -> int:
        """Return the first frame of this domain's grant table, as Xen says it."""
        layout = gt.gnttab_setup_table
        view = self.cpu.view(self.page)
        layout.pack_into(view, 0, dom=xen.DOMID_SELF, nr_frames=1, frame_list=self.page + 64)
        assert self.cpu.hypercall(xen.HYPERVISOR_grant_table_op, gt.GNTTABOP_setup_table, self.page, 1) == 0
        return int(view.cast("Q")[8])

    def entry(self, ref: int) -> tuple[int, int, int]:
        """Return flags, domain and frame of a grant, as they are in the table."""
        at = (self.table_frame() << 12) + 8 * ref
        return struct.unpack_from("<HHI", self.hv.memory.b, at)

    def hear(self, what: str) -> Run:
        """Wait until the other kernel has said something; return it."""
        while what not in self.said:
            yield 1000
        return self.said[what]

    def status_of(self, action: Callable[[], object]) -> int:
        """Return the status of the GrantError that an action raises; 0 if it raises none."""
        try:
            action()
        except self.lab.GrantError as error:
            return int(error.status)
        return 0


def kernels(lab: Any, *uses: Callable[[Scene], Any]) -> None:
    """Run each of `uses` as the kernel of a domain, numbered from 1."""
    bench = Bench()
    said: dict[str, int] = {}
    doms: list[Dom] = []

    def make(number: int) -> Callable[[Cpu, int], Generator[int, None, None]]:
        def program(cpu: Cpu, start: int) -> Generator[int, None, None]:
            made = uses[number](Scene(lab, bench, doms[number], said, cpu, start))
            if isinstance(made, Generator):
                yield from made

        return program

    doms.extend(Dom(make(number)) for number in range(len(uses)))
    bench.run_guests(*doms)


@check(15, "setup")
def setup(work: Work) -> None:
    """The table that Xen has made is mapped where it was asked for."""
    lab = work.load("grants")

    def use(scene: Scene) -> None:
        va, _ = scene.alloc()
        scene.grants.setup(va)
        mark, at = work.rng.randrange(1, 1 << 16), 8 * work.rng.randrange(100, 500) + 2
        struct.pack_into("<H", scene.cpu.view(va), at, mark)
        (found,) = struct.unpack_from("<H", scene.hv.memory.b, (scene.table_frame() << 12) + at)
        expect_equal(found, mark, "what Xen finds in the table after a store at the address that was asked for")
        table = scene.grants.table
        expect(len(table) == 4096 and not table.readonly, "Grants.table is not the 4096 bytes of the table's frame")

    kernels(lab, use)


@check(15, "grant")
def grant(work: Work) -> None:
    """Entries are what Xen reads: domain, frame, flags; each grant has a reference of its own."""
    lab = work.load("grants")

    def use(scene: Scene) -> None:
        scene.setup()
        refs = []
        for number in range(work.rng.randrange(20, 60)):
            domid, readonly = work.rng.randrange(1, 500), bool(number % 3)
            _, mfn = scene.alloc()
            ref = scene.grants.grant(domid, mfn, readonly)
            expect(ref >= 8, f"grant() returns reference {ref}; those below 8 are the toolstack's")
            flags = gt.GTF_permit_access | (gt.GTF_readonly if readonly else 0)
            expect_equal(scene.entry(ref), (flags, domid, mfn), f"flags, domain and frame of reference {ref}")
            refs.append(ref)
        expect_equal(len(set(refs)), len(refs), "the number of different references")

    kernels(lab, use)


@check(20, "map")
def mapping(work: Work) -> None:
    """A page of another domain is read and written where it was mapped, and let go."""
    lab = work.load("grants")
    text, answer = work.rng.randbytes(100), work.rng.randbytes(100)

    def granter(scene: Scene) -> Run:
        scene.setup()
        va, mfn = scene.alloc()
        scene.cpu.view(va)[500:600] = text
        ref = scene.grants.grant(2, mfn)
        scene.said["ref"] = ref
        yield from scene.hear("mapped")
        flags = scene.entry(ref)[0]
        expect(flags & IN_USE == IN_USE, "nobody uses the grant, by Xen's flags, while it should be mapped writable")
        expect_equal(bytes(scene.cpu.view(va)[700:800]), answer, "what the granter finds in its page")
        scene.said["seen"] = 1
        yield from scene.hear("unmapped")
        expect(not scene.entry(ref)[0] & IN_USE, "somebody uses the grant, by Xen's flags, after unmap()")

    def grantee(scene: Scene) -> Run:
        ref = yield from scene.hear("ref")
        other, _ = scene.alloc()
        kept = scene.grants.map(1, ref, other, readonly=True)
        va, _ = scene.alloc()
        handle = scene.grants.map(1, ref, va)
        expect(handle != kept, f"two mappings have the same handle, {handle}")
        view = scene.cpu.view(va)
        expect_equal(bytes(view[500:600]), text, "what the grantee reads at the address of the mapping")
        view[700:800] = answer
        scene.said["mapped"] = 1
        yield from scene.hear("seen")
        scene.grants.unmap(va, handle)
        try:
            scene.cpu.view(va)
        except PageFault:
            scene.grants.unmap(other, kept)
            scene.said["unmapped"] = 1
            return
        expect(False, "the page is still mapped after unmap()")

    kernels(lab, granter, grantee)


@check(10, "readonly")
def readonly(work: Work) -> None:
    """What was granted for reading is mapped for reading, and not otherwise."""
    lab = work.load("grants")

    def granter(scene: Scene) -> Run:
        scene.setup()
        ref = scene.grants.grant(2, scene.alloc()[1], readonly=True)
        scene.said["ref"] = ref
        yield from scene.hear("mapped")
        found = scene.entry(ref)[0] & IN_USE
        expect_equal(found, gt.GTF_reading, "GTF_reading and GTF_writing of a grant that is mapped read-only")
        scene.said["seen"] = 1
        yield from scene.hear("done")

    def grantee(scene: Scene) -> Run:
        ref = yield from scene.hear("ref")
        va, _ = scene.alloc()
        status = scene.status_of(lambda: scene.grants.map(1, ref, va))
        expect(status < 0, "mapping a read-only grant writable raises no GrantError")
        handle = scene.grants.map(1, ref, va, readonly=True)
        try:
            scene.cpu.view(va)
        except PageFault:
            pass
        else:
            expect(False, "a store goes through to a page that was mapped read-only")
        scene.said["mapped"] = 1
        yield from scene.hear("seen")
        scene.grants.unmap(va, handle)
        scene.said["done"] = 1

    kernels(lab, granter, grantee)


@check(15, "end")
def end(work: Work) -> None:
    """A grant in use cannot be taken back, and stays as it is; one that is not in use can, and is gone."""
    lab = work.load("grants")

    def granter(scene: Scene) -> Run:
        scene.setup()
        refs = [scene.grants.grant(2, scene.alloc()[1]) for _ in range(3)]
        scene.said["ref"] = refs[1]
        yield from scene.hear("mapped")
        before = scene.entry(refs[1])
        expect(scene.grants.end(refs[1]) is False, "end() of a grant that is mapped does not return False")
        expect_equal(scene.entry(refs[1]), before, "the entry of a grant that is mapped, after end(),")
        expect(scene.grants.end(refs[0]) is True, "end() of a grant that nobody uses does not return True")
        expect(not scene.entry(refs[0])[0] & 3, "the entry of a grant that was taken back still permits access")
        scene.said["tried"] = 1
        yield from scene.hear("unmapped")
        expect(scene.grants.end(refs[1]) is True, "end() does not return True once the grantee has unmapped the page")
        scene.said["ended"] = 1
        yield from scene.hear("done")
        _, mfn = scene.alloc()
        for _ in range(600):
            expect(scene.grants.end(scene.grants.grant(2, mfn)), "end() of a grant that nobody uses is not True")

    def grantee(scene: Scene) -> Run:
        ref = yield from scene.hear("ref")
        va, _ = scene.alloc()
        handle = scene.grants.map(1, ref, va)
        scene.said["mapped"] = 1
        yield from scene.hear("tried")
        scene.grants.unmap(va, handle)
        scene.said["unmapped"] = 1
        yield from scene.hear("ended")
        status = scene.status_of(lambda: scene.grants.map(1, ref, va))
        expect(status < 0, "a grant that was taken back can still be mapped")
        scene.said["done"] = 1

    kernels(lab, granter, grantee)


@check(15, "copy_from")
def copy_from(work: Work) -> None:
    """Xen copies bytes between pages, at the offsets that were asked for."""
    lab = work.load("grants")
    content = work.rng.randbytes(4096)

    def granter(scene: Scene) -> Run:
        scene.setup()
        va, mfn = scene.alloc()
        scene.cpu.view(va)[:] = content
        scene.said["ref"] = scene.grants.grant(2, mfn, readonly=True)
        yield from scene.hear("done")

    def grantee(scene: Scene) -> Run:
        ref = yield from scene.hear("ref")
        va, mfn = scene.alloc()
        view = scene.cpu.view(va)
        for _ in range(10):
            offset, at = work.rng.randrange(3000), work.rng.randrange(3000)
            length = work.rng.randrange(1, 1000)
            view[:] = b"\x55" * 4096
            scene.grants.copy_from(1, ref, offset, mfn, at, length)
            expect_equal(bytes(view[at : at + length]), content[offset : offset + length], "what has been copied")
            rest = bytes(view[:at]) + bytes(view[at + length :])
            expect(rest == b"\x55" * len(rest), "more was copied than was asked for")
        status = scene.status_of(lambda: scene.grants.copy_from(1, ref, 4000, mfn, 0, 200))
        expect(status < 0, "copying across the end of a page raises no GrantError")
        scene.said["done"] = 1

    kernels(lab, granter, grantee)


@check(10, "errors")
def errors(work: Work) -> None:
    """What Xen refuses is raised, with the status that says why."""
    lab = work.load("grants")

    def granter(scene: Scene) -> Run:
        scene.setup()
        scene.said["ref"] = scene.grants.grant(7, scene.alloc()[1])
        yield from scene.hear("done")

    def grantee(scene: Scene) -> Run:
        ref = yield from scene.hear("ref")
        va, mfn = scene.alloc()
        grants = scene.grants
        nothing = work.rng.randrange(100, 500)
        for what, action, wanted in (
            ("mapping a grant for another domain", lambda: grants.map(1, ref, va), gt.GNTST_general_error),
            ("mapping a reference that is not granted", lambda: grants.map(1, nothing, va), gt.GNTST_general_error),
            ("mapping a reference beyond the table", lambda: grants.map(1, 1 << 20, va), gt.GNTST_bad_gntref),
            ("mapping from a domain that is not there", lambda: grants.map(99, ref, va), gt.GNTST_bad_domain),
            ("unmapping with a made-up handle", lambda: grants.unmap(va, 12345), gt.GNTST_bad_handle),
            ("copying from a reference that is not granted", lambda: grants.copy_from(1, nothing, 0, mfn, 0, 8),
             gt.GNTST_general_error),
        ):  # fmt: skip
            expect_equal(scene.status_of(action), wanted, f"the status of the GrantError for {what}")
        scene.said["done"] = 1

    kernels(lab, granter, grantee)
