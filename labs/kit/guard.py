"""What keeps a submission from grading itself: it shares its process with the check, and is not to reach it.

Before a submission is loaded the check's process takes note of the code that judges: every function and class of this
project that is there, and of Python's own what the grader leans on. If any of that is another one when the check is
over, nothing counts. Meanwhile an audit hook (PEP 578), which nobody can take away again, refuses the submission what
leads from its own objects to the grader's: frames, the collector's lists, ctypes, the process's memory, modules that
its lab does not allow. The grader's modules are not in `sys.modules`; and that a check is met only a token says, which
the parent has made for this one time.

A submission still is a program with the rights of who starts it, and Python is no sandbox: one that puts code in the
place of other code and back again in time is not seen. docs/teaching.md says what to do with strangers.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import random
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any, Final, final

from labs.kit.imports import OURS, is_forbidden

PROJECT: Final = Path(__file__).parents[2]
_LEANS_ON: Final = (builtins, importlib, json, os, random, sys)
"""Modules of Python's that decide with the grader."""
_SECRET: Final = frozenset({"tb_frame", "gi_frame", "cr_frame", "ag_frame"})
"""Attributes of tracebacks and coroutines that lead to frames, and by them to everything."""
_TRANSPARENT: Final = ("/inspect.py", "/ctypes/__init__.py", "/importlib/__init__.py")
"""Files of Python's that do what their caller wants."""
_CODE: Final = (FunctionType, BuiltinFunctionType, type)
_LOOK: Final = "a submission may not look into its grader"


@final
class Guard:
    """Made by the grader's process, which then forks; `close` and `broken` are for the child."""

    def __init__(self, directory: Path, allowed: Sequence[str]) -> None:
        self._directory = str(directory)
        self._allowed = tuple(allowed)
        self._trusted = (f"{PROJECT}{os.sep}", *_python(), "<frozen ")
        self._things: list[tuple[Mapping[str, Any], str, object, str]] = []
        """Namespace, name, what stands there, and what it is called."""
        self._codes: list[tuple[FunctionType, CodeType, object, object, str]] = []
        self._hidden: dict[str, ModuleType] = {}
        self._asks = False
        for module in (*_LEANS_ON, *(module for name, module in sys.modules.items() if _is_ours(name))):
            self._note(vars(module), module.__name__)

    def _note(self, namespace: Mapping[str, Any], place: str) -> None:
        for name, thing in list(namespace.items()):
            what = f"{place}.{name}"
            if self._decides(thing):
                self._things.append((namespace, name, thing, what))
            function = getattr(thing, "__func__", thing)
            if isinstance(function, FunctionType) and _is_ours(function.__module__):
                self._codes.append((function, function.__code__, function.__defaults__, function.__kwdefaults__, what))
            elif isinstance(thing, type) and f"{thing.__module__}.{thing.__qualname__}" == what:
                self._note(vars(thing), what)

    @staticmethod
    def _decides(thing: object) -> bool:
        """Whether something is code, and not a value that may change as things go on."""
        return isinstance(thing, (*_CODE, classmethod, staticmethod, property))

    # -- for the child ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let the submission come: from now on it is refused what it is not to have."""
        for name in [name for name in sys.modules if self._is_hidden(name)]:
            self._hidden[name] = sys.modules.pop(name)
        # Whoever imports ctypes executes it anew, and is seen at that; the program itself nobody imports.
        modules = {name: module for name, module in self._hidden.items() if _is_ours(name) and name != "__main__"}
        sys.meta_path.insert(0, _Wardrobe(modules, self._refuse_import))
        sys.addaudithook(self._hook())

    def _is_hidden(self, name: str) -> bool:
        grades = name.partition(".")[0] in ("labs", "conformance") and is_forbidden(name, self._allowed)
        return grades or name in ("__main__", "ctypes")

    def _refuse_import(self, name: str) -> None:
        """Raise PermissionError if the submission imports what it is not to use."""
        if is_forbidden(name, self._allowed) and self._is_theirs(sys._getframe(2)):
            raise PermissionError(f"{name} is not to be used in this lab")

    def _hook(self) -> Callable[[str, tuple[Any, ...]], None]:
        """Return the audit hook. What it calls it has at hand: a name that is looked up could be another's."""
        frame_at, is_theirs, is_asked, guard = sys._getframe, self._is_theirs, _is_asked, self
        allowed = self._allowed

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            why = is_asked(event, arguments, allowed)
            if why and not guard._asks:
                guard._asks = True
                try:
                    theirs = is_theirs(frame_at(1))
                finally:
                    guard._asks = False
                if theirs:
                    raise PermissionError(why)

        return hook

    def _is_theirs(self, frame: FrameType | None) -> bool:
        """Whether it is the submission that asks, itself or through something that does what its caller wants."""
        while frame is not None:
            code = frame.f_code
            file = code.co_filename
            walks = file.endswith("/traceback.py") and code.co_name.startswith("walk_")
            if not walks and not file.endswith(_TRANSPARENT) and not file.startswith("<frozen importlib"):
                return file.startswith(self._directory) or not file.startswith(self._trusted)
            frame = frame.f_back
        return False

    def broken(self) -> str:
        """Return a sentence if the submission has changed what grades it."""
        missing = object()
        for namespace, name, thing, what in self._things:
            if namespace.get(name, missing) is not thing:
                return f"the submission has changed {what}, which grades it"
        for function, code, defaults, named, what in self._codes:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not named
            ):
                return f"the submission has changed {what}, which grades it"
        return ""


@final
class _Wardrobe(Loader, MetaPathFinder):
    """Gives hidden modules back to those who import them and may: guests that a check has on its host, for one."""

    def __init__(self, modules: Mapping[str, ModuleType], refuse: Callable[[str], None]) -> None:
        self._modules = modules
        self._refuse = refuse

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        """Say that a hidden module comes from here."""
        self._refuse(fullname)
        module = self._modules.get(fullname)
        return None if module is None else spec_from_loader(fullname, self, is_package=hasattr(module, "__path__"))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module that there is."""
        return self._modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: it has been executed."""


def _python() -> Iterator[str]:
    """Yield the directories of Python's own modules, and of what is installed."""
    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        yield f"{sysconfig.get_path(name)}{os.sep}"


def _is_ours(name: object) -> bool:
    return isinstance(name, str) and (name.partition(".")[0] in OURS or name == "__main__")


def _is_asked(event: str, arguments: tuple[Any, ...], allowed: Sequence[str]) -> str:
    """Return why an event is none for a submission; "" if it is."""
    if event in _EVENTS or event.startswith("ctypes."):
        return f"{_LOOK} ({event})"
    if event in ("object.__getattr__", "object.__setattr__"):
        is_secret = arguments[1] in _SECRET or (event == "object.__setattr__" and arguments[1] == "__code__")
        return f"{_LOOK} ({arguments[1]})" if is_secret else ""
    if event == "import" and is_forbidden(str(arguments[0]), allowed):
        return f"{arguments[0]} is not to be used in this lab"
    if event == "open" and isinstance(arguments[0], str) and arguments[0].endswith("/mem"):
        return f"{_LOOK} ({arguments[0]})"
    return ""


_EVENTS: Final = frozenset(
    (
        "gc.get_objects",
        "gc.get_referents",
        "gc.get_referrers",
        "sys._current_exceptions",
        "sys._current_frames",
        "sys._getframe",
        "sys.setprofile",
        "sys.settrace",
    )
)
"""What shows a program all that is in its process."""
