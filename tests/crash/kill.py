"""Where and when a process dies: at the n-th step of `fedq.fs`, at a named one, or at any microsecond."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedq import fs

PHASES = {
    "client": {
        "_finish_all": "restart", "__init__": "restart", "send": "send", "finish": "restart", "_read": "fetch",
        "outcomes": "fetch", "_wait": "fetch", "take": "collect", "settle": "collect", "sweep": "collect",
        "close": "end",
    },
    "device": {
        "_recover": "restart", "_rebuild": "restart", "__init__": "restart", "refresh": "restart",
        "_collect": "take", "_take": "take", "_again": "take", "clear": "take",
        "_start": "do", "_answered": "do", "settle": "do", "give_up": "do", "_record": "record",
        "publish": "publish", "note": "publish", "_act_for": "publish", "drop": "collect", "delete_files": "collect",
        "decide": "word", "add": "data", "remove": "data",
        "_sweep": "collect", "beat": "heartbeat", "tell": "catalog", "close": "end", "step": "take",
    },
}  # fmt: skip
"""The room and function that a step is part of -> the phase; the innermost one counts."""


@dataclass(frozen=True)
class Aim:
    """At the ``n``-th step (called ``name``, if given), or after ``after_s`` seconds."""

    n: int = 0
    name: str = ""
    after_s: float = 0.0


def phase() -> str:
    """What this process is doing, read off its stack."""
    frame = sys._getframe(2)
    while frame is not None:
        room = os.path.basename(os.path.dirname(frame.f_code.co_filename))
        if found := PHASES.get(room, {}).get(frame.f_code.co_name):
            return found
        frame = frame.f_back  # type: ignore[assignment]
    return "other"


def arm(aim: Aim, tell: Callable[[str], None], rng: random.Random) -> Counter[str]:
    """Make this process die there; the counter says how often each step was passed."""
    passed: Counter[str] = Counter()
    total = 0
    half = rng.random() < 0.5

    def step(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal total
        passed[name] += 1
        total += 1
        if aim.n and (passed[name] == aim.n and name == aim.name if aim.name else total == aim.n):
            if half and name.endswith(".write"):
                os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
            tell(f"K {phase()} {name}")
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    fs.FAILPOINTS["*"] = step
    if aim.after_s:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process wherever it is, as SIGKILL does
        signal.setitimer(signal.ITIMER_REAL, aim.after_s)
    return passed


class Aims:
    """Chooses where to kill: steps that were seldom hit come first, so that all are."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._passed: dict[str, Counter[str]] = {}
        self._length: dict[str, int] = {}
        self._took_s: dict[str, float] = {}
        self.hit: Counter[tuple[str, str]] = Counter()

    def learn(self, role: str, passed: Counter[str], took_s: float) -> None:
        """What a run that ended by itself went through."""
        self._passed.setdefault(role, Counter()).update(passed)
        length = sum(passed.values())
        self._length[role] = int(0.7 * self._length.get(role, length) + 0.3 * length)
        self._took_s[role] = 0.7 * self._took_s.get(role, took_s) + 0.3 * took_s

    def next(self, role: str) -> Aim:
        r = self._rng
        if role not in self._passed or r.random() < 0.04:
            return Aim()
        kind = r.random()
        if kind < 0.3:
            names = list(self._passed[role])
            some = r.sample(names, min(6, len(names)))
            return Aim(r.choice((1, 1, 1, 2)), min(some, key=lambda n: self.hit[role, n]))
        if kind < 0.5:
            return Aim(after_s=r.uniform(0.0005, 0.9 * self._took_s[role]))
        return Aim(r.randint(1, max(1, int(0.95 * self._length[role]))))
