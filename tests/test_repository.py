"""What the repository promises about itself: links lead somewhere, pages are true, nothing is of one machine only."""

import ast
import contextlib
import doctest
import graphlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from readme_commands import commands, fenced  # noqa: E402

# Paths that exist on one machine only.
HOMES = re.compile(r"(?<![\w.$}/*-])/(?:work|root|home|tmp/[a-z])/")


def tracked() -> list[Path]:
    """Return the files of the repository: those that git knows, or all in a copy without git."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
        return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    hidden = re.compile(r"(^|/)(\.(?!ci)[^/]*|__pycache__|build|dist|[^/]*\.egg-info)(/|$)")
    return [path for path in ROOT.rglob("*") if path.is_file() and not hidden.search(str(path.relative_to(ROOT)))]


def named(*suffixes: str) -> list[Path]:
    return sorted(path for path in tracked() if path.suffix in suffixes)


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the fragments that a page's headings answer to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower().replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            yield target


@pytest.mark.parametrize("page", named(".md"), ids=short)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        name, _, fragment = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), f"{short(page)} links to {target}, which is not there"
        if fragment and other.suffix == ".md":
            assert fragment in anchors(other), f"{short(page)} links to {target}, and that page has no such heading"


@pytest.mark.parametrize("page", named(".md"), ids=short)
def test_python_sessions_on_pages_are_true(page: Path) -> None:
    sessions = [block for block in fenced(page, "python", "pycon") if ">>>" in block]
    for number, session in enumerate(sessions):
        test = doctest.DocTestParser().get_doctest(session, {}, f"{short(page)}[{number}]", str(page), 0)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            result = doctest.DocTestRunner(verbose=False).run(test, out=said.write)
        assert result.failed == 0, said.getvalue()


def test_the_architecture_page_leads_to_every_other_page() -> None:
    index = ROOT / "docs" / "architecture.md"
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {index.name}
    assert pages
    assert pages <= set(links(index))


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Whoever reads a module has to know those below it only. (What names a type and no more does not count.)"""
    packages = ("hypervisor", "guest_kernel", "backends", "frontends", "toolstack", "conformance", "labs")
    graph = grimp.build_graph(*packages, exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 500
    order = graphlib.TopologicalSorter(imports)
    order.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", named(".py"), ids=short)
def test_every_module_says_what_it_is(module: Path) -> None:
    assert ast.get_docstring(ast.parse(module.read_text())), f"{short(module)} has no docstring"


@pytest.mark.parametrize("path", tracked(), ids=short)
def test_nothing_is_of_one_machine_only(path: Path) -> None:
    if path == Path(__file__).resolve():
        return
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return  # an image or a capture
    for number, line in enumerate(text.splitlines(), 1):
        assert not HOMES.search(line), f"{short(path)}:{number} names a path of somebody's machine: {line.strip()}"


def rows(page: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of every table on a page, by column title in lower case."""
    titles: list[str] | None = None
    for line in prose(page).splitlines():
        if not line.startswith("|"):
            titles = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if titles is None:
            titles = [cell.lower() for cell in cells]
        elif not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            assert len(cells) == len(titles), f"{short(page)}: this row has {len(cells)} cells: {line}"
            yield dict(zip(titles, cells, strict=True))


def test_every_capability_has_a_status_and_a_command_that_proves_it() -> None:
    page = ROOT / "SUPPORT.md"
    capabilities = list(rows(page))
    assert capabilities, "SUPPORT.md has no table"
    for row in capabilities:
        status = next((cell for title, cell in row.items() if "status" in title), None)
        command = next((cell for title, cell in row.items() if "command" in title or "proof" in title), None)
        assert status, f"SUPPORT.md: no status in {row}"
        assert command is not None, f"SUPPORT.md: no column for the command in {row}"
        if re.match(r"no\b|not\b|-|planned", status, flags=re.IGNORECASE):
            continue  # what is not there cannot be shown
        assert re.search(r"`[^`]+`", command), f"SUPPORT.md: no command proves {row}"
        for word in re.findall(r"[\w./-]+", " ".join(re.findall(r"`([^`]+)`", command))):
            if re.match(r"(tests|examples|benchmarks|docs|hypervisor|conformance)/", word):
                path = word.split("::")[0].rstrip("/.")
                assert (ROOT / path).exists(), f"SUPPORT.md: {path} is not there, and proves {row}"


def test_the_readme_promises_a_main_job_and_the_tests() -> None:
    promised = commands(ROOT / "README.md")
    assert len(promised) >= 2
    assert "paravirt" in promised[0]
    assert "pytest" in promised[1]


def test_commands_are_taken_from_fences_and_transcripts(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\na\nb\n```\n\n```python\nc\n```\n\n1. x\n   ```console\n   $ d\n   out\n   $ e\n   ```\n")
    assert commands(page) == ["a\nb", "d\ne"]
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="promises no command"):
        commands(page)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed, which .ci/run is written for.")
def test_ci_is_a_script_that_can_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
