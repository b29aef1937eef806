"""The pytest plugin, used as somebody would who has paravirt installed: each test runs a pytest of its own."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

pytest_plugins = "pytester"

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def bench(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory for tests, where only our plugin is loaded: whether it is installed here or not."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeini("[pytest]\naddopts = -p conformance.pytest_plugin --strict-markers\nfilterwarnings = error\n")
    return pytester


def test_it_is_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"paravirt": "conformance.pytest_plugin"}


def test_guests_of_all_kinds(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        """
        from guest_kernel.guest import Guest

        class Writer(Guest):
            async def main(self):
                disk = await self.disk("xvda")
                await disk.write(1, b"x" * 512)
                self.print("written, by", *self.args)

        async def reads(guest):
            disk = await guest.disk("xvda")
            assert await disk.read(0, 1) == b"begin".ljust(512, b"\\0")
            guest.print("read")

        def test_disk(xen_host):
            image = xen_host.image("d.img", 1 << 20, b"begin")
            disk = [f"format=raw,vdev=xvda,access=rw,target={image}"]
            other = xen_host.image("e.img", 4096, b"begin")
            result = xen_host.run(
                xen_host.guest("writer", Writer, memory=16, disk=disk, extra="me \\"myself\\" I"),
                xen_host.guest("reader", reads, disk=[f"format=raw,vdev=xvda,access=ro,target={other}"]),
                pcpus=2,
            )
            assert result.exit_code == 0
            assert xen_host.console("writer") == ['written, by me "myself" I']
            assert xen_host.console("reader") == ["read"]
            assert image.read_bytes()[512:1024] == b"x" * 512
            assert xen_host.host.results["writer"].usage.blocks == 1

        def test_file(xen_host, tmp_path):
            path = tmp_path / "g.py"
            path.write_text("from guest_kernel.guest import Guest\\n"
                            "class G(Guest):\\n    async def main(self): self.print('from a file')\\n")
            xen_host.run(xen_host.guest("g", path))
            assert xen_host.console("g") == ["from a file"]
        """
    )
    bench.runpytest_subprocess().assert_outcomes(passed=2)


def test_both_ends_of_a_driver_as_the_page_has_them(bench: pytest.Pytester) -> None:
    page = (ROOT / "docs" / "pytest.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "DiceFront" in block]
    example = ROOT / "examples" / "split-driver"
    head = f"import sys\nsys.path.insert(0, {str(example)!r})\n"
    head += "from dice_back import DiceBack\nfrom dice_front import DiceFront\n"
    bench.makepyfile(head + code)
    bench.runpytest_subprocess().assert_outcomes(passed=1)


def test_the_first_example_of_the_page(bench: pytest.Pytester) -> None:
    page = (ROOT / "docs" / "pytest.md").read_text()
    bench.makepyfile(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0])
    bench.runpytest_subprocess().assert_outcomes(passed=1)


def test_two_runs_of_one_seed_are_the_same(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        """
        import random
        from pathlib import Path

        async def main(guest):
            await guest.sleep(0.001)

        def test_trace(xen_host, paravirt_seed, tmp_path):
            traces = []
            for name in ("one", "two"):
                xen_host.run(xen_host.guest("g", main), trace_file=tmp_path / name)
                traces.append((tmp_path / name).read_bytes())
            assert traces[0] == traces[1]
            assert xen_host.host.seed == paravirt_seed
        """
    )
    bench.runpytest_subprocess().assert_outcomes(passed=1)


SEEDS = """
    import pathlib

    def test_one(paravirt_seed):
        pathlib.Path("one").write_text(str(paravirt_seed))

    def test_two(paravirt_seed):
        pathlib.Path("two").write_text(str(paravirt_seed))
