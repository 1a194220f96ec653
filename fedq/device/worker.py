"""Replays what the gate hands it; holds no key, reads no file, keeps nothing when it ends.

Run as ``python -m fedq.device.worker FD``: a Unix socket to the gate. One worker serves one
requester. ``Replayer`` is the same work without the process, for a device inside this one.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fedq.device import fold, folding, kinds, wire
from fedq.device.pool import OUT_OF_MEMORY, PAGE
from fedq.errors import CannotRecord, FedqError, OtherTorch
from fedq.plan import optable, ranges, replay, spec
from fedq.plan.codec import RawTensor
from fedq.plan.fold import Loop, fit, output_names
from fedq.plan.graph import About, Graph, graph_from_json
from fedq.plan.tensors import from_raw, to_raw, type_of
from fedq.plan.verify import verify
from fedq.queue.watch import spin

Result = torch.Tensor | int | float | bool
MAX_COUNT = 1 << 63
"""Whole numbers that are results stay within 64 bits."""
MOST_TOLD = 300_000
"""Characters of whole texts of failures in one answer: twelve bytes each, at most."""
MOST_WORDS = 300
TOLD = ("action", "input", "step", "steps", "kind", "outputs")
"""Facts of a failure that the gate makes its words of."""


@dataclass(slots=True)
class _Plan:
    graph: Graph
    compiled: replay.Compiled
    state: tuple[torch.Tensor, ...]
    about: About
    admitted: set[Any] = field(default_factory=set)
    """Dtypes and shapes of inputs that were matched with the Spec before."""


@dataclass
class Replayer:
    """Plans and values of one requester, and the replaying of calls on them.

    Args:
        fork_rng: leave this process's random state as it was (a device inside another program).
    """

    fork_rng: bool = False
    plans: dict[str, _Plan] = field(default_factory=dict)
    values: dict[str, Result] = field(default_factory=dict)

    def load(
        self, plan: str, graph: Any, state: Sequence[RawTensor], params: Sequence[str], refused: Sequence[str] = ()
    ) -> None:
        """Verify and compile a plan; the gate verified it, but a process that replays trusts no one."""
        parsed = graph_from_json(graph)
        compiled = replay.compile(verify(parsed))
        about = About(params=tuple(params), refused=dict.fromkeys(refused, ""))
        self.plans[plan] = _Plan(parsed, compiled, tuple(map(from_raw, state)), about)

    def call(self, plan_id: str, args: Sequence[Any], results: Sequence[str], seed: int) -> list[Any]:
        """Replay once; ``["ok", [result, ...]]`` or ``["e", code, text, fields, whole text]``, never an exception.

        torch's words, which echo values, are in the whole text alone: the gate tells them to nobody but the owner.
        """
        try:
            plan = self.plans[plan_id]
            inputs = [self.values[a] if isinstance(a, str) else a["n"] for a in args]
            _match(plan, inputs)
            made = replay.run(plan.compiled, inputs, plan.state, seed=seed, fork_rng=self.fork_rng)
        except Exception as error:
            return _failed(error)
        self.values.update(zip(results, made, strict=True))
        return ["ok", list(made)]

    def fold(
        self,
        plan_id: str,
        args: Sequence[Any],
        results: Sequence[str],
        seed: int,
        loop: Loop,
        tensors: Sequence[RawTensor],
        page: folding.Page,
    ) -> list[Any]:
        """Replay over batches; a row as of `call`. An argument ``{"m": i}`` is mapped from tensor i of the frame."""
        try:
            plan = self.plans[plan_id]
            inputs = [self._input(a, tensors) for a in args]
            ranges.check(plan.about, inputs)
            fitted = fit(plan.graph, loop, [type_of(x) for x in inputs], about=plan.about)
            files = [f for a in args if "m" in a and (f := folding.file_of(tensors[a["m"]]))]
            made = folding.fold(
                plan.compiled, plan.state, inputs, loop, fitted,
                seed=seed, fork_rng=self.fork_rng, page=page, files=files,
                names=output_names(plan.graph, plan.about, loop.carry),
            )  # fmt: skip
        except Exception as error:
            row = _failed(error)
            row[3] |= {"step": page[1], "steps": page[2]} if isinstance(error, replay.ActionFailed) else {}
            return row
        named = zip(results, made, strict=True)
        self.values.update({name: x for name, x in named if not isinstance(x, FedqError)})
        return ["ok", made]

    def _input(self, arg: Any, tensors: Sequence[RawTensor]) -> Result:
        if isinstance(arg, str):
            return self.values[arg]
        return folding.mapped(tensors[arg["m"]]) if "m" in arg else arg["n"]


def _failed(error: Exception) -> list[Any]:
    """A row that says why; its last part, the engine's text, is for the device's owner alone."""
    code, text, fields = _told(error)
    return ["e", code, text, fields, _whole(error)]


def _told(error: Exception) -> tuple[str, str, dict[str, Any]]:
    cause = error.__cause__ if isinstance(error, replay.ActionFailed) else error
    if isinstance(cause, FedqError):
        facts = {k: v for k, v in cause.fields.items() if k in TOLD}
        return cause.code, str(cause)[:MOST_WORDS], facts
    kind = kinds.of_error(cause or error)
    if isinstance(error, replay.ActionFailed):
        return "failed", f"{error.op} failed", {"action": error.action, "op": error.op, "kind": kind}
    if isinstance(error, KeyError):
        return "missing_value", "an argument has no value", {}
    return "failed", f"replay stopped: {type(error).__name__}", {"kind": kind}


def _whole(error: Exception) -> str:
    """The traceback, its causes first; the last of it, if it is long."""
    return "".join(traceback.format_exception(error))[-kinds.MOST_TEXT :]


def _match(plan: _Plan, inputs: Sequence[Result]) -> None:
    """Check the inputs against the Spec, unless such inputs were before."""
    kinds = tuple((x.dtype, x.shape) if isinstance(x, torch.Tensor) else (type(x), x) for x in inputs)
    if kinds not in plan.admitted:
        spec.match(plan.graph, [type_of(x) for x in inputs], about=plan.about)
        ranges.check(plan.about, inputs)
        if len(plan.admitted) < 1000:
            plan.admitted.add(kinds)


def do(
    replayer: Replayer, head: Mapping[str, Any], tensors: Sequence[RawTensor], page: folding.Page
) -> tuple[Any, list[RawTensor]]:
    """One frame of work: forget, load, give, call; the answer's head and tensors.

    ``page[0]`` is the number of the call, from 1, from before it starts: a crash is blamed on it, its time begins.
    """
    for id_ in head.get("forget", ()):
        replayer.values.pop(id_, None)
    for plan, graph, state, *about in head.get("plans", ()):
        replayer.load(plan, graph, [tensors[i] for i in state], *about)
    for id_, given in head.get("give", ()):
        replayer.values[id_] = from_raw(tensors[given]) if type(given) is int else given["n"]
    rows: list[Any] = []
    out: list[RawTensor] = []
    for i, (plan, args, results, seed, loop) in enumerate(head["calls"]):
        page[0] = i + 1
        if loop is None:
            row = replayer.call(plan, args, results, seed)
        else:
            row = replayer.fold(plan, args, results, seed, fold.from_json(loop), tensors, page)
        rows.append(_sendable(replayer, results, row, out))
    _shorten(rows)
    return rows, out


def _sendable(replayer: Replayer, results: Sequence[str], row: list[Any], out: list[RawTensor]) -> list[Any]:
    """The row as it is sent. Results that no file can hold are a failure of their call, and of no other."""
    if row[0] != "ok":
        return row
    start = len(out)
    try:
        return ["ok", [_encode(r, out) for r in row[1]]]
    except Exception as error:
        del out[start:]
        for result in results:
            replayer.values.pop(result, None)
        return _failed(error)


def _encode(result: Result | FedqError | None, out: list[RawTensor]) -> Any:
    match result:
        case FedqError():
            return {"e": list(_told(result))}
        case torch.Tensor():
            out.append(to_raw(result))
            return len(out) - 1
        case bool() | float():
            return {"n": result}
        case int() if -MAX_COUNT <= result < MAX_COUNT:
            return {"n": result}
    raise CannotRecord(f"a result is of {type(result).__name__}, or beyond 64 bits: no file can hold it")


def _shorten(rows: Sequence[list[Any]]) -> None:
    """Leave out whole texts of failures, if there are too many: the gate takes no more (`pool.ANSWER_TEXT_BYTES`)."""
    left = MOST_TOLD
    for row in rows:
        if row[0] == "e":
            row[4] = row[4] if len(row[4]) <= left else ""
            left -= len(row[4])


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    threads = int(sys.argv[2])
    _die_with_parent()
    _check_torch()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the gate, which then ends this
    torch.set_num_threads(threads)
    replay.harden()
    gc.freeze()
    gc.set_threshold(100_000)
    page = memoryview(mmap.mmap(int(sys.argv[3]), PAGE.size)).cast("Q")
    page[3] = 1  # ready: what takes time from now on is the requester's
    with torch.inference_mode(), contextlib.suppress(BrokenPipeError, ConnectionResetError):
        try:
            _serve(sock, page)
        except Exception as error:
            if kinds.of_error(error) == "out_of_memory":
                traceback.print_exc()
                os._exit(OUT_OF_MEMORY)
            raise


def _check_torch() -> None:
    """The gate looked at what is installed; what was loaded is this."""
    try:
        optable.check_torch(torch.__version__)
    except OtherTorch as error:
        sys.exit(str(error))


def _serve(sock: socket.socket, page: folding.Page) -> None:
    """Do what comes, until the gate hangs up."""
    reader, replayer = wire.Reader(sock, trusted=True), Replayer()
    while True:
        frame = reader.frame()
        if frame is None:
            spin(lambda: select.select([sock], [], [], 0)[0])
            if not reader.receive():
                return
            continue
        rows, out = do(replayer, *frame, page)
        wire.send(sock, rows, out)


def _die_with_parent() -> None:
    """A worker must not outlive a killed gate (Linux; elsewhere the closed socket ends it)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(0)


if __name__ == "__main__":
    main()
