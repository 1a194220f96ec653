"""Files at the names of replies that are none: anybody may put them there. Pure."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fedq.errors import FedqError

log = logging.getLogger("fedq.client")


class Tried:
    """Files at the names of replies that were none: each version is read once."""

    def __init__(self, path: Callable[[str], object]) -> None:
        self._path = path
        self._marks: dict[str, tuple[int, ...]] = {}
        self._why: dict[str, str] = {}

    def is_new(self, name: str, mark: tuple[int, ...]) -> bool:
        """Whether this version is read for the first time; it is tried now."""
        if self._marks.get(name) == mark and name in self._why:
            return False
        self._why.pop(name, None)
        self._marks = {name: m for name, m in self._marks.items() if name in self._why}
        self._marks[name] = mark
        return True

    def refuse(self, name: str, error: FedqError, hint: str = "") -> None:
        """It is no reply."""
        self._why[name] = f"{self._path(name)} is not taken for it: {error}{f' ({hint})' if hint else ''}"
        log.warning("%s is not taken for a reply: %s", self._path(name), error)

    def why(self, name: str) -> str:
        """Why what lies there is no reply; "" if nothing is known to."""
        return self._why.get(name, "")
