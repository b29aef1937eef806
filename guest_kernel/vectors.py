"""numpy, where it is installed (the extra `fast`): hot code that works on whole rings at once asks here for it.

Nothing depends on it but speed. Code that uses it has a twin in plain Python which does the same in the same order, so
a guest sees no difference, and neither does a trace; where a batch is anything but ordinary the twin takes over.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any

MIN_BATCH = 16
"""A call of numpy's costs as much as ten steps of a loop: fewer things than this are done one by one."""

THREADS = "OPENBLAS_NUM_THREADS"

disabled = False
"""Do without it although it is there (tests compare the two)."""


def numpy() -> Any:
    """Return the module, or None. The first who asks waits for its import, a tenth of a second."""
    return None if disabled else _numpy()


@cache
def _numpy() -> Any:
    # A host is one thread: the threads of numpy's linear algebra, which nobody uses, would only be in the way.
    before = os.environ.get(THREADS)
    os.environ.setdefault(THREADS, "1")
    try:
        return importlib.import_module("numpy")
    except ImportError:
        return None
    finally:
        if before is None:
            del os.environ[THREADS]
