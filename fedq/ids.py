"""Ids and digests.

An id is 32 lower-case hex digits and opaque: nobody reads time or order out of it. A new one
is 48 bits of milliseconds and 80 random bits; a derived one is cut from SHA-256 of its parts.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from functools import lru_cache

_HEX = "0123456789abcdef"
PLAN_ID = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

NewId = Callable[[], str]
"""How fresh ids are made; tests give a counter."""


def new_id() -> str:
    """A fresh id, unique by 80 random bits."""
    return f"{time.time_ns() // 1_000_000 & (1 << 48) - 1:012x}" + os.urandom(10).hex()


def derive(domain: str, *parts: str | int) -> str:
    """The id that these parts always give; parts are length-prefixed, so none can imitate another."""
    return digest(*(str(p).encode() for p in (domain, *parts)))[:32]


def following(id_: str, count: int) -> str:
    """The id so many places behind: a listing has such in their order."""
    return f"{(int(id_, 16) + count) % (1 << 128):032x}"


def derive_seed(seed: int, part: str | int) -> int:
    """The seed of a part: 63 bits of SHA-256(seed, part); of a call by its first result, of an epoch by its number."""
    return int(digest(b"seed", str(seed).encode(), str(part).encode())[:16], 16) >> 1


def digest(*parts: bytes) -> str:
    """SHA-256 of length-prefixed parts, as 64 hex digits."""
    return hashlib.sha256(b"".join(both for p in parts for both in (len(p).to_bytes(8, "little"), p))).hexdigest()


def is_id(text: object) -> bool:
    return isinstance(text, str) and len(text) == 32 and not text.strip(_HEX)


def is_plan_id(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and _is_plan_id(text)


@lru_cache(maxsize=1024)
def _is_plan_id(text: str) -> bool:
    """Thousands of runs name one plan."""
    return PLAN_ID.fullmatch(text) is not None


def is_name(text: object) -> bool:
    """Whether this can name a device or requester: it becomes a directory name."""
    return isinstance(text, str) and NAME.fullmatch(text) is not None


def is_text(text: object, *, most: int = 300) -> bool:
    """Whether this can be a tag, token, name or line: 1 to ``most`` characters that neither control
    a terminal nor turn the direction of what is printed after them."""
    return isinstance(text, str) and 0 < len(text) <= most and not _UNPRINTABLE.search(text)


def as_text(text: str, *, most: int = 300) -> str:
    """The text as `is_text` wants it: odd characters as ``?``, cut to ``most``."""
    return _UNPRINTABLE.sub("?", text)[:most]
