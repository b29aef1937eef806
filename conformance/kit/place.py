"""Where a guest's program finds the scene that it is in: programs are loaded by file name, and are given nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar, final

Scene = TypeVar("Scene")


@final
class Place(Generic[Scene]):
    """A place for one scene at a time."""

    def __init__(self) -> None:
        self._scene: Scene | None = None

    @property
    def scene(self) -> Scene:
        """The scene that is there now."""
        assert self._scene is not None, "a program runs whose scene is over"
        return self._scene

    @contextmanager
    def taken_by(self, scene: Scene) -> Iterator[None]:
        """Have programs find a scene."""
        self._scene = scene
        try:
            yield
        finally:
            self._scene = None
