r"""How names and texts that others chose are shown, so that what is printed cannot lie.

A *name* is letters of one script, digits and ``_-.``; a *text* may also have spaces and punctuation.
Everything else shows as ``\u{2800}``: what has no shape, turns the direction, combines with its
neighbour, or looks like a letter of the script beside it.

`visible` is the last door: whatever reaches a terminal, an error's text or a log went through it.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from datetime import UTC, datetime
from functools import lru_cache

MOST = 80
"""Characters of a name that are shown."""
_SIGNS = "_-."
_JAPANESE = ("HIRAGANA", "KATAKANA", "CJK", "KATAKANA-HIRAGANA", "IDEOGRAPHIC")
"""Written together, these count as one script."""


def name(text: str, *, also: str = "", most: int = MOST) -> str:
    """A name as it is shown.

    Args:
        also: further characters that stand for themselves, such as ``/:`` in places of source lines.
        most: longer names end in ``...``.
    """
    shown = _name(text, also)
    return shown if len(shown) <= most else f"{shown[:most]}..."


@lru_cache(maxsize=4096)
def _name(text: str, also: str) -> str:
    script = _script(text)
    return "".join(c if _is_plain(c, script) or c in also else escaped(c) for c in text)


def _is_plain(c: str, script: str) -> bool:
    return (c.isascii() and c.isdigit()) or c in _SIGNS or (bool(script) and script_of(c) == script)


def _script(text: str) -> str:
    """The script whose letters are shown: Latin if there is any, else that of the first letter."""
    found = [s for c in text if (s := script_of(c))]
    return "LATIN" if "LATIN" in found else next(iter(found), "")


def script_of(c: str) -> str:
    """The script of a letter that has a shape of its own; "" of anything else."""
    if unicodedata.category(c) not in ("Ll", "Lu", "Lt", "Lo", "Lm") or unicodedata.normalize("NFKC", c) != c:
        return ""
    words = unicodedata.name(c, "").split()
    if not words or "FILLER" in words:
        return ""
    if words[0] == "MODIFIER":
        return ""
    return "JAPANESE" if words[0] in _JAPANESE else words[0]


def place(line: str) -> str:
    """Where a source line stands, ``tour.py:9``."""
    return name(line, also=":")


def text(text: str, *, most: int = 300) -> str:
    """A note or a reason, on one line: letters, of one script in a word, digits, punctuation and single spaces."""
    shown = "".join(map(_word, _WORDS.findall(text)))
    return shown if len(shown) <= most else f"{shown[:most]}..."


_WORDS = re.compile(r" ?[^ ]+| ")


def _word(word: str) -> str:
    if word == " ":
        return escaped(word)
    script = _script(word)
    return "".join(c if c == " " or _is_visible(c, script) else escaped(c) for c in word)


def _is_visible(c: str, script: str) -> bool:
    if c.isascii() and not c.isalpha():
        return c.isprintable() and c != "\\"
    return (bool(script) and script_of(c) == script) or unicodedata.category(c) in _PUNCTUATION


_PUNCTUATION = ("Nd", "Po", "Pd", "Ps", "Pe", "Pi", "Pf", "Sc", "Sm", "No")


def time(seconds: float) -> str:
    """Seconds since 1970 as UTC, to the second; what no calendar has as the number that it is."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g} s after 1970"


def escaped(c: str) -> str:
    return f"\\u{{{ord(c):x}}}"


def visible(text: str) -> str:
    """A text of any kind with its lines: what a terminal would act on, and what nobody would see, is escaped."""
    if text.isascii():
        return _CONTROL.sub(lambda found: escaped(found[0]), text)
    return "".join(c if c == "\n" or (c.isprintable() and not _BLANK.match(c)) else escaped(c) for c in text)


_CONTROL = re.compile(r"[^\n -~]")
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U00013441\U00013442\U00016fe4\U0001d159\U000e0100-\U000e01ef]"
)
"""What Python calls printable and no font draws: fillers, selectors of variants, blanks."""


def line(text: str) -> str:
    """The same on one line: nobody's text can begin another."""
    return visible(text).replace("\n", escaped("\n"))


class _Lines(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = line(record.getMessage()), ()
        return True


LOGGERS = ("fedq", "fedq.client", "fedq.device", "fedq.device.pool", "fedq.queue", "fedq.config")


def mind_logs() -> None:
    """Have each message to our loggers be one visible line, whoever wrote parts of it; again is a no-op."""
    for log in map(logging.getLogger, LOGGERS):
        if not any(isinstance(f, _Lines) for f in log.filters):
            log.addFilter(_Lines())
