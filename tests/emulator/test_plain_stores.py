"""The stores that are decoded here: as the decoder decodes them."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from hypervisor.emulator.operands import Operands
from hypervisor.emulator.plain_stores import Decoded, plain_store

pytest.importorskip("capstone", reason="the emulator extra is not installed")
PREFIXES = (b"", b"\x3e", b"\xf0", b"\x66", b"\xf0\x66", b"\x64", b"\xf3")
REXES = (b"", b"\x40", b"\x48", b"\x41", b"\x4d", b"\x42", b"\x4f")
OPCODES = (b"\x89", b"\x87", b"\x80", b"\x81", b"\x83")
REST = bytes((0x91, 0x82, 0x73, 0xE4, 0x55, 0x46, 0xB7, 0x28))


@pytest.fixture
def decoder() -> Operands:
    processor: Any = SimpleNamespace(cpu=None)
    return Operands(processor, "is tested")


def known(decoder: Operands, code: bytes) -> Decoded | None:
    return decoder._decode(code)


@pytest.mark.parametrize("opcode", OPCODES)
def test_they_are_what_the_decoder_says(decoder: Operands, opcode: bytes) -> None:
    decoded = 0
    modrms = (mod << 6 | middle << 3 | low for mod, middle, low in itertools.product(range(4), (0, 2, 4, 7), range(8)))
    for modrm, prefix, rex in itertools.product(modrms, PREFIXES, REXES):
        sibs = (0x24, 0x25, 0xE5, 0x8C, 0x51) if modrm & 7 == 4 and modrm >> 6 != 3 else (0x91,)
        for sib in sibs:
            code = prefix + rex + opcode + bytes((modrm, sib)) + REST
            found = plain_store(code[:15])
            if found is not None:
                assert found == known(decoder, code[:15]), code.hex()
                decoded += 1
    assert decoded > 500


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("488710", "xchg"),
        ("48871a", "xchg"),
        ("487500", None),
        ("3e4180242400", "and"),
        ("488907", "mov"),
        ("f0488907", None),
        ("48c70700000000", None),
        ("4889c7", None),
        ("64488907", None),
        ("67488907", None),
        ("f3488907", None),
    ],
)
def test_which_are_known(code: str, name: str | None) -> None:
    found = plain_store(bytes.fromhex(code))
    assert (found.name if found else None) == name


@pytest.mark.parametrize("code", ["488788112233", "4887", "488704", "3e41802424", "4881202233"])
def test_what_is_cut_off_is_not_decoded(code: str) -> None:
    assert plain_store(bytes.fromhex(code)) is None
