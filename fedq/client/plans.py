"""Plan files of this user: read ones that anybody signed, since sending them signs them anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedq import fs
from fedq.errors import BadFile, FileMissing, NotAllowed
from fedq.plan.codec import decode
from fedq.plan.file import KIND, PlanFile, decode_plan
from fedq.plan.verify import verify
from fedq.trust.keys import signer_of

if TYPE_CHECKING:
    from fedq.plan.plan import Plan

MAX_BYTES = 1 << 40


def read_plan(path: str | Path) -> PlanFile:
    """A plan file, whole and as it was signed. Its graph may still hold what no device admits.

    Raises:
        FileMissing, BadSignature, BadFile, BadVersion: each names the file.
    """
    try:
        raw = memoryview(fs.read(Path(path).absolute(), limit_bytes=MAX_BYTES))
        signer_of(KIND, raw)
        return decode_plan(decode(raw))
    except FileNotFoundError:
        raise FileMissing(f"no file {path}", hint=f"looked for {Path(path).absolute()}") from None
    except BadFile as error:
        raise type(error)(f"{path}: {error}", hint=error.hint) from None


def load(path: str | Path) -> Plan:
    """A plan from its file: it replays what was recorded, without the Python it came from.

    Raises:
        NotAllowed: it holds an op that is not allowed; names its line.
        as `read_plan`.
    """
    from fedq.plan.plan import from_file

    file = read_plan(path)
    try:
        verify(file.graph)
    except NotAllowed as error:
        line = file.about.line(error.fields.get("action", len(file.about.lines)))
        raise NotAllowed(f"{path}: {error}{f' ({line})' if line else ''}", **error.fields) from None
    return from_file(file)
