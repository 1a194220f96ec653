"""Types that a graph makes, as a worker without data finds them (`device.typist`); kept for its sender's next look."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedq import ids
from fedq.device import engine
from fedq.device.home import Home
from fedq.device.pool import environment
from fedq.errors import BadFile, SpecMismatch
from fedq.plan import typed
from fedq.plan.codec import parse_json
from fedq.plan.graph import Graph, Type, canonical, graph_to_json

PATIENCE_S = 20.0
"""How long the types of one graph are looked for. Who sent one that takes longer has no other looked at, that time."""
PIPE_BYTES = 4096
"""What a pipe that takes anything takes at once."""
MOST_BYTES, MOST_TEXT = 64 << 20, 1000
"""Of an answer, and of a reason."""
MOST_PROCESSES = 2
"""At once: each loads torch."""
NO_ANSWER = "the worker that finds types gave no answer"
VERSION = 1
"""Of how types are found: what another version kept is not used."""


class Typist:
    """The worker without data, started at the first question that nobody answered before; a context manager."""

    def __init__(self, home: Home, *, patience_s: float = PATIENCE_S) -> None:
        self._home, self._patience_s = home, patience_s
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        """By sender: what one of them takes over says nothing of another's graphs."""
        self._found: dict[str, Any] = {}
        self._late: set[str] = set()

    def __enter__(self) -> Typist:
        return self

    def __exit__(self, *_: object) -> None:
        for whose in list(self._processes):
            self._end(whose)
        if self._found:
            with self._home.journal.transaction():
                self._home.journal.set_foreseen(self._found)

    def _of(self, whose: str) -> subprocess.Popen[bytes]:
        if whose not in self._processes:
            if len(self._processes) >= MOST_PROCESSES:
                self._end(next(iter(self._processes)))
            self._processes[whose] = _started()
        return self._processes[whose]

    def _end(self, whose: str) -> None:
        if (process := self._processes.pop(whose, None)) is not None:
            process.kill()
            process.communicate()

    def types(self, graph: Graph, given: Sequence[Type], whose: str) -> Graph:
        """The graph, or its variant that is chosen, with the types it makes of inputs of these types.

        Args:
            whose: its sender's name.

        Raises:
            SpecMismatch: it does not take them; or it was not found in time what it makes.
        """
        question = [graph_to_json(graph), [str(t) for t in given]]
        key = ids.digest(canonical([VERSION, whose, graph.id, question[1]]))
        answer = self._found.get(key) or self._home.journal.foreseen(key)
        if answer is None:
            answer = self._ask(question, whose)
            self._found[key] = answer
        try:
            return _typed(graph, answer)
        except BadFile as error:
            raise SpecMismatch(f"{NO_ANSWER}: {error}") from None

    def _ask(self, question: Any, whose: str) -> Any:
        """What the worker says; that it took too long, or ended, is an answer, too, and is not tried again."""
        if whose in self._late:
            raise SpecMismatch("another graph of its sender took too long; look again")
        line = self._said(json.dumps(question).encode() + b"\n", self._of(whose))
        if not line:
            self._end(whose)
            self._late.add(whose)
            return {"refused": f"its types were not found in {self._patience_s:g} s"}
        try:
            return parse_json(line)
        except BadFile:
            return {"refused": NO_ANSWER}

    def _said(self, line: bytes, process: subprocess.Popen[bytes]) -> bytes:
        """A line for a line; nothing if it does not come in time, or is longer than any answer."""
        assert process.stdin is not None and process.stdout is not None
        asks, answers = process.stdin.fileno(), process.stdout.fileno()
        said, left, end = b"", memoryview(line), time.monotonic() + self._patience_s
        while not said.endswith(b"\n"):
            wait_s = max(0.0, end - time.monotonic())
            readable, writable, _ = select.select([answers], [asks] if left else [], [], wait_s)
            if not readable and not writable:
                return b""
            try:
                if writable:
                    left = left[os.write(asks, left[:PIPE_BYTES]) :]
                part = os.read(answers, 1 << 20) if readable else b""
            except OSError:
                return b""
            if readable and (not part or len(said) + len(part) > MOST_BYTES):
                return b""
            said += part
        return said


def _typed(graph: Graph, answer: Any) -> Graph:
    """The graph, or its variant, with the types of an answer, whatever that is; BadFile if it is none."""
    match answer:
        case {"refused": str(why)}:
            raise SpecMismatch(why[:MOST_TEXT])
        case [int(which), list(texts)] if type(which) is int and 0 <= which <= len(graph.variants):
            if all(type(part) is list for part in texts):
                chosen = (graph, *graph.variants)[which]
                found = typed.retyped(chosen, [[typed.parse(t) for t in part] for part in texts])
                return replace(found, params=graph.params)
    raise BadFile("neither types nor a reason")


def _started() -> subprocess.Popen[bytes]:
    engine.check()
    command = [sys.executable, "-P", "-m", "fedq.device.typist"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment(), bufsize=0, **pipes)
