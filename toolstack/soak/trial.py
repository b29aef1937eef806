"""One seed of a soak: a host with guests at work, random faults, and a verdict."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

import attrs
import trio

from toolstack.errors import UsageError
from toolstack.faults.menu import MENU
from toolstack.faults.order import parse_fault
from toolstack.faults.spec import FaultSpec
from toolstack.host import Host
from toolstack.report import HostResult
from toolstack.soak import journal
from toolstack.soak.dice import roll
from toolstack.soak.journal import SECTOR, SLOT_SECTORS, SLOTS, Journal
from toolstack.xl_config import DomainConfig, parse_config

GUESTS: Final = ("victim1", "victim2", "bystander")
MOST_FAULTS: Final = 3
IMAGE_SIZE: Final = SLOTS * SLOT_SECTORS * SECTOR
HANG_LIMIT: Final = 60.0
_CFG: Final = (
    'name = "{name}"\nmemory = 8\nkernel = "worker.py"\nextra = "{number} {count}"\n'
    'disk = ["format=raw,vdev=xvda,access=rw,target={image}"]\nvif = ["bridge=xenbr0"]\n'
)


@attrs.frozen(kw_only=True)
class Trial:
    """What came of one seed."""

    seed: int
    faults: list[str]
    """As `--fault` takes them."""
    struck: int
    """How often faults have struck, altogether."""
    problems: list[str]
    """Sentences about what a good host would not have let happen; none, or there is a bug."""
    virtual_ns: int
    digest: str
    """Of all that was counted: the same seed has the same one."""

    @property
    def command(self) -> str:
        """What repeats it."""
        faults = "".join(f" --fault {fault}" for fault in self.faults)
        return f"paravirt soak --verbose --seeds {self.seed}{faults}"


def run_trial(seed: int, faults: Sequence[str] | None = None, most: int = MOST_FAULTS) -> Trial:
    """Run a host with the faults of a seed, or with these. Raises `UsageError` for a fault that cannot be."""
    texts = roll(seed, list(GUESTS), most) if faults is None else list(faults)
    specs = [parse_fault(text) for text in texts]
    with tempfile.TemporaryDirectory(prefix="paravirt-soak-") as name:
        return _run(seed, specs, Path(name))


def _run(seed: int, specs: Sequence[FaultSpec], directory: Path) -> Trial:
    accounts = {name: Journal(number) for number, name in enumerate(GUESTS)}
    images = {name: directory / f"{name}.img" for name in GUESTS}
    for image in images.values():
        image.write_bytes(bytes(IMAGE_SIZE))
    host = Host(seed=seed, faults=specs, hang_limit=HANG_LIMIT)
    journal.current.clear()
    journal.current.update(accounts)
    problems: list[str] = []
    result = HostResult(domains=[])
    try:
        result = trio.run(host.run, _configs(images))
    except UsageError:
        raise
    except Exception as error:  # whatever it is, the seed that does it is what matters
        problems.append(f"the simulator raised {type(error).__name__}: {error}")
    else:
        problems += [f"left behind: {leak}" for leak in host.leaks()]
    finally:
        journal.current.clear()
    hurt = {name: hurts(specs, name) for name in GUESTS}
    never = {domain.name for domain in result.domains if not domain.lives}
    for name, account in accounts.items():
        if name in never and any(spec.name == "exhaust-memory" for spec in specs):
            continue  # there was no memory to build it of
        problems += [f"{name}: {why}" for why in _judge(account, hurt, images[name].read_bytes())]
    counted = [result.virtual_ns, *map(repr, accounts.values()), *map(repr, result.faults), *problems]
    return Trial(
        seed=seed,
        faults=[spec.text for spec in specs],
        struck=sum(report.struck for report in result.faults),
        problems=problems,
        virtual_ns=result.virtual_ns,
        digest=sha256(repr(counted).encode()).hexdigest()[:16],
    )


def _configs(images: dict[str, Path]) -> list[DomainConfig]:
    here = Path(__file__).parent
    texts = {
        name: _CFG.format(name=name, number=number, count=len(images), image=image)
        for number, (name, image) in enumerate(images.items())
    }
    return [parse_config(text, f"{name}.cfg", here) for name, text in texts.items()]


def hurts(specs: Sequence[FaultSpec], name: str) -> set[str]:
    """Return what a guest may lose because of the faults that it is the victim of."""
    hit = [MENU[spec.name] for spec in specs if (spec.domain or GUESTS[0]) == name]
    return set().union(*(entry.hurts for entry in hit))


def _judge(account: Journal, hurt: dict[str, set[str]], image: bytes) -> list[str]:
    """Return what a good host would not have let happen to a guest."""
    name = GUESTS[account.owner]
    mine = hurt[name]
    found = [] if "data" in mine else _judge_disk(account, image)
    if not account.finished and not mine & {"life", "progress", "data"}:
        found.append("it has not come to the end of its work")
    if account.failed and not mine:
        found.append(f"{account.failed} of its requests have failed")
    for other, lost in account.lost_pings.items():
        if not mine and not hurt[GUESTS[other]]:
            found.append(f"{lost} pings to {GUESTS[other]} were lost")
    return found


def _judge_disk(account: Journal, image: bytes) -> list[str]:
    """Compare what the image holds with what was acknowledged."""
    found = list(account.wrong)
    size = SLOT_SECTORS * SECTOR
    torn = account.failed > 0 or not account.finished
    for number in range(SLOTS):
        why = account.judge(number, image[number * size : (number + 1) * size], allow_torn=torn)
        if why:
            found.append(f"the image: {why}")
    return found
