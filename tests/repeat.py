"""A block under a token, done by real processes that end well or are killed: ``python -m tests.repeat ROOT``.

Reads a line of JSON per run, forks a process that does the block, and prints what came of it. Torch
is imported once, and no run knows of another but by the requester's home, the share and the device.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DURABLE = ("put.", "replace.", "make_dir.", "delete.", "outbox.")
LARGE = 300_000
"""Elements of a tensor whose message waits beside the outbox, not in it."""


def block(device: Any, plans: dict[str, Any], token: str, more: Callable[[str, Any], None]) -> None:
    """Everything that a block may hold; ``more`` is told each id and value as soon as it is there."""
    import torch

    import fedq as fq

    x = device.find("x")
    with device.batch(token=token):
        noisy = plans["noisy"].send(device)
        mine = device.send(torch.arange(2.0), tag="mine")
        large = device.send(torch.ones(LARGE))
        out = noisy(x)
        both = (out + mine) * 2
        both = both - 1
        device.ask([out])
        more("total", both.sum())
        more("first", out.get(timeout_s=60))
        again = noisy(torch.ones(2))
        step = plans["step"].send(device)
        carry = step.fold([torch.zeros(())], [device.find("rows")], batch_size=2, epochs=2, shuffle=True)
        more("seen", fq.gather([both, again, large[:2]], timeout_s=60))
        more("owner's", x.get(timeout_s=60))
        late = again + carry
        more("kept", carry.copy(timeout_s=60))
        more("again", again.get(timeout_s=60))
        more("plan", noisy.get(timeout_s=60))
        unread = noisy(late)
    more("late", late.get(timeout_s=60))
    more("out", out.copy(timeout_s=60))
    more("unread", unread.get(timeout_s=60))
    more("ids", [p.id for p in (mine, large, out, both, again, carry, late, unread)])
    more("all", fq.gather([late, out, unread, again], timeout_s=60))


def plans() -> dict[str, Any]:
    import torch

    import fedq as fq

    @fq.func2plan()
    def noisy(t: torch.Tensor) -> torch.Tensor:
        return t + torch.rand_like(t)

    @fq.func2plan(args_shape=[(), (-1,)])
    def step(c: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return c * 0.5 + rows.sum()

    return {"noisy": noisy.build(torch.ones(2)), "step": step}


class Kill:
    """Ends this process at a line of the block, before a durable step, or after some seconds; counts both."""

    def __init__(self, at: list[Any] | None) -> None:
        self.kind, self.at = at or ["", 0]
        self.lines = self.steps = 0

    def begin(self) -> None:
        from fedq import fs

        if self.kind == "time":
            signal.setitimer(signal.ITIMER_REAL, self.at)  # nobody handles its signal: it ends the process
        fs.FAILPOINTS["*"] = self.step
        sys.settrace(self.call)

    def end(self) -> None:
        from fedq import fs

        sys.settrace(None)
        fs.FAILPOINTS.clear()

    def call(self, frame: Any, event: str, _: Any) -> Any:
        return self.line if frame.f_code is block.__code__ else None

    def line(self, _: Any, event: str, __: Any) -> Any:
        if event in ("line", "return"):
            self.lines += 1
            self._die("line", self.lines)
        return self.line

    def step(self, name: str, call: Any, *args: Any, **how: Any) -> Any:
        if name.startswith(DURABLE) and name != "outbox.select":
            self.steps += 1
            self._die("step", self.steps)
        return call(*args, **how)

    def _die(self, kind: str, count: int) -> None:
        if (kind, count) == (self.kind, self.at):
            os.kill(os.getpid(), signal.SIGKILL)


def run(root: Path, built: dict[str, Any], token: str, at: list[Any] | None) -> dict[str, Any]:
    """One process's life: a client is made, the block is done, the client ends."""
    from tests.rig import client_of

    said: dict[str, Any] = {}
    kill = Kill(at)
    kill.begin()
    client = client_of(root)
    block(client.device("device_1"), built, token, lambda name, value: said.update({name: plain(value)}))
    client.close()
    kill.end()
    return {"said": said, "lines": kill.lines, "steps": kill.steps, "messages": messages(root)}


def command(root: Path, words: list[str], at: list[Any] | None) -> dict[str, Any]:
    """The life of a process that a shell starts: one command; all of the shell's files lie in the root."""
    os.chdir(root)
    os.environ |= {"FEDQ_HOME": str(root / "home"), "FEDQ_USER": "alice"}
    from fedq.cli.app import app
    from fedq.cli.call import guarded

    kill, out, err = Kill(at), io.StringIO(), io.StringIO()
    kill.begin()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = guarded(app, words)
    kill.end()
    said = {"out": out.getvalue(), "err": err.getvalue(), "code": code}
    return {"said": said, "steps": kill.steps, "messages": messages(root)}


def messages(root: Path) -> int:
    """How many messages were ever promised."""
    with contextlib.closing(sqlite3.connect(root / "home" / "outbox.sqlite")) as db:
        return int(db.execute("SELECT count(*) FROM messages").fetchone()[0])


def one(root: Path, built: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    if "words" in asked:
        return command(root, asked["words"], asked["kill"])
    return run(root, built, asked["token"], asked["kill"]) if asked["token"] else send_plans(root, built)


def send_plans(root: Path, built: dict[str, Any]) -> dict[str, Any]:
    """Another process's life: the plans are sent, on their own."""
    from tests.rig import client_of

    client = client_of(root)
    for plan in built.values():
        plan.send(client.device("device_1"))
    client.close()
    return {}


def plain(value: Any) -> Any:
    import torch

    from fedq.client.pointers import PointerTensor
    from fedq.plan.plan import Plan

    match value:
        case torch.Tensor():
            return value.tolist()
        case PointerTensor():
            return value.address
        case Plan():
            return value.file().id
        case list():
            return [plain(v) for v in value]
    return value


def main(root: Path) -> None:
    import torch

    torch.set_num_threads(1)
    built = plans()
    for line in sys.stdin:
        asked, (read, write) = json.loads(line), os.pipe()
        if (pid := os.fork()) == 0:
            os.close(read)
            try:
                found = one(root, built, asked)
            except BaseException as error:
                found = {"error": f"{type(error).__name__}: {error}"}
            os.write(write, json.dumps(found).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            came = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"code": code, **(json.loads(came) if came else {})}), flush=True)


class Runner:
    """The process that forks them, for tests."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-m", "tests.repeat", str(root)]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, cwd=Path(__file__).parents[1], text=True, **pipes)

    def __call__(self, token: str, kill: tuple[str, int] | None = None) -> dict[str, Any]:
        """What a process of its own said that did the block; ``kill``: ``line`` or ``step``, and which."""
        return self._ask({"token": token, "kill": kill})

    def command(self, *words: str, kill: tuple[str, int] | None = None) -> dict[str, Any]:
        """What a command of the shell's said."""
        return self._ask({"words": words, "kill": kill})

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def send_plans(self) -> None:
        assert self("") == {"code": 0}

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
