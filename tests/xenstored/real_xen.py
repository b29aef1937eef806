"""Xen's own programs, where they are installed; a test that needs one is skipped with a sentence where it is not."""

import os
import shutil
from pathlib import Path

import pytest

LIBEXEC = sorted(Path("/usr/lib").glob("xen-4.*/bin"))
REQUIRED = bool(os.environ.get("PARAVIRT_REQUIRE_XEN_TOOLS"))
"""Set where all of Xen's programs must be there: a missing one is a failure then."""


def program(name: str) -> str:
    """The path of a program of Xen, or the end of the test."""
    # In /usr/sbin there are wrappers that want a running Xen.
    places = [str(path) for path in LIBEXEC] + [*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/sbin"]
    found = shutil.which(name, path=":".join(places))
    if found is None:
        sentence = f"{name} is not installed (Debian: xenstore-utils, xen-utils-4.17)"
        if REQUIRED:
            pytest.fail(sentence)
        pytest.skip(sentence)
    return found
