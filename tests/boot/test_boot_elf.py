"""Kernel images: what is loaded of them, what their notes say, and one sentence for each that is broken."""

from __future__ import annotations

import pytest
from elf_maker import (
    BASE,
    ENTRY,
    NOTES,
    TEXT,
    Part,
    elf,
    kernel,
    kernel_with_note_section,
    legacy_kernel,
    note,
    number_note,
    text_note,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.abi import elfnote, features
from hypervisor.kernel_image import ImageError, load_kernel
from hypervisor.kernel_image.elf import PT_LOAD, PT_NOTE
from hypervisor.kernel_image.notes import xen_notes


def test_what_is_loaded() -> None:
    loaded = load_kernel(kernel())
    assert loaded.virt_base == BASE
    assert loaded.virt_entry == ENTRY
    (segment,) = loaded.segments
    assert (segment.address, segment.contents, segment.size) == (BASE + 0x100000, TEXT, len(TEXT) + 0x3000)
    assert (loaded.start, loaded.end) == (segment.address, segment.end)
    assert loaded.hypercall_page is loaded.p2m_base is None
    assert (loaded.unmapped_module, loaded.pae, loaded.can_be_dom0) == (False, False, True)


def test_all_notes_count() -> None:
    loaded = load_kernel(
        kernel(
            number_note(elfnote.XEN_ELFNOTE_HYPERCALL_PAGE, BASE + 0x101000),
            number_note(elfnote.XEN_ELFNOTE_INIT_P2M, 0x8000000000),
            number_note(elfnote.XEN_ELFNOTE_MOD_START_PFN, 1, size=4),
            number_note(elfnote.XEN_ELFNOTE_HV_START_LOW, 0xFFFF800000000000),
            text_note(elfnote.XEN_ELFNOTE_PAE_MODE, "yes"),
            text_note(elfnote.XEN_ELFNOTE_GUEST_VERSION, "2.6"),
            text_note(elfnote.XEN_ELFNOTE_FEATURES, "!writable_page_tables|dom0|somethingnew"),
            number_note(elfnote.XEN_ELFNOTE_SUPPORTED_FEATURES, 1 << features.XENFEAT_pae_pgdir_above_4gb, size=4),
            note(elfnote.XEN_ELFNOTE_L1_MFN_VALID, bytes(16)),
            note(0x4242, b"unknown"),
        )
    )
    assert loaded.hypercall_page == BASE + 0x101000
    assert loaded.p2m_base == 0x8000000000
    assert loaded.unmapped_module
    assert loaded.pae
    assert loaded.features_required == 1 << features.XENFEAT_writable_page_tables
    assert loaded.can_be_dom0
    assert loaded.info.supported == 1 << 0 | 1 << 11 | 1 << 4
    assert loaded.info.guest_version == "2.6"
    assert loaded.info.hv_start_low == 0xFFFF800000000000


def test_a_kernel_that_names_its_features_without_dom0() -> None:
    loaded = load_kernel(kernel(number_note(elfnote.XEN_ELFNOTE_SUPPORTED_FEATURES, 1 << 4, size=4)))
    assert not loaded.can_be_dom0


def test_paddr_offset_moves_the_addresses() -> None:
    loaded = load_kernel(
        elf(
            [
                Part(PT_LOAD, TEXT, paddr=0x700000),
                Part(PT_NOTE, b"".join([*NOTES, number_note(elfnote.XEN_ELFNOTE_PADDR_OFFSET, 0x600000)])),
            ]
        )
    )
    assert loaded.start == BASE + 0x100000


def test_the_entry_of_the_header_counts_if_no_note_has_one() -> None:
    without = [one for one in NOTES if one is not NOTES[-1]]
    assert load_kernel(kernel(notes=without)).virt_entry == ENTRY


def test_notes_in_a_section() -> None:
    assert load_kernel(kernel_with_note_section()).virt_base == BASE


def test_segments_come_before_sections() -> None:
    data = elf(
        [Part(PT_LOAD, TEXT, paddr=0x100000), Part(PT_NOTE, b"".join(NOTES))],
        [(".note", 7, b"".join([*NOTES, number_note(elfnote.XEN_ELFNOTE_HYPERCALL_PAGE, BASE)]))],
    )
    assert load_kernel(data).hypercall_page is None


def test_the_old_section() -> None:
    text = (
        "GUEST_OS=linux,GUEST_VER=2.6,XEN_VER=xen-3.0,VIRT_BASE=0xffffffff80000000,"
        "VIRT_ENTRY=0xffffffff80100040,HYPERCALL_PAGE=0x102,FEATURES=writable_page_tables|!dom0,PAE=yes,LOADER=generic"
    )
    loaded = load_kernel(legacy_kernel(text))
    assert loaded.virt_base == BASE
    assert loaded.start == BASE + 0x100000
    assert loaded.virt_entry == ENTRY
    assert loaded.hypercall_page == BASE + 0x102000
    assert loaded.pae
    assert loaded.info.required == 1 << features.XENFEAT_dom0


def test_notes_of_others_are_passed_over() -> None:
    block = note(1, b"gnu!", name=b"GNU\0") + note(6, b"a\0") + note(5, b"x\0", name=b"XenX\0")
    assert list(xen_notes(block)) == [(6, b"a\0")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"#!/bin/sh\n", "is neither an ELF kernel nor a bzImage"),
        (b"\x7fELF\x02\x01", "is cut short: 6 bytes"),
        (kernel()[:70], "is cut short: its program headers end"),
        (kernel()[:900], "is cut short: segment 0 ends at byte"),
        (elf([Part(PT_NOTE, b"")]), "has no segment to load"),
        (elf([Part(PT_LOAD, TEXT)], machine=183), r"is for another processor \(ELF machine 183\)"),
        (elf([Part(PT_LOAD, TEXT)], ident=b"\x7fELF\x01\x01\x01"), "is a 32-bit ELF file"),
        (elf([Part(PT_LOAD, TEXT)], ident=b"\x7fELF\x02\x02\x01"), "is not little-endian"),
        (elf([Part(PT_LOAD, TEXT)], kind=1), "is not a program but an ELF file of type 1"),
        (elf([Part(PT_LOAD, TEXT, memory_size=5)]), "has a segment 0 that does not fit"),
        (elf([Part(PT_LOAD, TEXT, paddr=(1 << 64) - 4096)]), "has a segment 0 that does not fit"),
        (elf([Part(PT_LOAD, TEXT)]), "is no Xen kernel"),
        (kernel(notes=NOTES[:1]), "is for the loader '' "),
        (kernel(notes=NOTES[:2]), "is for Xen ''"),
        (kernel(text_note(elfnote.XEN_ELFNOTE_FEATURES, "!flux_capacitor")), "requires the feature 'flux_capacitor'"),
        (kernel(number_note(elfnote.XEN_ELFNOTE_ENTRY, 0x1234)), "has its entry at 0x1234, outside of the kernel"),
        (kernel(number_note(elfnote.XEN_ELFNOTE_VIRT_BASE, 1 << 63)), "has its (kernel|entry) at"),
        (kernel(number_note(elfnote.XEN_ELFNOTE_INIT_P2M, BASE + 0x101000)), "wants its p2m list at"),
        (
            kernel(notes=[*NOTES[:3], number_note(elfnote.XEN_ELFNOTE_PADDR_OFFSET, 0)]),
            "says PADDR_OFFSET in its notes, but not VIRT_BASE",
        ),
        (legacy_kernel("LOADER=generic,XEN_VER=xen-3.0,VIRT_BASE=high"), "says VIRT_BASE=high in __xen_guest"),
        (elf([Part(PT_LOAD, TEXT), Part(PT_NOTE, note(1, b"", name=b"") * 70000)]), "has too many ELF notes"),
        (
            elf([*[Part(PT_LOAD, TEXT, paddr=0x100000)] * 3, Part(PT_NOTE, b"".join(NOTES))]),
            "has program segments that, taken together, are more than twice",
        ),
    ],
)
def test_broken_images(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        load_kernel(data)
    assert "\n" not in str(caught.value)


@settings(max_examples=300)
@given(st.data())
def test_damaged_images_never_do_worse_than_a_sentence(data: st.DataObject) -> None:
    image = bytearray(kernel())
    for _ in range(data.draw(st.integers(1, 8))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    image = image[: data.draw(st.integers(0, len(image)))]
    try:
        loaded = load_kernel(bytes(image))
    except ImageError:
        return
    assert loaded.virt_base <= loaded.start <= loaded.virt_entry <= loaded.end <= 1 << 64
