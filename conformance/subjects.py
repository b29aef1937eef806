"""What a person names as the subject, and the worlds that suites make of it."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any


class SubjectError(Exception):
    """A subject cannot be had; the message is one sentence."""


def load_class(text: str) -> Any:
    """Return what `module:Class` names; modules are looked for in the working directory, too. Raises SubjectError."""
    module_name, colon, name = text.partition(":")
    if not colon or not module_name or not name:
        raise SubjectError(f"{text!r} is not module:Class")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SubjectError(f"cannot import {module_name!r}: {error}") from None
    found = getattr(module, name, None)
    if found is None:
        raise SubjectError(f"there is no {name!r} in {module_name!r}")
    return found


def socket_path(text: str) -> Path:
    """Return the path that `unix:PATH` names. Raises SubjectError."""
    kind, _, path = text.partition(":")
    if kind != "unix" or not path:
        raise SubjectError(f"{text!r} is not unix:PATH")
    if not Path(path).is_socket():
        raise SubjectError(f"there is no socket at {path!r}")
    return Path(path)
