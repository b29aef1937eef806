"""The grader survives its submissions, and says what is wrong with them."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

import pytest
from click.testing import CliRunner, Result

from labs.course import LABS, SOLUTIONS, find
from labs.kit.grading import Score, grade
from labs.kit.seed import seed_of
from toolstack.cli import main

FIRST = LABS[0]
SOLUTION = (SOLUTIONS / FIRST.name / "hypercalls.py").read_text()


class Submit(Protocol):
    def __call__(self, text: str, patience: float = 5) -> Score: ...


@pytest.fixture
def submit(tmp_path: Path) -> Submit:
    """Grade a text as lab 1; how long a check may take is 20 s times the patience."""

    def run(text: str, patience: float = 5) -> Score:
        (tmp_path / "hypercalls.py").write_text(text)
        return grade(FIRST, tmp_path, 1, patience=patience)

    return run


def paravirt(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["lab", *arguments], catch_exceptions=False)


def reasons(score: Score) -> set[str]:
    return {mark.reason for mark in score.marks}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import os\nos._exit(0)\n", "the process ended (exit status 0) before the check was over"),
        ("import sys\nsys.exit(7)\n", "hypercalls.py:2: SystemExit: 7"),
        ("import os\nos.kill(os.getpid(), 11)\n", "the process was killed by SIGSEGV before the check was over"),
        ("raise KeyboardInterrupt\n", "hypercalls.py:1: KeyboardInterrupt"),
        ("def f(:\n", "hypercalls.py:1: syntax error: invalid syntax"),
        ("import nowhere\n", "hypercalls.py:1: ModuleNotFoundError: No module named 'nowhere'"),
        ("x = bytearray(1 << 40)\n", "hypercalls.py:1: MemoryError"),
        ("def f(): f()\nf()\n", "hypercalls.py:1: RecursionError: maximum recursion depth exceeded"),
    ],
    ids=["exit", "sys-exit", "segfault", "interrupt", "syntax", "import", "memory", "recursion"],
)
def test_broken_submissions_earn_nothing_and_are_told_why(submit: Submit, text: str, reason: str) -> None:
    score = submit(text)
    assert score.points == 0
    assert reasons(score) == {reason}


def hangs(how: str) -> str:
    """Return the solution, but for one function that never ends."""
    text = SOLUTION.replace("    return result >> 16, result & 0xFFFF", f"    {how}\n    while True: pass")
    assert text != SOLUTION
    return text


def test_a_check_that_never_ends_says_where(submit: Submit) -> None:
    text = hangs("pass")
    line = text.splitlines().index("    while True: pass") + 1
    score = submit(text, 0.2)
    assert reasons(score) == {"", f"no end after 4 s; it was at hypercalls.py:{line}"}
    assert score.points == 90


def test_a_submission_that_ignores_the_alarm_is_killed(submit: Submit) -> None:
    began = time.monotonic()
    score = submit(hangs("import signal; signal.signal(signal.SIGALRM, signal.SIG_IGN)"), 0.2)
    assert reasons(score) == {"", "no end after 4 s"}
    assert time.monotonic() - began < 60


def test_output_without_end_hinders_nobody(submit: Submit) -> None:
    score = submit(SOLUTION + "\nprint('spam ' * 1_000_000)\n")
    assert score.is_full
    assert all(0 < len(mark.output) <= 4000 for mark in score.marks)


def test_only_the_checks_concerned_suffer(submit: Submit) -> None:
    """What one check does to its process is gone in the next."""
    broken = SOLUTION.replace("    return result >> 16, result & 0xFFFF", "    import os\n    os._exit(0)")
    assert broken != SOLUTION
    score = submit(broken)
    assert [mark.check.name for mark in score.marks if not mark.earned] == ["xen_version"]


def test_a_submission_that_kills_the_grader_earns_nothing(submit: Submit) -> None:
    score = submit("import os\nos.kill(os.getppid(), 9)\n")
    assert score.points == 0
    assert "the grader's own process was killed before this check" in reasons(score)


def test_processes_left_behind_do_not_delay(submit: Submit) -> None:
    began = time.monotonic()
    score = submit(SOLUTION + "\nimport os, time\nif os.fork() == 0:\n    time.sleep(60)\n    os._exit(0)\n")
    assert score.is_full
    assert time.monotonic() - began < 50


def test_no_process_outlives_its_check(submit: Submit, tmp_path: Path) -> None:
    """Not even one that has left the session, and whose parent has ended."""
    note = tmp_path / "pids"
    daemon = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open({str(note)!r}, "a") as file:
            file.write(f"{{os.getpid()}}\\n")
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists({str(note)!r}):
    time.sleep(0.01)
"""
    assert submit(SOLUTION + daemon).is_full
    pids = [int(line) for line in note.read_text().split()]
    assert pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_control_c_ends_the_check_that_runs(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    hang = (
        f"import os, time\nwith open({str(note)!r}, 'w') as file:\n    file.write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    (tmp_path / "hypercalls.py").write_text(hang)
    program = "from toolstack.cli import main; main()"
    command = [sys.executable, "-c", program, "lab", "grade", "1", str(tmp_path), "--patience", "100"]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as grader:
        deadline = time.monotonic() + 60
        while not note.exists() or not note.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(grader.pid, signal.SIGINT)
        _, errors = grader.communicate(timeout=60)
    assert b"Traceback" not in errors
    pid = int(note.read_text())
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline + 30
        time.sleep(0.05)


def test_a_submission_writes_into_a_copy(submit: Submit, tmp_path: Path) -> None:
    assert submit(SOLUTION + "\nopen('litter', 'w').close()\n").is_full
    assert sorted(os.listdir(tmp_path)) == ["hypercalls.py"]


def test_canned_answers_fit_one_seed_only(submit: Submit) -> None:
    """A command line that was seen once is not the one of the next student."""
    score = submit(
        SOLUTION.replace('.partition(b"\\0")[0].decode()', '.partition(b"\\0")[0].decode() and "loglvl=all"')
    )
    assert "command_line" in [mark.check.name for mark in score.marks if not mark.earned]


@pytest.mark.parametrize(
    ("lab", "file", "text", "reason"),
    [
        (
            "ring",
            "ring.py",
            "from hypervisor.abi.io.ring import FrontRing, BackRing\n",
            "ring.py:1: hypervisor.abi.io.ring.FrontRing",
        ),
        (
            "blkfront",
            "blkfront.py",
            "import sys\nfrom frontends.block import BlockFront\n",
            "blkfront.py:2: frontends.block.BlockFront",
        ),
        (
            "hypercalls",
            "hypercalls.py",
            "def f():\n    import guest_kernel.hypercalls\n",
            "hypercalls.py:2: guest_kernel.hypercalls",
        ),
        (
            "xenbus",
            "xenbus.py",
            "from labs.solutions.xenbus import xenbus\n",
            "xenbus.py:1: labs.solutions.xenbus.xenbus",
        ),
    ],
)
def test_what_is_to_be_written_cannot_be_imported(tmp_path: Path, lab: str, file: str, text: str, reason: str) -> None:
    (tmp_path / file).write_text(text)
    one = find(lab)
    assert one is not None
    score = grade(one, tmp_path, 1)
    assert score.points == 0
    assert reasons(score) == {f"{reason} is not to be used in this lab: it has what you are to write"}


# -- the command ------------------------------------------------------------------------------------------------------


def test_start_grade_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    started = paravirt("start", "1")
    assert started.exit_code == 0
    assert sorted(os.listdir("lab01-hypercalls")) == ["README.md", "hypercalls.py"]
    result = paravirt("grade", "1")
    assert result.exit_code == 1
    assert "not written yet" in result.output
    assert "score: 0/100" in result.output
    Path("lab01-hypercalls/hypercalls.py").write_text(SOLUTION)
    result = paravirt("grade", "hypercalls", "--student", " ada  LOVELACE ")
    assert result.exit_code == 0
    assert f"(seed {seed_of('Ada Lovelace')})" in result.output
    assert result.output.endswith("score: 100/100\n")
    again = paravirt("start", "1")
    assert again.exit_code == 2
    assert "already, which is left as it is" in again.output
    assert Path("lab01-hypercalls/hypercalls.py").read_text() == SOLUTION


def test_json(tmp_path: Path) -> None:
    (tmp_path / "hypercalls.py").write_text(SOLUTION.replace("-result", "result"))
    result = paravirt("grade", "1", str(tmp_path), "--json", "--seed", "5")
    told = json.loads(result.output)
    assert result.exit_code == 1
    assert told["points"] == sum(check["points"] for check in told["checks"]) < told["out_of"] == 100
    assert told["checks"][0]["points"] == 0
    assert "the errno of the XenError" in told["checks"][0]["reason"]


def test_a_class(tmp_path: Path) -> None:
    for name, text in {"ada": SOLUTION, "bob": SOLUTION.replace("number // 32", "0")}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "hypercalls.py").write_text(text)
    (tmp_path / "carl").mkdir()
    table = tmp_path / "points.csv"
    result = paravirt("grade", "1", "--class", str(tmp_path), "--csv", str(table))
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "ada   100",
        "bob    85  missed: has_feature",
        "carl    0  no hypercalls.py",
    ]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["missed"] for row in rows] == ["", "has_feature", "no hypercalls.py"]
    assert [row["points"] for row in rows] == ["100", "85", "0"]
    assert [row["has_feature"] for row in rows] == ["15", "0", "0"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("grade", "99"), "there is no lab '99'; `paravirt lab list` shows all"),
        (("show", "hypercall"), "there is no lab 'hypercall'; did you mean 'hypercalls'?"),
        (("grade", "1", "/nowhere"), "there is no directory '/nowhere'"),
        (("grade", "1", "."), "there is no hypercalls.py in "),
        (("grade", "1", "--student", "a", "--seed", "1"), "--student and --seed both say whose work it is"),
        (("grade", "1", "--csv", "x"), "--csv writes the table of a class: --class DIR is missing"),
        (("grade", "1", ".", "--class", "."), "--class takes the students from its directories"),
        (("grade", "1", "--class", "."), "'.' holds no directories, one for each student"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = paravirt(*arguments)
    assert result.exit_code == 2
    assert sentence in result.output
    assert result.output.count("\n") == 1


def test_list_show_questions() -> None:
    listed = paravirt("list")
    assert all(lab.title in listed.output for lab in LABS)
    assert paravirt("show", "1").output == FIRST.page
    asked = paravirt("questions", "1", "--student", "Ada")
    answered = paravirt("answers", "1", "--student", "Ada")
    assert "answer:" not in asked.output
    assert answered.output.count("answer:") >= 3
    assert answered.output == paravirt("questions", "1", "--student", "Ada", "--answers").output
    assert paravirt("questions", "1", "--student", "Bob").output != asked.output
