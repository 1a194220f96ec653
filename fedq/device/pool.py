"""Workers as the gate sees them: one batch in, one answer out, or a death with someone to blame.

A worker is started at the first batch, serves one requester on one device, and ends when idle
or past its deadline. Batches queue in the gate, so that work gathers while a worker is busy.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from fedq.device import wire
from fedq.device.wire import Sendable
from fedq.plan.codec import RawTensor
from fedq.plan.fold import MAX_STEPS

log = logging.getLogger("fedq.device.pool")

READS = 16
"""How often a worker's socket is read in one step of the gate, 64 KiB each; the rest is for the next step."""
HEARD_BYTES = 16 << 10
"""What is kept of what a worker writes to its standard error: the last of it, for the owner, if it ends."""
ANSWER_TEXT_BYTES = 4 << 20
ROW_TEXT_BYTES = 4 << 10
"""JSON of an answer: so much in all, and for each call and each result."""
ROW_ITEMS = 128
"""Items of that JSON for each call and each result: a shape has 64 sizes."""
EACH_BYTES = 1 << 10
"""What a value takes beside its bytes: a small tensor is mostly that."""
IDLE_S = 300.0
PAGE = struct.Struct("<4Q")
"""What a worker tells while it works: the number of its call, from 1, 0 before the first; step and steps of a
fold; whether it is ready, which it is once and for all."""
BATCH_BYTES = PAGE.size - 8
"""The bytes of the page that are zero when a batch begins: all but the last word."""
DEADLINE_S = 3600.0
"""How long one call may take, if the device's owner says nothing else."""
START_S = 300.0
"""How long a worker may take to be ready: many at once load torch slowly."""
ENDING_S = 0.2
"""How long a process that hung up may take to end, before it is ended."""
OUT_OF_MEMORY = 112
"""The exit status of a worker that had no memory for a batch, beside its calls."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a batch gave: one row per call, and their tensors; how long it took."""

    rows: list[Any]
    tensors: list[RawTensor]
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Died:
    """The worker ended in the middle.

    Attributes:
        at: the number of the call it was on, from 0.
        why: for the owner.
        kind: for the requester, a word of `kinds.KINDS`; ``signal``: what killed it, ``SIGKILL``.
    """

    at: int
    why: str
    kind: str = "other"
    signal: str = ""
    said: str = ""
    """The last of what it wrote to its standard error: for the owner's log alone."""


class Clock:
    """Whose time it is, and since when: a worker's start-up, its getting ready for a batch, each of its calls.

    The page is the word of an untrusted process: numbers that do not rise, or rise beyond the last
    call, give no more time. So a batch takes at most as many deadlines as it has calls, and one.

    Args:
        deadline_s: how long each call may take, and what comes before the first.

    Attributes:
        at: the call it is on, from 1; 0 before the first.
        ready: whether it has started.
    """

    def __init__(self, deadline_s: float, now: float) -> None:
        self._deadline_s, self._since = deadline_s, now
        self.ready, self._calls, self.at = False, 0, 0

    def start(self, calls: int, now: float) -> None:
        """A batch of so many calls is handed over."""
        self._calls, self.at = calls, 0
        self._since = now if self.ready else self._since

    def look(self, page: bytes, now: float) -> None:
        """Read the page: what is new there begins now."""
        call, _, _, ready = PAGE.unpack(page)
        at = min(call, self._calls)
        if at > self.at or (ready and not self.ready):
            self.at, self.ready, self._since = max(at, self.at), True, now

    def late(self, now: float) -> str:
        """Which time is over, in words; "" if none is."""
        limit_s = self._deadline_s if self.ready else START_S
        if now - self._since <= limit_s:
            return ""
        return f"took more than {limit_s:.0f} s" + ("" if self.at else " before its first call")


