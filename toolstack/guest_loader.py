"""Loading a guest: a Python file that defines a subclass of `guest_kernel.guest.Guest`.

The file is code that the user chose to run, so it is executed; each domain gets a module of its own, so that two
guests of one file share no globals.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType

import attrs

from guest_kernel.guest import Guest
from guest_kernel.kernel import Kernel
from toolstack.errors import GuestHangError, UsageError

GUEST_MODULE = "paravirt_guest_"
"""What the names of the modules of guest files begin with."""
_serial = itertools.count(1)


@attrs.frozen
class GuestProgram:
    """A guest file that compiles, and the class in it that is the guest (None: the only one there is)."""

    path: Path
    code: CodeType
    class_name: str | None

    def load(self) -> Callable[[Kernel], Guest]:
        """Execute the file in a fresh module and return its guest class. Raises `UsageError` with one sentence."""
        module = ModuleType(f"{GUEST_MODULE}{next(_serial)}")
        module.__file__ = str(self.path)
        # Decorators such as attrs look their module up by name.
        sys.modules[module.__name__] = module
        try:
            with _importable(self.path.parent):
                exec(self.code, module.__dict__)
        except BaseException as error:
            del sys.modules[module.__name__]
            if isinstance(error, KeyboardInterrupt):
                raise  # a person, who does not want to wait for the file
            raise UsageError(self._failure(error)) from None
        return self._choose(module)

    def _failure(self, error: BaseException) -> str:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self.path)
        ]
        where = f"{self.path}:{lines[-1]}" if lines else str(self.path)
        if isinstance(error, GuestHangError):
            why = f"it has not come to an end after {error.seconds:g} s of wall-clock time"
            return f"{where}: the guest file cannot be loaded: {why}"
        text = str(error).splitlines()
        return f"{where}: the guest file cannot be loaded: {type(error).__name__}{': ' + text[0] if text else ''}"

    def _choose(self, module: ModuleType) -> type[Guest]:
        own = {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, Guest) and value.__module__ == module.__name__
        }
        if self.class_name is not None:
            chosen = vars(module).get(self.class_name)
            if isinstance(chosen, type) and issubclass(chosen, Guest):
                return self._complete(chosen)
            raise UsageError(f"{self.path} has no guest class {self.class_name!r}{_list_names(own)}")
        # A class that another one here extends is scaffolding.
        leaves = {name: cls for name, cls in own.items() if not any(cls in other.__mro__[1:] for other in own.values())}
        if not leaves:
            raise UsageError(f"{self.path} defines no guest: a class that extends guest_kernel.guest.Guest")
        if len(leaves) > 1:
            raise UsageError(
                f'{self.path} defines several guests; name one, as in kernel = "{self.path.name}:{min(leaves)}"'
                f"{_list_names(leaves)}"
            )
        return self._complete(next(iter(leaves.values())))

    def _complete(self, chosen: type[Guest]) -> type[Guest]:
        """Return a guest class that can run. Raises `UsageError` if it does not say what the guest does."""
        if inspect.isabstract(chosen):
            raise UsageError(f"{self.path}: the guest class {chosen.__name__!r} has no main (async def main(self))")
        return chosen


def _list_names(classes: dict[str, type[Guest]]) -> str:
    return f" (there is {', '.join(classes)})" if classes else ""


@contextmanager
def _importable(directory: Path) -> Iterator[None]:
    """Let the guest file import its neighbours."""
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        if str(directory) in sys.path:
            sys.path.remove(str(directory))


def compile_guest(path: Path, class_name: str | None = None) -> GuestProgram:
    """Read and compile a guest file. Raises `UsageError`: missing, unreadable, a syntax error."""
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"the guest file {str(path)!r} does not exist") from None
    except IsADirectoryError:
        raise UsageError(f"the guest file {str(path)!r} is a directory") from None
    except OSError as error:
        raise UsageError(f"cannot read the guest file {str(path)!r}: {error.strerror}") from None
    try:
        code = compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise UsageError(f"{path}:{error.lineno or 1}: syntax error in the guest file: {error.msg}") from None
    except (RecursionError, MemoryError):
        raise UsageError(f"{path}: the guest file is nested too deeply for Python") from None
    except ValueError as error:  # NUL bytes
        raise UsageError(f"{path}: the guest file is no Python source: {error}") from None
    return GuestProgram(path, code, class_name)
