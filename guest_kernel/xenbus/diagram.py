"""The pictures of docs/xenbus.md, drawn from the tables and from runs of the state machine itself.

`python -m guest_kernel.xenbus.diagram docs/xenbus.md` draws them anew: each stands between two comment lines of the
page, `<!-- drawn: NAME -->` and `<!-- end -->`.  A test compares the page with what would be drawn now.
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, final

from guest_kernel.xenbus import states
from guest_kernel.xenbus.driver import Side
from guest_kernel.xenbus.states import (
    CLOSED,
    CLOSING,
    CONNECTED,
    IGNORE,
    INITIALISED,
    INITIALISING,
    INITWAIT,
    NAMES,
    REMOVE,
    STATES,
    UNKNOWN,
    Machine,
)

_ROWS: Final[Mapping[Side, tuple[int, ...]]] = {
    "frontend": (INITIALISING, INITIALISED, CONNECTED, CLOSING, CLOSED),
    "backend": (INITIALISING, INITWAIT, CONNECTED, CLOSING, CLOSED),
}
"""The own states that our drivers visit; the pictures leave the others out (the tables have them)."""
_BLOCK: Final = re.compile(r"(<!-- drawn: (?P<name>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def state_diagram(side: Side) -> str:
    """Return the table of one end (not eager, online) as a Mermaid state diagram; waiting is left out."""
    table = states.table(side)
    edges: dict[tuple[int, int, str], list[int]] = {}
    for own in _ROWS[side]:
        for other in STATES:
            action, state = table[own, other]
            if action == IGNORE or (own == state == CLOSED and other == CLOSING):
                continue
            edges.setdefault((own, state, action), []).append(other)
    lines = ["stateDiagram-v2", "    [*] --> Initialising: probe"]
    for (own, state, action), others in edges.items():
        seen = "any" if len(others) == len(STATES) else ", ".join(NAMES[other] for other in others)
        lines.append(f"    {NAMES[own]} --> {NAMES[state]}: {seen} / {action}")
    lines.append(f"    Closed --> [*]: {'offline' if side == 'backend' else 'shutdown'} / remove")
    return _fenced("mermaid", lines)


def matrix(side: Side) -> str:
    """Return the complete table of one end as Markdown: a row for each own state, a column for the other end's."""
    table = states.table(side)
    lines = [
        "| own \\ other | " + " | ".join(NAMES) + " |",
        "|---" * (len(NAMES) + 1) + "|",
    ]
    for own in STATES:
        cells = [_cell(own, *table[own, other]) for other in STATES]
        lines.append(f"| **{NAMES[own]}** | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def differences(
    base: Mapping[tuple[int, int], tuple[str, int]],
    side: Side,
    *,
    eager: bool = False,
    reconfigures: bool = False,
    online: bool = True,
) -> str:
    """Return as a Markdown list in what a variant of a table differs from `base`; pairs with one outcome together."""
    grouped: dict[tuple[int, str], list[int]] = {}
    table = states.table(side, eager=eager, reconfigures=reconfigures, online=online)
    for (own, other), (action, state) in table.items():
        if base[own, other] != (action, state):
            grouped.setdefault((own, _cell(own, action, state)), []).append(other)
    lines = []
    for (own, cell), others in grouped.items():
        seen = "anything" if len(others) == len(STATES) else ", ".join(NAMES[other] for other in others)
        lines.append(f"- {NAMES[own]}, the other end {seen}: {cell}")
    return "\n".join(lines) + "\n"


def _cell(own: int, action: str, state: int) -> str:
    if action == IGNORE:
        return "·" if own == state else f"→ {NAMES[state]}"
    if action == REMOVE or own == state:
        return action
    return f"{action} → {NAMES[state]}"


