"""The dice device of docs/write-a-split-driver.md: the page is the code, and no peer can harm anybody with it."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from toolstack.console_log import ConsoleLog
from toolstack.host import Host
from toolstack.xl_config import load_config

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "examples" / "split-driver"
PAGE = ROOT / "docs" / "write-a-split-driver.md"
BLOCK = re.compile(r"<!-- file: (\S+) -->\n\n?```python\n(.*?)\n```\n", re.DOTALL)

GUEST = """
from dice_front import DiceFront
from guest_kernel.guest import Guest
from hypervisor.abi.io.ring import REQ_PROD

class BadRef(DiceFront):
    async def publish(self, device):
        await super().publish(device)
        await device.write({{"ring-ref": {bad_ref!r}}})

class Other(Guest):
    async def main(self):
        kernel = self.kernel
        driver = {driver}(kernel)
        await kernel.xenbus.connected()
        await kernel.bus.register(driver)
        {body}

async def first_roll(driver):
    await driver.connected.wait()
    assert 1 <= await driver.dice.roll(6) <= 6
    return driver.dice

async def refused(guest, dice):
    await guest.sleep(0.1)  # The backend looks before the next roll writes the index again.
    await no_dice(dice.roll(6))

async def no_dice(roll):
    try:
        await roll
    except ConnectionError:
        return
    raise AssertionError("the device still works")
"""


def play(
    folder: Path,
    body: str,
    *,
    driver: str = "DiceFront",
    bad_ref: str = "",
    patch: str = "",
    names: Sequence[str] = ("dealer", "other", "player"),
) -> tuple[list[str], str]:
    """Run the dealer (patched), another player as domain 2, and the honest one; return who failed, and the consoles."""
    for file in EXAMPLE.glob("*.*"):
        shutil.copy(file, folder)
    (folder / "other.py").write_text(GUEST.format(body=body, driver=driver, bad_ref=bad_ref))
    (folder / "other.cfg").write_text(
        'name = "other"\nmemory = 8\nkernel = "other.py:Other"\non_crash = "destroy"\n'
        'device = ["type=dice,backend=dealer"]\n'
    )
    (folder / "dealer.py").write_text((folder / "dealer.py").read_text() + patch)
    printed: list[str] = []
    host = Host(consoles=ConsoleLog(printed.append))
    result = trio.run(host.run, [load_config(folder / f"{name}.cfg") for name in names])
    print("".join(printed))
    return [domain.name for domain in result.domains if domain.failed], "".join(printed)


def test_the_page_is_the_code() -> None:
    shown: dict[str, list[str]] = {}
    for name, block in BLOCK.findall(PAGE.read_text()):
        shown.setdefault(name, []).extend(lines_of(block))
    assert shown == {str(file.relative_to(ROOT)): lines_of(file.read_text()) for file in EXAMPLE.glob("*.py")}


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def test_it_is_short() -> None:
    assert sum(len(lines_of(file.read_text())) for file in EXAMPLE.glob("*.py")) < 200


@pytest.mark.parametrize(
    ("body", "fails"),
    [
        (
            "dice.ring.shared[REQ_PROD] = 5000; kernel.events.notify(dice.port); await refused(self, dice)",
            False,
        ),
        ("for _ in range(2000): kernel.events.notify(dice.port)", False),
        ("kernel.spawn(dice.roll(6)); await kernel.power.crash('on purpose')", True),
        ("await no_dice(dice.roll(1 << 16))", True),
    ],
    ids=["garbage index", "event storm", "death with a request in flight", "a request that cannot be packed"],
)
def test_an_evil_player_harms_nobody(tmp_path: Path, body: str, fails: bool) -> None:
    failed, printed = play(tmp_path, f"dice = await first_roll(driver)\n        {body}")
    assert failed == (["other"] if fails else [])
    assert "a thousand rolls" in printed


@pytest.mark.parametrize("ref", ["99999", "-1", "4294967296", "x", ""])
def test_a_frontend_with_a_bad_reference_is_refused(tmp_path: Path, ref: str) -> None:
    failed, printed = play(tmp_path, "await self.sleep(1)", driver="BadRef", bad_ref=ref)
    assert (failed, "a thousand rolls" in printed) == ([], True)


def test_a_backend_that_lies_is_not_believed(tmp_path: Path) -> None:
    patch = """
import dice_back

class Lying:
    pack = dice_back.RESPONSE.pack_into

    def pack_into(self, view, at, ident, status, roll):
        self.pack(view, at, (ident + 1) % 65536, status, roll)

dice_back.RESPONSE = Lying()
"""
    body = "await driver.connected.wait(); await no_dice(driver.dice.roll(6)); await no_dice(driver.dice.roll(6))"
    failed, _ = play(tmp_path, body, patch=patch, names=("dealer", "other"))
    assert failed == []
