"""The tables of the documentation are those that docs/generate.py makes of hypervisor.abi."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hypervisor.abi import domctl, event_channel, xen
from hypervisor.abi.layout import Layout, Union

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "docs" / "generate.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load()
PAGES = generate.pages()
OPERATIONS = [
    *("event_channel", "grant_table", "memory", "sched", "vcpu", "version", "callback", "physdev", "platform"),
    *(
        "domctl",
        "sysctl",
        "nmi",
        "argo",
        "hypfs",
        "pmu",
        "flask_op",
        "kexec",
        "xen_mca",
        "xen.MMU_NAMES",
        "xen.MMUEXT_NAMES",
    ),
]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_in_step(page: Path) -> None:
    assert generate.generated(page.read_text()) == page.read_text(), "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_cell_is_filled(page: Path) -> None:
    for block in filter(lambda block: block["what"], generate.BLOCK.finditer(page.read_text())):
        rows = [cells(line) for line in block["body"].splitlines() if line.startswith("|")]
        assert rows
        for row in rows:
            assert all(cell not in ("", generate.EMPTY) for cell in row), f"{page.name}: {row}"


def test_every_operation_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for reference in OPERATIONS:
        assert re.search(rf"<!-- generated: operations {re.escape(reference)}[ \w]* -->", text), reference
    for name in xen.HYPERCALL_NAMES.values():
        assert f"`{name}`" in text


def test_exceptions_are_true() -> None:
    operations = {name for reference in OPERATIONS for name in generate.table_of_names(reference)[1].values()}
    structures = {name for reference in OPERATIONS for name in generate.layouts(reference.partition(".")[0])}
    for operation, structure in generate.ARGUMENTS.items():
        assert operation in operations
        assert structure in structures


def test_what_a_person_wrote_stays_with_its_operation() -> None:
    page = "<!-- generated: operations event_channel -->\n{}<!-- end -->"
    first = generate.generated(page.format(""))
    assert "| 4 | `evtchn_send` (4 bytes) | `EVTCHNOP_send` | … |" in first
    # The number and the argument are wrong, as after a change of the code; the title and the text are a person's.
    edited = first.replace("| operation | … |", "| operation | what it does |")
    edited = edited.replace(
        "| 4 | `evtchn_send` (4 bytes) | `EVTCHNOP_send` | … |", "| 7 | - | `EVTCHNOP_send` | sends \\| or not |"
    )
    edited = edited.replace("| 3 | `evtchn_close` (4 bytes) | `EVTCHNOP_close` | … |\n", "")
    second = generate.generated(edited)
    assert "| nr | argument | operation | what it does |" in second
    assert "| 4 | `evtchn_send` (4 bytes) | `EVTCHNOP_send` | sends \\| or not |" in second
    assert "| 3 | `evtchn_close` (4 bytes) | `EVTCHNOP_close` | … |" in second
    assert generate.generated(second) == second


def test_an_example_in_a_fence_is_left_alone() -> None:
    page = "```\n<!-- generated: poem -->\n<!-- end -->\n```\n"
    assert generate.generated(page) == page


def test_offsets_are_those_of_the_layouts() -> None:
    text = generate.generated("<!-- generated: structures event_channel evtchn_status -->\n<!-- end -->")
    status = event_channel.evtchn_status
    for path in ("dom", "port", "status", "vcpu", "u.unbound.dom", "u.interdomain.port", "u.pirq", "u.virq"):
        field = status.member(path)
        assert re.search(rf"^\| {field.offset} \| {field.size} \| .* \| `{re.escape(path)}` \|$", text, re.MULTILINE)
    assert f"**`struct evtchn_status`**, {status.size} bytes" in text


def test_a_structure_with_a_name_of_its_own_is_not_taken_apart() -> None:
    text = generate.generated("<!-- generated: structures xen shared_info -->\n<!-- end -->")
    assert "`struct vcpu_info[32]` | `vcpu_info`" in text
    assert "`struct arch_shared_info` | `arch`" in text


def test_structures_of_operations() -> None:
    names = generate.in_operations("domctl")
    assert "xen_domctl_createdomain" in names
    assert "xen_arch_domainconfig" in names, "it is within another one"
    assert "xen_domctl" not in names
    assert names == [name for name in vars(domctl) if name in names]
    assert all(isinstance(getattr(domctl, name), Layout | Union) for name in names)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("poem", "nothing is called poem"),
        ("operations nowhere", "there is no module"),
        ("operations sched.SLEEP_NAMES", "has no table SLEEP_NAMES"),
        ("structures sched sched_nothing", "has no structure sched_nothing"),
        ("structures nowhere", "there is no module hypervisor.abi.nowhere"),
    ],
)
def test_what_there_is_not(asked: str, sentence: str) -> None:
    with pytest.raises(generate.PageError, match=sentence):
        generate.generated(f"<!-- generated: {asked} -->\n<!-- end -->")


def test_as_a_program() -> None:
    done = subprocess.run([sys.executable, PROGRAM, "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = subprocess.run([sys.executable, PROGRAM, "now"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "usage: python docs/generate.py [--check]\n"
