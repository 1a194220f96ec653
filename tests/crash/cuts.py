"""Real power cuts: a loop-mounted ext4 and xfs is shut down under a requester and a gate, as if the plug was pulled.

``FS_IOC_SHUTDOWN`` with NOLOGFLUSH drops all that is not on the disk yet, the journal too. Queue,
homes, outbox and journal lie on the disk that is cut. Needs root and loop devices; says so where
it can not run.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedq.client.session import Client
from fedq.errors import FedqError
from fedq.local import introduce
from tests.crash import roles
from tests.crash.lane import START, check_promised, config_of, small_limits
from tests.crash.model import Model, Violation
from tests.crash.roles import NAME

SHUTDOWN, NOLOGFLUSH = 0x8004587D, 2
MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
SIZE = {"ext4": "256M", "xfs": "400M"}


class CanNotRun(Exception):
    """Not root, no loop device, no such file system."""


class Disk:
    """A file system in a file, that can be cut and mounted again."""

    def __init__(self, kind: str, where: Path) -> None:
        self.kind, self.at, self._image = kind, where / kind, where / f"{kind}.img"
        if os.geteuid() != 0:
            raise CanNotRun("needs root")
        if shutil.which(MAKE[kind][0]) is None:
            raise CanNotRun(f"{MAKE[kind][0]} is not installed")
        self.at.mkdir()
        _run("truncate", "-s", SIZE[kind], str(self._image))
        _run(*MAKE[kind], str(self._image))
        self._loop = _run("losetup", "--direct-io=on", "--show", "-f", str(self._image)).strip()
        try:
            self.mount()
        except CanNotRun:
            _run("losetup", "-d", self._loop)
            raise

    def mount(self) -> None:
        _run("mount", "-t", self.kind, self._loop, str(self.at))

    def cut(self) -> None:
        """Pull the plug."""
        at = os.open(self.at, os.O_RDONLY)
        try:
            fcntl.ioctl(at, SHUTDOWN, struct.pack("I", NOLOGFLUSH))
        finally:
            os.close(at)

    def again(self) -> None:
        _unmount(self.at)
        self.mount()

    def close(self) -> None:
        _unmount(self.at)
        with contextlib.suppress(CanNotRun):
            _run("losetup", "-d", self._loop)
        self._image.unlink()


def _unmount(at: Path) -> None:
    for _ in range(100):
        with contextlib.suppress(CanNotRun):
            _run("umount", str(at))
            return
        time.sleep(0.05)
    raise CanNotRun(f"{at} can not be unmounted")


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise CanNotRun(f"{command[0]}: {said.strip()}") from None


@contextlib.contextmanager
def child(work: Callable[[Callable[[str], None]], None]) -> Iterator[tuple[int, Any]]:
    """A process of its own; what it tells comes through a pipe, which no cut touches."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        with contextlib.suppress(BaseException):
            work(lambda line: os.write(write, line.encode() + b"\n"))  # type: ignore[func-returns-value,arg-type]
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        yield pid, pipe


def requester(root: Path, seed: int, now: float, model: Model) -> Callable[[Callable[[str], None]], None]:
    def work(tell: Callable[[str], None]) -> None:
        for n in range(1000):
            roles.Requester(config_of(root), random.Random(seed * 1000 + n), now + 9 * n, tell, model).live()

    return work


def gate(root: Path, now: float) -> Callable[[Callable[[str], None]], None]:
    def work(_: Callable[[str], None]) -> None:
        for n in range(1000):
            roles.serve(config_of(root), now + 9 * n)

    return work


def one_root(disk: Disk, root: Path, cuts: int, rng: random.Random) -> tuple[int, int]:
    """Cuts under load, then rest: messages promised, replies seen."""
    root.mkdir()
    config = config_of(root)
    introduce(config, NAME)
    Client(config).close()
    os.sync()
    model, now = Model(), START
    for _ in range(cuts):
        now += 20_000
        with (
            child(requester(root, rng.getrandbits(32), now, model)) as (asks, told),
            child(gate(root, now)) as (serves, _),
        ):
            time.sleep(rng.uniform(0.3, 1.5))
            disk.cut()
            for pid in (asks, serves):
                os.kill(pid, signal.SIGKILL)
            lines = told.read().splitlines()
        for pid in (asks, serves):
            os.waitpid(pid, 0)
        for line in lines:
            model.told(line)
        disk.again()
        _look(root, model)
    for _ in range(4):
        now += 8000
        for work in (lambda _: Client(config, now=lambda: now).close(), gate_once(root, now)):  # noqa: B023
            with child(work) as (pid, pipe):
                pipe.read()
            os.waitpid(pid, 0)
        _look(root, model)
    check_promised(config)
    if lost := model.lost(()):
        raise Violation(f"LOST: {lost[:3]}, {len(lost)} in all, whose send had returned")
    return len(model.returned), len(model.replies)


def gate_once(root: Path, now: float) -> Callable[[Callable[[str], None]], None]:
    return lambda _: roles.serve(config_of(root), now, most=200)


def _look(root: Path, model: Model) -> None:
    from fedq.device.home import Home

    home = Home(root / "devices" / NAME, config_of(root))
    trusted = home.trusted()[0]
    model.look(home.pair(trusted.name), bytes.fromhex(trusted.key), home.key.public)
    home.close()


def run(kind: str, where: Path, *, cuts: int, seed: int) -> str:
    """So many cuts on one kind of disk; what came of it."""
    small_limits()
    logging.getLogger("fedq").setLevel(logging.CRITICAL)
    disk = Disk(kind, where)
    began = time.monotonic()
    try:
        promised, replies = one_root(disk, disk.at / "root", cuts, random.Random(seed))
    finally:
        disk.close()
    took_s = time.monotonic() - began
    said = f"{kind}: {cuts} cuts in {took_s:.0f} s, {promised} sends returned, {replies} files seen"
    return f"{said}; lost 0, torn 0, changed 0"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.cuts", description=__doc__)
    parser.add_argument("--cuts", type=int, default=12)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--where", type=Path, default=None)
    args = parser.parse_args()
    seed = int.from_bytes(os.urandom(4), "big") if args.seed is None else args.seed
    where = Path(tempfile.mkdtemp(prefix="fedq-cuts-", dir=args.where))
    bad = 0
    for kind in MAKE:
        try:
            print(run(kind, where, cuts=args.cuts, seed=seed), flush=True)
        except CanNotRun as error:
            print(f"{kind}: skipped: {error}")
        except (Violation, FedqError) as error:
            bad += 1
            print(f"VIOLATION: {kind}, seed {seed}: {error}")
    shutil.rmtree(where, ignore_errors=True)
    return bad


if __name__ == "__main__":
    sys.exit(main())
