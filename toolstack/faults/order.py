"""Taking a person's order of a fault: `NAME[:key=value]...`, by what the menu says that can be said of it."""

from __future__ import annotations

import attrs

from toolstack.errors import UsageError, did_you_mean
from toolstack.faults.menu import MENU
from toolstack.faults.spec import KEYS, FaultSpec


def parse_fault(text: str) -> FaultSpec:
    """Parse `NAME[:key=value]...`. Raises `UsageError`."""
    name, *settings = text.split(":")
    entry = MENU.get(name)
    if entry is None:
        raise UsageError(f"--fault {text!r}: there is no fault {name!r}{did_you_mean(name, MENU)}")
    spec = attrs.evolve(entry.default, name=name, text=text)
    said = set()
    for setting in settings:
        word, sign, value = setting.partition("=")
        if word not in entry.keys or not sign:
            has = ", ".join(entry.keys)
            raise UsageError(f"--fault {text!r}: {setting!r} is not KEY=VALUE with a key of {name}; it has {has}")
        key = KEYS[word]
        try:
            spec = attrs.evolve(spec, **{key.field: key.parse(value)})
        except ValueError:
            raise UsageError(f"--fault {text!r}: {word} is {key.form}, not {value!r}") from None
        said.add(word)
    for word in entry.needs:
        if word not in said:
            raise UsageError(f"--fault {text!r}: {name} needs {word}=, {KEYS[word].form}")
    return spec
