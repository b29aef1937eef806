"""Nodes of xenstore that may change while a device is connected."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from guest_kernel.kernel import Kernel


class Reread:
    """Has a node read again: by one thread, one look after the other, however often the node changes (XSA-332)."""

    def __init__(self, kernel: Kernel, name: str, look: Callable[[], Awaitable[None]]) -> None:
        self._kernel = kernel
        self._name = name
        self._look = look
        self._has_changed = self._is_looking = False

    def changed(self) -> None:
        """Look, now or after the look that is being taken: callable from a watch."""
        self._has_changed = True
        if not self._is_looking:
            self._is_looking = True
            self._kernel.spawn(self._run(), self._name)

    async def _run(self) -> None:
        while self._has_changed:
            self._has_changed = False
            await self._look()
        self._is_looking = False
