"""How much of one processor does a guest get by its weight? A scenario for `paravirt sweep`.

paravirt sweep examples/sweep/shares.py --seeds 0..9 --set weight=128,256,512 --set scheduler=credit,credit2
"""

from collections.abc import Mapping
from pathlib import Path

from toolstack.host import Host
from toolstack.report import HostResult
from toolstack.sweep import Scenario
from toolstack.xl_config import parse_config

HERE = Path(__file__).parent
CFG = 'name = "{name}"\nmemory = 4\nkernel = "burner.py"\ncpu_weight = {weight}\nextra = "{seconds}"\n'


def scenario(
    seed: int, directory: Path, weight: int = 256, scheduler: str = "credit2", seconds: float = 0.5
) -> Scenario:
    """`one` has the weight that is asked for, `other` has 256; both want the processor all the time."""
    texts = {
        "one": CFG.format(name="one", weight=weight, seconds=seconds),
        "other": CFG.format(name="other", weight=256, seconds=seconds),
    }
    configs = [parse_config(text, f"{name}.cfg", HERE) for name, text in texts.items()]
    return Scenario(configs, host={"scheduler": scheduler}, measure=measure)


def measure(host: Host, result: HostResult) -> Mapping[str, float]:
    """The share of `one` in what both have run."""
    one, other = (domain.usage.cpu_ns for domain in result.domains[1:])
    return {"share": one / (one + other)}
