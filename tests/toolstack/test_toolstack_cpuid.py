"""`cpuid` in configurations: what is understood, and what a person is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypervisor.cpu_policy.features import numbers
from toolstack.cpuid_spec import CpuidSpec, parse_cpuid
from toolstack.errors import ConfigError, SpecError
from toolstack.xl_config import parse_config


def test_names_of_libxl_and_of_xen() -> None:
    spec = parse_cpuid("host, aes=0,sse4.2=0 ,sse4_1=0,SSE4-2=0, x2apic=1,popcnt=x,pae=k,nx=s")
    assert set(spec.off) == set(numbers("AESNI SSE4_2 SSE4_1"))
    assert spec.on == numbers("X2APIC")
    assert parse_cpuid("host") == CpuidSpec()
    assert parse_cpuid("host,aes=0,aes=1").on == numbers("AESNI")


def test_numbers_of_leaves() -> None:
    spec = parse_cpuid("host,maxleaf=0x7,maxhvleaf=4")
    assert (spec.max_leaf, spec.max_xen_leaf) == (7, 4)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("aes=0", "begins with 'host'"),
        ("", "begins with 'host'"),
        ("host,aes", "not of the form"),
        ("host,aesx=0", "no feature 'aesx'; did you mean 'aes'?"),
        ("host,aes=2", "0, 1, or one of"),
        ("host,avx=1", "'avx' in cpuid cannot be 1"),
        ("host,vmx=1", "'vmx' in cpuid cannot be 1"),
        ("host,family=6", "not supported here"),
        ("host,rdcl-no=0", "no feature 'rdcl-no'"),
        ("host,maxleaf=14", "at most 0xd"),
        ("host,maxleaf=many", "is a number"),
        ("host,maxhvleaf=0x100000000", "is a number"),
    ],
)
def test_mistakes(text: str, told: str) -> None:
    with pytest.raises(SpecError, match=told.replace("?", r"\?")):
        parse_cpuid(text)


def test_a_mistake_names_its_line() -> None:
    text = 'name = "a"\nkernel = "a.py"\ncpuid = {}\n'
    with pytest.raises(ConfigError, match=r"a\.cfg:3: cpuid begins with 'host'"):
        parse_config(text.format('"oops"'), "a.cfg", Path("/"))
    with pytest.raises(ConfigError, match=r"a\.cfg:3: lists of leaves are not supported"):
        parse_config(text.format('["1:ecx=xx"]'), "a.cfg", Path("/"))
