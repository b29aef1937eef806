"""Who would rather grade himself than be graded earns nothing by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from labs.course import SOLUTIONS, find
from labs.kit.grading import Score, grade

SOLUTION = (SOLUTIONS / "hypercalls" / "hypercalls.py").read_text()
SKELETON = (Path(SOLUTIONS).parent / "hypercalls" / "skeleton" / "hypercalls.py").read_text()


def submit(directory: Path, text: str) -> Score:
    lab = find("hypercalls")
    assert lab is not None
    (directory / "hypercalls.py").write_text(text)
    return grade(lab, directory, 1, patience=5)


REFUSED = {
    "frames": "import sys\nsys._getframe(1)",
    "frames by inspect": "import inspect\ninspect.currentframe()",
    "frames by a traceback": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    error.__traceback__.tb_frame",
    "frames by a generator": "(x for x in ()).gi_frame",
    "frames by walking": "import traceback\nlist(traceback.walk_stack(None))",
    "frames of all threads": "import sys\nsys._current_frames()",
    "frames in other words": "exec('import sys; sys._getframe(1)')",
    "the collector": "import gc\ngc.get_objects()",
    "a tracer": "import sys\nsys.settrace(lambda *_: None)",
    "ctypes": "import ctypes\nctypes.pythonapi",
    "memory": "open('/proc/self/mem', 'rb')",
    "memory by the system": "import os\nos.open('/proc/self/mem', os.O_RDWR)",
    "the grader": "import importlib\nimportlib.import_module('labs.hypercalls.checks')",
    "code": "import random\nrandom.Random.choice.__code__ = (lambda self, seq: seq[0]).__code__",
}
"""What leads to the grader, and is refused."""


@pytest.mark.parametrize("way", REFUSED)
def test_the_ways_to_the_grader_are_closed(way: str, tmp_path: Path) -> None:
    score = submit(tmp_path, f"{SOLUTION}\n{REFUSED[way]}\n")
    assert score.points == 0
    assert all("PermissionError: " in mark.reason for mark in score.marks), [mark.reason for mark in score.marks]


CHANGED = {
    "builtins": ("import builtins\nbuiltins.id = lambda _: 1", "builtins.id"),
    "json": ("import json\njson.dumps = lambda _: '{}'", "json.dumps"),
    "chance": ("import random\nrandom.Random.randrange = lambda *_: 7", "random.Random.randrange"),
    "Xen": (
        "import sys\nsys.modules['hypervisor.hypervisor'].Hypervisor.log = print",
        "hypervisor.hypervisor.Hypervisor.log",
    ),
    "Xen's table": (
        "import sys\nsys.modules['hypervisor.version'].VersionOps = object",
        "hypervisor.version.VersionOps",
    ),
}
"""What can be changed, and is seen."""


@pytest.mark.parametrize("what", CHANGED)
def test_a_changed_grader_counts_for_nothing(what: str, tmp_path: Path) -> None:
    text, name = CHANGED[what]
    score = submit(tmp_path, f"{SOLUTION}\n{text}\n")
    assert score.points == 0
    assert any(mark.reason == f"the submission has changed {name}, which grades it" for mark in score.marks)


def test_the_check_that_calls_is_found_and_changed_in_vain(tmp_path: Path) -> None:
    """From the door of its vCPU a submission gets to the program that calls it, and so to what its check looks up."""
    reach = """
def xen_version(cpu):
    seen, todo = set(), [cpu]
    while todo and len(seen) < 200_000:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        names = getattr(thing, "__globals__", None)
        if isinstance(names, dict) and "expect_equal" in names:
            print("found it")
            names["expect_equal"] = names["expect"] = lambda *_: None
        todo += [getattr(thing, "__dict__", None), getattr(thing, "__func__", None), names]
        if isinstance(thing, dict):
            todo += thing.values()
        for kind in type(thing).__mro__:
            for name in kind.__dict__.get("__slots__", ()):
                todo.append(getattr(thing, name, None))
        closure = getattr(thing, "__closure__", None)
        for cell in closure if isinstance(closure, tuple) else ():
            todo.append(cell.cell_contents)
        if isinstance(thing, (list, tuple, set)):
            todo += thing
    return 0, 0
"""
    score = submit(tmp_path, SOLUTION + reach)
    (mark,) = (mark for mark in score.marks if mark.check.name == "xen_version")
    assert "found it" in mark.output
    assert not mark.earned
    assert mark.reason.startswith("the submission has changed labs.")


def test_nobody_but_the_check_says_that_it_is_met(tmp_path: Path) -> None:
    shout = """
import os
for fd in range(3, 64):
    try:
        os.write(fd, b'{"earned": true, "reason": "", "token": "0"}')
    except OSError:
        pass
os._exit(0)
"""
    score = submit(tmp_path, SKELETON + shout)
    assert score.points == 0
    assert {mark.reason for mark in score.marks} == {"somebody other than the check has said that it is met"}


def test_a_refusal_does_not_tell_the_token(tmp_path: Path) -> None:
    """Whoever listens to what the grader writes hears of misses only."""
    listen = """
import json
_dumps, _heard = json.dumps, []
def dumps(thing):
    open('heard', 'a').write(_dumps(thing))
    return _dumps({**thing, "earned": True})
json.dumps = dumps
"""
    score = submit(tmp_path, SKELETON + listen)
    assert score.points == 0


def test_an_own_grader_is_none(tmp_path: Path) -> None:
    """A submission may have files of its own, by any name; the grader's are not those."""
    (tmp_path / "json.py").write_text('def dumps(_):\n    return \'{"earned": true, "reason": ""}\'\n')
    (tmp_path / "random.py").write_text("raise SystemExit\n")
    assert submit(tmp_path, SKELETON).points == 0


def test_what_students_do_with_python_is_not_refused(tmp_path: Path) -> None:
    harmless = """
import collections, dataclasses, enum, inspect, logging, traceback, typing, warnings
Point = collections.namedtuple("Point", "x y")
class Colour(enum.Enum):
    RED = 1
class Pair(typing.NamedTuple):
    a: int
@dataclasses.dataclass
class Thing:
    a: int = 1
try:
    raise ValueError("mine")
except ValueError:
    traceback.print_exc()
    logging.exception("as well")
inspect.signature(check)
print(Point(1, 2), Colour.RED, Pair(1), Thing())
with open(__file__) as file:
    assert "Colour" in file.read()
"""
    score = submit(tmp_path, SOLUTION + harmless)
    assert score.is_full, [mark.reason for mark in score.marks]
    assert "ValueError: mine" in score.marks[0].output
