"""Types that a graph makes, as a worker without data finds them (`device.typist`); kept for the next look."""

from __future__ import annotations

import json
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
from fedq.plan.graph import Graph, Type, canonical, graph_to_json

PATIENCE_S = 20.0
"""How long the types of one graph are looked for. Who sent one that takes longer has no other looked at, that time."""
VERSION = 1
"""Of how types are found: what another version kept is not used."""


class Typist:
    """The worker without data, started at the first question that nobody answered before; a context manager."""

    def __init__(self, home: Home, *, patience_s: float = PATIENCE_S) -> None:
        self._home, self._patience_s = home, patience_s
        self._process: subprocess.Popen[bytes] | None = None
        self._found: dict[str, Any] = {}
        self._late: set[str] = set()

    def __enter__(self) -> Typist:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._found:
            with self._home.journal.transaction():
                self._home.journal.set_foreseen(self._found)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def types(self, graph: Graph, given: Sequence[Type], whose: str) -> Graph:
        """The graph, or its variant that is chosen, with the types it makes of inputs of these types.

        Args:
            whose: its sender's name.

        Raises:
            SpecMismatch: it does not take them; or it was not found in time what it makes.
        """
        question = [graph_to_json(graph), [str(t) for t in given]]
        key = ids.digest(canonical([VERSION, graph.id, question[1]]))
        answer = self._found.get(key) or self._home.journal.foreseen(key)
        if answer is None:
            answer = self._ask(question, whose)
            self._found[key] = answer
        match answer:
            case [int(which), list(texts)] if 0 <= which <= len(graph.variants):
                chosen = (graph, *graph.variants)[which]
                found = typed.retyped(chosen, [[typed.parse(t) for t in part] for part in texts])
                return replace(found, params=graph.params)
            case {"refused": str(why)}:
                raise SpecMismatch(why)
        raise BadFile("the worker that finds types gave no answer")

    def _ask(self, question: Any, whose: str) -> Any:
        """What the worker says; that it took too long, or ended, is an answer, too, and is not tried again."""
        if whose in self._late:
            raise SpecMismatch("another graph of its sender took too long; look again")
        line = self._said(json.dumps(question).encode() + b"\n")
        if not line:
            self._end()
            self._late.add(whose)
            return {"refused": f"its types were not found in {self._patience_s:g} s"}
        return json.loads(line)

    def _said(self, line: bytes) -> bytes:
        """A line for a line; nothing if it does not come in time."""
        if self._process is None:
            self._process = _started()
        process, said, end = self._process, b"", time.monotonic() + self._patience_s
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except OSError:
            return b""
        while not said.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                return b""
            part = process.stdout.read1(1 << 20)  # type: ignore[attr-defined]
            if not part:
                return b""
            said += part
        return said


def _started() -> subprocess.Popen[bytes]:
    engine.check()
    command = [sys.executable, "-P", "-m", "fedq.device.typist"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment(), **pipes)
