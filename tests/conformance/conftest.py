"""Xen's own daemon is started by what the tests of the store have for it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "xenstored"))