@final
class Scene:
    """A frontend and a backend that take turns, and the Mermaid sequence diagram of what they do."""

    def __init__(self, *, eager: bool = False) -> None:
        self.front = Machine("frontend", eager=eager)
        self.back = Machine("backend")
        self.lines = ["sequenceDiagram", "    participant F as frontend", "    participant B as backend"]

    def note(self, who: str, text: str) -> "Scene":
        """Write a note beside an end ("F" or "B")."""
        self.lines.append(f"    Note over {who}: {text}")
        return self

    def quietly(self) -> "Scene":
        """Run to rest and draw nothing of it."""
        kept = list(self.lines)
        self.run()
        self.lines = kept
        return self

    def run(self) -> "Scene":
        """Let both ends act, the backend first, until neither has anything to do."""
        while self._turn(self.back, self.front, "B", "F") | self._turn(self.front, self.back, "F", "B"):
            pass
        return self

    def _turn(self, machine: Machine, other: Machine, name: str, peer: str) -> bool:
        if machine.removed:
            return False
        machine.see_other(UNKNOWN if other.removed else other.own)
        moved = False
        while (step := machine.step()) is not None:
            moved = True
            for hook in step.hooks:
                machine.start_hook(hook)
                self.note(name, hook)
            if step.state != machine.own:
                self.lines.append(f"    {name}->>{peer}: state = {step.state} ({NAMES[step.state]})")
            machine.done(step)
        return moved

    def __str__(self) -> str:
        return _fenced("mermaid", self.lines)


def _connect() -> str:
    return str(Scene().run())


def _connect_eager() -> str:
    return str(Scene(eager=True).run())


def _frontend_closes() -> str:
    scene = Scene().quietly()
    scene.note("F", "shutdown, or an error")
    scene.front.ask_close()
    return str(scene.run())


def _unplug() -> str:
    scene = Scene().quietly()
    scene.note("B", "toolstack: online = 0, state = 5 (Closing)")
    scene.back.online = False
    scene.back.see_own(CLOSING)
    scene.run()
    return str(scene.note("F,B", "toolstack removes both directories"))


def _frontend_killed() -> str:
    scene = Scene().quietly()
    scene.note("F", "killed: its nodes vanish")
    scene.front.removed = True
    scene.run()
    scene.note("B", "toolstack: online = 0")
    scene.back.online = False
    return str(scene.run())


def _backend_killed() -> str:
    scene = Scene().quietly()
    scene.note("B", "killed: its nodes vanish")
    scene.back.removed = True
    return str(scene.run())


def _reconnect() -> str:
    scene = Scene().quietly()
    scene.front.ask_close()
    scene.quietly()
    scene.note("F", "reopen, both Closed, online = 1")
    scene.front.ask_reopen()
    return str(scene.run())


def _restart() -> str:
    scene = Scene().quietly()
    scene.note("F", "starts anew without closing")
    scene.front = Machine("frontend")
    return str(scene.run())


def _fenced(language: str, lines: list[str]) -> str:
    return f"```{language}\n" + "\n".join(lines) + "\n```\n"


PICTURES: Final[Mapping[str, Callable[[], str]]] = {
    "frontend diagram": lambda: state_diagram("frontend"),
    "backend diagram": lambda: state_diagram("backend"),
    "frontend table": lambda: matrix("frontend"),
    "backend table": lambda: matrix("backend"),
    "eager differences": lambda: differences(states.FRONTEND, "frontend", eager=True),
    "offline frontend": lambda: differences(states.FRONTEND, "frontend", online=False),
    "reconfiguring backend": lambda: differences(states.BACKEND, "backend", reconfigures=True),
    "offline backend": lambda: differences(states.BACKEND, "backend", online=False),
    "connect": _connect,
    "connect eager": _connect_eager,
    "frontend closes": _frontend_closes,
    "unplug": _unplug,
    "frontend killed": _frontend_killed,
    "backend killed": _backend_killed,
    "reconnect": _reconnect,
    "restart": _restart,
}


def redraw(page: str) -> str:
    """Return the page with every picture drawn anew.  Raises KeyError for a name that is no picture's."""
    return _BLOCK.sub(lambda block: block[1] + PICTURES[block["name"]]() + block[3], page)


def drawn(page: str) -> list[str]:
    """Return the names of the pictures on a page."""
    return [block["name"] for block in _BLOCK.finditer(page)]


def main() -> None:
    """Draw the pictures of the pages named on the command line anew."""
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(redraw(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
