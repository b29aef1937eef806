"""Xen's command line and Xen's log."""

from __future__ import annotations

import pytest

from hypervisor.log import DEBUG, ERROR, INFO, RING_SIZE, WARNING, XenLog
from hypervisor.options import (
    LOG_DEBUG,
    LOG_ERROR,
    LOG_INFO,
    LOG_NONE,
    LOG_WARNING,
    XenOptions,
    parse_options,
    parse_size,
)
from toolstack.boot_host import DEFAULT_XEN_CMDLINE

SECOND = 1_000_000_000
PAGES_PER_MIB = 256


def test_the_default_line_is_understood() -> None:
    options = parse_options(DEFAULT_XEN_CMDLINE)
    assert options.complaints == []
    assert options.text == DEFAULT_XEN_CMDLINE
    assert options.dom0_pages(100_000) == 64 * PAGES_PER_MIB
    assert options.dom0_vcpus(1) == 2
    assert options.loglvl == options.guest_loglvl == (LOG_DEBUG, LOG_DEBUG)


def test_what_holds_without_a_command_line() -> None:
    options = parse_options("")
    assert options.loglvl == (LOG_WARNING, LOG_WARNING)
    assert options.guest_loglvl == (LOG_NONE, LOG_WARNING)
    assert options.dom0_vcpus(4) == 4
    # All but a sixteenth, and at most 128 MiB of that.
    assert options.dom0_pages(16000) == 15000
    assert options.dom0_pages(16 << 18) == (16 << 18) - 128 * PAGES_PER_MIB


@pytest.mark.parametrize(
    ("text", "available", "pages"),
    [
        ("dom0_mem=65536", 1 << 20, 64 * PAGES_PER_MIB),
        ("dom0_mem=0x10000", 1 << 20, 64 * PAGES_PER_MIB),
        ("dom0_mem=1G", 1 << 17, 1 << 17),
        ("dom0_mem=-64M", 1 << 17, (1 << 17) - 64 * PAGES_PER_MIB),
        ("dom0_mem=25%", 1000, 250),
        ("dom0_mem=4K+50%", 1000, 501),
        ("dom0_mem=1M,max:512K", 1000, 128),
        ("dom0_mem=max:512K", 1000, 128),
        ("dom0_mem=1M,min:2M", 10000, 512),
        ("dom0_mem=1M dom0_mem=2M", 10000, 512),
    ],
)
def test_dom0_mem(text: str, available: int, pages: int) -> None:
    options = parse_options(text)
    assert options.complaints == []
    assert options.dom0_pages(available) == pages


@pytest.mark.parametrize(
    ("text", "pcpus", "vcpus"), [("3", 1, 3), ("2-", 1, 2), ("2-", 5, 5), ("-3", 8, 3), ("2-4", 1, 2), ("2-4", 9, 4)]
)
def test_dom0_max_vcpus(text: str, pcpus: int, vcpus: int) -> None:
    assert parse_options(f"dom0_max_vcpus={text}").dom0_vcpus(pcpus) == vcpus


@pytest.mark.parametrize(
    "word", ["noreboot", "noreboot=yes", "noreboot=1", "console=com1", "no-smt", "ivrs_hpet[0]=00:14.0", "ucode=scan"]
)
def test_words_that_are_known(word: str) -> None:
    assert parse_options(word).complaints == []


def test_clocksource() -> None:
    assert parse_options("clocksource=tsc").clocksource == "tsc"
    assert parse_options("").clocksource == ""


def test_noreboot() -> None:
    assert parse_options("noreboot").noreboot
    assert not parse_options("noreboot no-noreboot").noreboot
    assert not parse_options("noreboot=off").noreboot


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("colour=blue", 'parameter "colour" unknown!'),
        ("no-fun", 'parameter "no-fun" unknown!'),
        ("dom0_mem=lots", 'parameter "dom0_mem" has invalid value "lots", rc=-22!'),
        ("dom0_mem=", 'parameter "dom0_mem" has invalid value "", rc=-22!'),
        ("dom0_mem=1M+200%", 'parameter "dom0_mem" has invalid value "1M+200%", rc=-22!'),
        ("dom0_max_vcpus=two", 'parameter "dom0_max_vcpus" has invalid value "two", rc=-22!'),
        ("dom0_max_vcpus=4-2", 'parameter "dom0_max_vcpus" has invalid value "4-2", rc=-22!'),
        ("noreboot=perhaps", 'parameter "noreboot" has invalid value "perhaps", rc=-22!'),
        ("loglvl=loud", 'parameter "loglvl" has invalid value "loud", rc=-22!'),
    ],
)
def test_words_that_are_wrong(word: str, complaint: str) -> None:
    options = parse_options(f"{word} loglvl=info/all")
    assert options.complaints == [complaint]
    assert options.loglvl == (LOG_INFO, LOG_DEBUG)


def test_sizes() -> None:
    assert [parse_size(text) for text in ("3b", "3", "3k", "3M", "3g", "1T")] == [
        3,
        3 << 10,
        3 << 10,
        3 << 20,
        3 << 30,
        1 << 40,
    ]


class Line:
    """A serial line, and a clock beside it."""

    def __init__(self, text: str) -> None:
        self.now = 0
        self.lines: list[str] = []
        self.log = XenLog(lambda data: self.lines.append(data.decode()), lambda: self.now, parse_options(text))


def test_levels_are_filtered() -> None:
    line = Line("loglvl=warning")
    for level, word in ((ERROR, "error"), (WARNING, "warning"), (INFO, "info"), (DEBUG, "debug")):
        line.log.printk(word, level)
    assert line.lines == ["(XEN) error\n", "(XEN) warning\n"]


def test_guests_have_levels_of_their_own() -> None:
    line = Line("loglvl=none guest_loglvl=all")
    line.log.printk("Xen's", ERROR)
    line.log.printk("a guest's", DEBUG, guest=True)
    line.log.printk("said by d3", DEBUG, guest=True, prefix="(d3) ")
    assert line.lines == ["(XEN) a guest's\n", "(d3) said by d3\n"]


def test_what_guests_provoke_is_shown_seldom() -> None:
    line = Line("")
    for number in range(14):
        line.log.printk(f"{number}", WARNING, guest=True)
    assert line.lines == [f"(XEN) {number}\n" for number in range(10)]
    line.now = 5 * SECOND
    line.log.printk("later", WARNING, guest=True)
    assert line.lines[10:] == ["(XEN) printk: 4 messages suppressed.\n", "(XEN) later\n"]
    line.log.printk("never", INFO, guest=True)
    assert len(line.lines) == 12


def test_each_line_has_the_prefix() -> None:
    line = Line("")
    line.log.printk("one\ntwo")
    assert line.lines == ["(XEN) one\n", "(XEN) two\n"]


def test_the_ring_keeps_the_end() -> None:
    line = Line("")
    for number in range(3000):
        line.log.printk(f"line {number}")
    assert len(line.log.ring) == RING_SIZE
    assert line.log.ring.endswith(b"(XEN) line 2999\n")
    assert line.log.total == sum(map(len, line.lines))


def test_levels_in_options() -> None:
    assert XenOptions().loglvl == (LOG_WARNING, LOG_WARNING)
    assert parse_options("loglvl=error/warning").loglvl == (LOG_ERROR, LOG_WARNING)
    assert parse_options("guest_loglvl=all/none").guest_loglvl == (LOG_DEBUG, LOG_DEBUG)