"""


def test_seeds(bench: pytest.Pytester) -> None:
    bench.makepyfile(SEEDS)

    def seeds(*options: str) -> tuple[int, int]:
        bench.runpytest_subprocess(*options).assert_outcomes(passed=2)
        return int((bench.path / "one").read_text()), int((bench.path / "two").read_text())

    own = seeds()
    assert own == seeds()
    assert own[0] != own[1]
    assert seeds("--paravirt-seed", "7") == (7, 7)
    drawn = seeds("--paravirt-seed=random")
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("text", ["-1", "x", "1e3", "4294967296"])
def test_a_wrong_seed_is_one_sentence(bench: pytest.Pytester, text: str) -> None:
    bench.makepyfile(SEEDS)
    result = bench.runpytest_subprocess(f"--paravirt-seed={text}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --paravirt-seed is a number from 0 to 4294967295, or random, not '{text}'"])


def test_a_failure_tells_its_seed_its_trace_and_the_consoles(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        """
        async def main(guest):
            guest.print("before")
            number = 2
            assert number == 3, "in the guest"

        def test_it(xen_host):
            xen_host.run(xen_host.guest("g", main))
        """
    )
    result = bench.runpytest_subprocess("--paravirt-seed", "11", "--paravirt-trace")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*AssertionError: in the guest",
            "*assert 2 == 3",
            "seed 11; again: pytest '*test_it' --paravirt-seed 11",
            "*host-1.trace",
            "g | before",
        ]
    )
    (trace,) = [line for line in result.stdout.lines if line.endswith("host-1.trace")]
    assert Path(trace).stat().st_size > 1000


def test_a_crash_that_is_no_exception_of_the_program(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        """
        import pytest
        from conformance.xen_host import GuestFailedError

        async def main(guest):
            await guest.kernel.power.crash("on purpose")

        def test_it(xen_host):
            with pytest.raises(GuestFailedError, match="bad crashed: crash requested: on purpose"):
                xen_host.run(xen_host.guest("bad", main))
        """
    )
    bench.runpytest_subprocess().assert_outcomes(passed=1)


def test_hostile_guests_may_crash_and_nobody_else(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        """
        import pytest

        async def bad(guest):
            raise ValueError("as announced")

        async def good(guest):
            await guest.sleep(0.01)

        @pytest.mark.hostile
        def test_any(xen_host):
            result = xen_host.run(xen_host.guest("bad", bad), xen_host.guest("good", good))
            assert [domain.name for domain in result.failures] == ["bad"]

        @pytest.mark.hostile("bad")
        def test_named(xen_host):
            assert xen_host.run(xen_host.guest("bad", bad)).exit_code == 1

        @pytest.mark.hostile("bad")
        def test_other(xen_host):
            xen_host.run(xen_host.guest("worse", bad))
        """
    )
    result = bench.runpytest_subprocess()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*ValueError: as announced", "*test_other*"])


def test_what_a_guest_leaves_behind_fails_the_test(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        """
        async def main(guest):
            pass

        def test_it(xen_host):
            xen_host.run(xen_host.guest("g", main))
            # (No guest can do this: it is what a bug of the host would look like.)
            xen_host.host.hv.domains[0].ports[-1].state = 3
            xen_host.host._ports_before -= 1
        """
    )
    result = bench.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["the guests of this test leave behind:", "  dom0 has * ports bound, *"])


def test_a_skip_inside_of_a_guest_skips(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        """
        import pytest

        async def main(guest):
            pytest.skip("not here")

        def test_it(xen_host):
            xen_host.run(xen_host.guest("g", main))
        """
    )
    bench.runpytest_subprocess().assert_outcomes(skipped=1)


def test_a_mistake_in_a_configuration_is_one_sentence(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        """
        import pytest
        from toolstack.errors import ConfigError

        async def main(guest):
            pass

        def test_it(xen_host):
            with pytest.raises(ConfigError, match="guest 'g':4: unknown setting 'disc'"):
                xen_host.guest("g", main, disc=["x"])
        """
    )
    bench.runpytest_subprocess().assert_outcomes(passed=1)


def test_nothing_of_the_simulator_is_imported_before_it_is_used(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        """
        import sys

        def test_it(paravirt_seed):
            assert not {"toolstack", "hypervisor", "trio"} & set(sys.modules)
        """
    )
    bench.runpytest_subprocess().assert_outcomes(passed=1)
