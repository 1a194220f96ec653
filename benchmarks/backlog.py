"""What waits does not slow what comes next; and the same work through other queues.

The peers run in an environment of their own, made once in ``.bench``; where that can not be, or
one of them does not run, its row says why.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedq.client import fetch
from fedq.client.pointers import PointerTensor
from fedq.device.home import Home, Requester
from fedq.plan.codec import RawTensor
from fedq.queue.message import Get, Put, Ref, Run

try:
    from benchmarks.peers import PEERS
except ModuleNotFoundError:  # run as a script
    from peers import PEERS

HERE = Path(__file__).parent
JUNK = 20_000
WAITING = (0, 10_000, 100_000)
ROUNDS = 100
TAKE_S = 600.0

Row = Callable[..., None]


def next_message(device: Any) -> float:
    """Seconds from sending one small tensor until it is back."""
    id_ = device.client.new_id()
    start = time.perf_counter()
    device.submit([Put(id_, "t0"), Get(id_, (id_,))], {"t0": RawTensor("f32", (2,), bytes(8))})
    fetch.outcomes([PointerTensor(device, id_, None)], 60, take=True)
    return time.perf_counter() - start


def backlog(rig: Any, row: Row, *, waiting: tuple[int, ...] = WAITING) -> None:
    """Latency of the next message while so many of the same requester wait for an argument."""
    device, sent, first = rig.device, 0, 0.0
    plan, never = "0" * 64, device.client.new_id()
    folder = device.pair.carrier.path("in")
    for count in waiting:
        for _ in range(count - sent):
            device.submit([Run(plan, (Ref(never),), {}, (device.client.new_id(),))])
        sent = count
        end = time.monotonic() + TAKE_S
        while next(folder.iterdir(), None) is not None and time.monotonic() < end:
            time.sleep(0.05)
        for _ in range(10):
            next_message(device)
        took = statistics.median(next_message(device) for _ in range(ROUNDS)) * 1e6
        first = first or took
        against = f"{took / first:.2f} of that with none" if count else ""
        row(f"  next message, {count:,} waiting", f"{took:.0f} µs", against, "<= 2" if count else "")


def junk(rig: Any, row: Row, *, count: int = JUNK) -> None:
    """Latency of the next message while another requester's folder is full of what is no message."""
    home = Home(rig.config.devices / "device_1", rig.config)
    other = Requester("mallory-" + "0" * 8, "0" * 64)
    home.trust(other)
    home.poke()
    folder = home.pair(other.name).carrier.path("in")
    home.close()
    time.sleep(2)
    for _ in range(10):
        next_message(rig.device)
    before = statistics.median(next_message(rig.device) for _ in range(ROUNDS)) * 1e6
    for n in range(count // 4):
        for kind, make in enumerate((Path.touch, Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"))):
            make(folder / f"{kind:08x}{n:024x}.safetensors")
    time.sleep(5)
    after = statistics.median(next_message(rig.device) for _ in range(ROUNDS)) * 1e6
    row(
        f"  next message, {count:,} junk names elsewhere",
        f"{after:.0f} µs",
        f"{after / before:.2f} of that without",
        "<= 2",
    )


def peers(row: Row, where: Path) -> None:
    """Round trip and throughput of other queues, as they come and tuned."""
    try:
        python = environment()
    except (subprocess.SubprocessError, OSError) as error:
        row("  other queues", "skipped", f"their packages do not install: {str(error)[:80]}")
        return
    for name in PEERS:
        for how in ("default", "tuned"):
            folder = Path(tempfile.mkdtemp(prefix="peer-", dir=where))
            try:
                command = [str(python), str(HERE / "peers.py"), name, str(folder), how]
                done = subprocess.run(command, capture_output=True, text=True, timeout=180)
                if done.returncode:
                    row(f"  {name}, {how}", "skipped", (done.stderr.strip().splitlines() or ["?"])[-1][:80])
                else:
                    found = json.loads(done.stdout.splitlines()[-1])
                    row(f"  {name}, {how}", f"{found['median_us']:.0f} µs", f"{found['per_s']:.0f} calls/s")
            except subprocess.TimeoutExpired:
                row(f"  {name}, {how}", "skipped", "took more than 3 minutes")
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def environment() -> Path:
    """The Python that has the other queues; made at the first call."""
    folder, wanted = HERE.parent / ".bench", HERE / "peers.txt"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists() or ready.read_text() != wanted.read_text():
        venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q", "-r", str(wanted)]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        ready.write_text(wanted.read_text())
    return python


def bench_backlog(make: Callable[[Path, str], Any], row: Row, root: Path) -> None:
    where = Path(tempfile.mkdtemp(prefix="fedq-bench-", dir=root))
    try:
        print(f"\nbacklog, durability 'none', {where}")
        with make(where, "none") as rig:
            junk(rig, row)
            backlog(rig, row)
        print("\nother queues, the same little work, one consumer process")
        peers(row, where)
    finally:
        shutil.rmtree(where, ignore_errors=True)


if __name__ == "__main__":
    from run import Rig
    from run import row as print_row

    bench_backlog(Rig, print_row, Path(sys.argv[1] if len(sys.argv) > 1 else "/dev/shm"))
