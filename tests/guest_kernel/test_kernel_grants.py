"""The granting side: references, their entries, growth. (Mapping needs a second domain and the real hypervisor.)"""

import pytest
from fake_cpu import MAX_GRANT_FRAMES, run

from guest_kernel.errors import GrantError
from guest_kernel.grants import COPY_BATCH, MAP_BATCH, PER_FRAME, RESERVED, UNMAP_BATCH
from guest_kernel.kernel import Kernel
from hypervisor.abi import grant_table as abi
from hypervisor.abi.sched import SHUTDOWN_poweroff


def entry(kernel: Kernel, ref: int) -> tuple[int, int, int]:
    word, frame = kernel.grants.entries_i[ref // 512][ref % 512 * 2 : ref % 512 * 2 + 2]
    return word & 0xFFFF, word >> 16, frame


def test_entries_are_as_the_header_says() -> None:
    async def main(kernel: Kernel) -> None:
        page = kernel.mm.alloc_page()
        ref = kernel.grants.grant_access(5, page)
        assert ref == RESERVED
        assert entry(kernel, ref) == (abi.GTF_permit_access, 5, page.mfn)
        machine_view = kernel.grants.entries_i[0].cast("B")
        assert abi.grant_entry_v1.unpack_from(machine_view, 8 * ref).frame == page.mfn
        other = kernel.grants.grant_access(7, page.mfn, readonly=True)
        assert entry(kernel, other) == (abi.GTF_permit_access | abi.GTF_readonly, 7, page.mfn)
        assert kernel.grants.granted == 2

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_a_grant_in_use_is_not_taken_back() -> None:
    async def main(kernel: Kernel) -> None:
        grants = kernel.grants
        page = kernel.mm.alloc_page()
        ref, free = grants.grant_access(1, page), grants.grant_access(1, page)
        grants.entries_i[0][2 * ref] |= abi.GTF_reading  # as Xen does while somebody maps it
        assert grants.is_in_use(ref)
        assert not grants.end_access(ref)
        assert not grants.revoke(ref)
        assert grants.end_access_many([ref, free]) == [ref]
        assert entry(kernel, free)[0] == abi.GTF_invalid
        grants.entries_i[0][2 * ref] &= ~abi.GTF_reading
        assert grants.end_access(ref)
        assert grants.granted == 0
        assert entry(kernel, ref)[0] == 0

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_the_table_grows_to_its_limit_and_no_reference_is_given_twice() -> None:
    async def main(kernel: Kernel) -> None:
        grants = kernel.grants
        page = kernel.mm.alloc_page()
        refs = [grants.grant_access(3, page) for _ in range(MAX_GRANT_FRAMES * PER_FRAME - RESERVED)]
        with pytest.raises(GrantError) as caught:
            grants.grant_access(3, page)
        assert caught.value.status == abi.GNTST_no_space
        assert sorted(refs) == list(range(RESERVED, MAX_GRANT_FRAMES * PER_FRAME))
        assert grants.end_access_many(refs) == []
        assert grants.granted == 0
        assert grants.grant_access(3, page) in refs

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_batches_fill_a_page() -> None:
    assert MAP_BATCH * abi.gnttab_map_grant_ref.size <= 4096
    assert UNMAP_BATCH * abi.gnttab_unmap_grant_ref.size <= 4096
    assert COPY_BATCH * abi.gnttab_copy.size <= 4096