class Held:
    """Keys of the values and plans that a worker holds, the oldest first, and how much memory they take."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self.total_bytes = 0

    def __contains__(self, key: str) -> bool:
        return key in self._sizes

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._sizes))

    def add(self, key: str, size_bytes: int) -> None:
        size_bytes += EACH_BYTES
        self.total_bytes += size_bytes - self._sizes.pop(key, 0)
        self._sizes[key] = size_bytes

    def forget(self, key: str) -> bool:
        """Whether it was held."""
        size_bytes = self._sizes.pop(key, 0)
        self.total_bytes -= size_bytes
        return size_bytes > 0


class Worker(Protocol):
    """What runs batches: a process, or this thread."""

    held: Held

    def start(self, head: Any, tensors: Sequence[Sendable]) -> None: ...
    def poll(self) -> Answer | Died | None: ...
    def fileno(self) -> int: ...
    @property
    def idle_s(self) -> float: ...
    @property
    def spoke(self) -> bool: ...
    @property
    def progress(self) -> tuple[int, int]: ...
    def close(self) -> None: ...


class ProcessWorker:
    """A worker process.

    Args:
        threads: how many of the machine's cores it uses at a time.
        deadline_s: how long one call may take before the process is killed.
    """

    program: ClassVar[Sequence[str]] = ("-m", "fedq.device.worker")
    """What Python is to run."""

    def __init__(self, *, threads: int, deadline_s: float = DEADLINE_S) -> None:
        self.held = Held()
        self._page = wire.page(PAGE.size)
        self._sock, theirs = socket.socketpair()
        self._ear, mouth = os.pipe()
        os.set_blocking(self._ear, False)
        try:
            self._process = _started(self.program, theirs.fileno(), self._page, mouth, threads)
        except BaseException:
            self._let_go()
            raise
        finally:
            theirs.close()
            os.close(mouth)
        self._said = b""
        self._reader = wire.Reader(self._sock)
        self._began = self.idle_since = time.monotonic()
        self._clock = Clock(deadline_s, self._began)
        self.busy = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def idle_s(self) -> float:
        """How long it has had nothing to do."""
        return time.monotonic() - self.idle_since

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def spoke(self) -> bool:
        """Whether it said something though it was asked nothing, or ended."""
        if self.busy:
            return False
        try:
            self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    @property
    def progress(self) -> tuple[int, int]:
        """Step and steps of the fold that runs; (0, 0) of none. The worker's word: believed by nobody but people."""
        _, step, steps, _ = PAGE.unpack(self._told()) if self.busy else (0, 0, 0, 0)
        return min(step, steps), min(steps, MAX_STEPS)

    def _told(self) -> bytes:
        """The page, read and not mapped: whatever the worker does to it, reading it ends no gate."""
        return os.pread(self._page, PAGE.size, 0).ljust(PAGE.size, b"\0")

    def start(self, head: Any, tensors: Sequence[Sendable]) -> None:
        """Hand over a batch; a worker that does not take it is found dead by the next poll."""
        os.pwrite(self._page, bytes(BATCH_BYTES), 0)
        self.busy, self._began = True, time.monotonic()
        self._clock.start(len(head["calls"]), self._began)
        self._reader.expect(_limits(head["calls"]))
        self._sock.setblocking(False)  # a frame fits into the buffer of a socket from which all was read
        try:
            wire.send(self._sock, head, tensors)
        except OSError as error:
            log.warning("worker %d took no batch: %s", self.pid, str(error))
            self._process.kill()

    def poll(self) -> Answer | Died | None:
        """The answer if it is there; a worker past its deadline is killed."""
        if not self.busy:
            return None
        try:
            for _ in range(READS):
                if not self._reader.receive():
                    return self._ended()
                frame = self._reader.frame()
                if frame is not None:
                    return self._answer(frame)
            return self._late()
        except BlockingIOError:
            return self._late()
        except ConnectionError:  # it ended before it read all that it was sent
            return self._ended()
        except Exception as error:  # whatever an untrusted process sends, the gate goes on
            return self._died(f"sent what is no answer ({type(error).__name__})")

    def _answer(self, frame: tuple[Any, list[RawTensor]]) -> Answer | Died:
        if self._reader.left or not isinstance(frame[0], list):
            return self._died("sent what is no answer" if not self._reader.left else "sent more than one answer")
        self.busy, self.idle_since = False, time.monotonic()
        return Answer(*frame, took_s=self.idle_since - self._began)

    def _late(self) -> Died | None:
        now = time.monotonic()
        self._hear()
        self._clock.look(self._told(), now)
        why = self._clock.late(now)
        return self._died(why, "deadline") if why else None

    def _hear(self) -> None:
        """Read some of what it wrote to its standard error, so that it can write more; the last of it is kept."""
        with contextlib.suppress(OSError):
            self._said = (self._said + os.read(self._ear, 4 * HEARD_BYTES))[-HEARD_BYTES:]

    def _ended(self) -> Died:
        """It ended by itself, or was killed by another than the gate; its status is that end's, not the gate's."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING_S)
        self._clock.look(self._told(), time.monotonic())
        when = "" if self._clock.ready else " while it started"
        died = self._died(f"ended{when}")
        status = self._process.returncode
        if status < 0:
            name = _signal_name(-status)
            return replace(died, why=f"worker {self.pid} was killed by {name}{when}", kind="killed", signal=name)
        return replace(died, kind="out_of_memory") if status == OUT_OF_MEMORY else died

    def _died(self, why: str, kind: str = "other") -> Died:
        self._clock.look(self._told(), time.monotonic())
        self._hear()
        self.close()
        status = f", exit status {self._process.returncode}" if kind == "other" else ""
        said = self._said.decode("utf-8", "replace")
        return Died(max(0, self._clock.at - 1), f"worker {self.pid} {why}{status}", kind, said=said)

    def close(self) -> None:
        """End the process, whatever it does."""
        self.busy = False
        if self._page < 0:
            return
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        self._reader.close()
        self._let_go()

    def _let_go(self) -> None:
        self._sock.close()
        os.close(self._page)
        os.close(self._ear)
        self._page = self._ear = -1


def _started(program: Sequence[str], sock: int, page: int, mouth: int, threads: int) -> subprocess.Popen[bytes]:
    """A worker's process. What it writes to its standard error is its word, too, and goes to no file of the gate's."""
    command = [sys.executable, "-P", *program, str(sock), str(threads), str(page)]
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": mouth}
    return subprocess.Popen(command, pass_fds=(sock, page), env=environment(), **quiet)


def _limits(calls: Sequence[Sequence[Any]]) -> wire.Limits:
    """What the answer to these calls may hold: a row for each, results that were named, and no more bytes than
    the machine has memory."""
    results = sum(len(call[2]) for call in calls)
    rows = len(calls) + results
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return wire.Limits(ANSWER_TEXT_BYTES + rows * ROW_TEXT_BYTES, (rows + 1) * ROW_ITEMS, results, memory)


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def environment() -> dict[str, str]:
    """What a worker may know of its surroundings: how to find Python, and nothing of fedq's.

    Threads that wait for each other sleep: on a busy machine those that spin made a matrix product
    of 256 a hundred times slower.
    """
    keep = ("PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
    return {k: os.environ[k] for k in keep if k in os.environ} | {"OMP_WAIT_POLICY": "PASSIVE"}


class InlineWorker:
    """The same work in the calling thread: no process, no flag of torch changed."""

    busy = spoke = False
    idle_s = 0.0
    pid = 0
    progress = (0, 0)

    def __init__(self) -> None:
        from fedq.device.worker import Replayer

        self.held = Held()
        self._replayer = Replayer(fork_rng=True)
        self._answer: Answer | Died | None = None

    def fileno(self) -> int:
        return -1

    def start(self, head: Any, tensors: Sequence[Sendable]) -> None:
        from fedq.device.worker import do

        try:
            self._answer = Answer(*do(self._replayer, head, [wire.raw(t) for t in tensors], [0, 0, 0, 0]))
        except Exception as error:
            log.exception("a batch failed")
            self._answer = Died(0, f"the batch failed ({type(error).__name__})")

    def poll(self) -> Answer | Died | None:
        answer, self._answer = self._answer, None
        return answer

    def close(self) -> None:
        self._answer = None
