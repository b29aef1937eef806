"""The commands that a page promises, taken from the page: a page that drifts from the truth fails its own commands.

A command is a fenced block of Markdown marked `sh`, `bash` or `console` (of the last, the lines that begin with `$ `).
In README.md the first is the set-up and main job and the second sets up and passes the tests; both are meant to be
typed at the root of a clone. As a script it prints them, for CI to run:

    python tests/readme_commands.py README.md      # all of the commands, a blank line between two
    python tests/readme_commands.py README.md 2    # the second one
"""

import re
import sys
from pathlib import Path

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)


def fenced(page: Path, *languages: str) -> list[str]:
    """Return the texts of a page's fenced blocks in one of the languages, in order."""
    return [match["body"] for match in _FENCE.finditer(page.read_text()) if match["language"] in languages]


def _typed(transcript: str) -> str:
    """Return what is typed in a block: of a transcript the lines with a prompt, else all of it."""
    lines = [line.strip() for line in transcript.splitlines()]
    prompted = [line[2:] for line in lines if line.startswith("$ ")]
    return "\n".join(prompted or lines).strip()


def commands(page: Path) -> list[str]:
    """Return the commands on a page, in order. Raises ValueError if there is none."""
    found = [_typed(block) for block in fenced(page, "sh", "bash", "console")]
    if not found:
        raise ValueError(f"{page} has no fenced block marked sh, bash or console, so it promises no command")
    return found


def main(arguments: list[str]) -> int:
    """Print the commands of a page, or the n-th. Returns the exit code."""
    if not 1 <= len(arguments) <= 2:
        print("usage: readme_commands.py PAGE [N]", file=sys.stderr)
        return 2
    try:
        found = commands(Path(arguments[0]))
    except (OSError, ValueError) as error:
        print(f"readme_commands: {error}", file=sys.stderr)
        return 2
    if len(arguments) == 2:
        number = int(arguments[1])
        if not 1 <= number <= len(found):
            print(f"readme_commands: {arguments[0]} has {len(found)} commands, not {number}", file=sys.stderr)
            return 2
        found = found[number - 1 : number]
    print("\n\n".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
