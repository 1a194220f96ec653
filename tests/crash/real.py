"""Real workers for the crash rig: forked from a process that has imported torch and never used it.

Everything but the start is as it is: `fedq.device.worker.main` on its socket, real replays. Some
of them end by kill -9 in the middle of a call, before it, or before they answer.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

DIES = 0.2
"""How many of the workers kill themselves at one of their first calls."""


class Zygote:
    """A process that forks workers when asked; ends with its parent."""

    def __init__(self, seed: int = 0) -> None:
        self.path = f"\0fedq-crash-{os.getpid()}"
        server = socket.socket(socket.AF_UNIX)
        server.bind(self.path)
        server.listen(16)
        self.pid = os.fork()
        if not self.pid:
            try:
                _serve(server, random.Random(seed))
            finally:
                os._exit(1)
        server.close()

    def worker(self, *_: Any, **how: Any) -> Any:
        """A `ProcessWorker` whose process comes from here."""
        from fedq.device import pool

        pool.subprocess.Popen = self._popen  # type: ignore[misc,assignment]
        how.setdefault("threads", 1)
        return pool.ProcessWorker(**how)

    def _popen(self, command: list[str], *, pass_fds: tuple[int, ...], **_: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.path)
            socket.send_fds(sock, [b"."], list(pass_fds))
            pid, fds, _, _ = socket.recv_fds(sock, 20, 1)
        return _Process(int(pid), fds[0])


class _Process:
    returncode = -9

    def __init__(self, pid: int, fd: int) -> None:
        self.pid, self._fd = pid, fd

    def kill(self) -> None:
        signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def wait(self) -> int:
        return self.returncode


def _serve(server: socket.socket, rng: random.Random) -> None:
    from fedq.device import worker

    worker._die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        sock, _ = server.accept()
        _, fds, _, _ = socket.recv_fds(sock, 1, 2)
        dies_at = rng.randint(1, 6) if rng.random() < DIES else 0
        pid = os.fork()
        if not pid:
            server.close()
            _work(worker, fds, dies_at)
        for fd in fds:
            os.close(fd)
        try:
            pidfd = os.pidfd_open(pid)
            socket.send_fds(sock, [b"%d" % pid], [pidfd])
            os.close(pidfd)
        except OSError:  # who asked is dead already
            pass
        sock.close()


def _work(worker: Any, fds: list[int], dies_at: int) -> None:
    count = 0

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return step

    try:
        if dies_at:
            worker.Replayer.call = deadly(worker.Replayer.call)
            worker.Replayer.load = deadly(worker.Replayer.load)
            worker.wire.send = deadly(worker.wire.send)
        sys.argv = ["worker", str(fds[0]), "1", str(fds[1])]
        worker.main()
    finally:
        os._exit(0)
