"""``make bench``: speed and size, as ratios against something run side by side in the same run.

Medians throughout. Each row says what it is measured against and the first target; file systems
are named, because some (ext4 without a journal) slow down under churn.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import fedq as fq
from fedq import config as configs
from fedq import fs
from fedq.client.session import Client
from fedq.config import Config
from fedq.device import daemon, gate
from fedq.device.home import Home
from fedq.local import introduce
from fedq.plan.capture import record
from fedq.plan.recording import Free, In
from fedq.plan.tensors import to_raw

if __package__:
    from benchmarks.backlog import bench_backlog
    from benchmarks.fold import bench_fold
    from benchmarks.pong import playing
else:
    from backlog import bench_backlog
    from fold import bench_fold
    from pong import playing

DURABLE_WRITES = 5
"""Of a round trip: outbox, message, journal when it is taken and when it is done, reply."""
DURABLE_SEND = 2
"""Of a call that is a message of its own, one after the other: outbox, message. The device's go on beside."""
HAND_OVERS = 4
"""Of a round trip, from one process that then waits to the next: requester, gate, worker, gate, requester. A
ping-pong has two."""


def median_us(call: Callable[[], object], *, repeat: int = 200) -> float:
    """Median of single calls, µs; a tenth of them first, unmeasured."""
    times = []
    for n in range(repeat + repeat // 10):
        start = time.perf_counter_ns()
        call()
        if n >= repeat // 10:
            times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def side_by_side(*calls: Callable[[], object], repeat: int) -> tuple[float, ...]:
    """Medians of each, µs; taken in turns, so that what the machine does meanwhile meets all."""
    turns = [[median_us(call, repeat=repeat) for call in calls] for _ in range(5)]
    return tuple(map(statistics.median, zip(*turns, strict=True)))


def row(what: str, value: str, against: str = "", target: str = "") -> None:
    print(f"{what:<44} {value:>16}   {against:<40} {target}".rstrip(), flush=True)


def file_system(path: Path) -> str:
    """Type and mount of the file system a path lies on, from /proc/mounts."""
    best = ("", "?")
    mounts = Path("/proc/mounts")
    for line in mounts.read_text().splitlines() if mounts.exists() else ():
        _, mount, kind, *_ = line.split()
        if path.resolve().is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return f"{best[1]} on {best[0]}"


# -- replay ----------------------------------------------------------------------------------


def chain(count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def ops(x: torch.Tensor) -> torch.Tensor:
        for n in range(count // 2):
            x = torch.abs(x + x) if n % 2 else torch.relu(x * 0.5)
        return x

    return ops


def bench_replay() -> None:
    print("\nreplay: plan.compiled() against eager, both under inference_mode")
    x = torch.randn(2)
    with torch.inference_mode():
        for count in (2, 100, 1000):
            function = chain(count)
            plan = fq.func2plan()(function)
            plan.build(x)
            compiled = plan.compiled()
            ours, eager = side_by_side(
                lambda c=compiled: c(x), lambda f=function: f(x), repeat=max(50, 20_000 // count)
            )
            row(
                f"  {count} ops on 2 elements",
                f"{ours / eager:.2f} of eager",
                f"{ours:.1f} µs against {eager:.1f}",
                "<= 1.0",
            )
        net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
        batch = torch.randn(32, 64)
        plan = fq.func2plan()(net)
        plan.build(batch)
        compiled = plan.compiled()
        ours, eager = side_by_side(lambda: compiled(batch), lambda: net(batch), repeat=1000)
        row("  MLP 64-128-10, batch 32", f"{ours / eager:.2f} of eager", f"{ours:.1f} µs against {eager:.1f}", "<= 1.0")


def bench_build() -> None:
    print("\nbuild: all captures and checks, warm")
    x = torch.randn(2)
    for count in (2, 100):
        took = median_us(lambda n=count: fq.func2plan()(chain(n)).build(x), repeat=5) / 1e6
        row(f"  {count} ops", f"{took:.3f} s", "", "< 0.5 s" if count == 100 else "")
    once = median_us(lambda: record(lambda _, x: chain(100)(x), [In("f32", (Free(5),))], ()), repeat=10) / 1e6
    row("  100 ops, one capture", f"{once:.3f} s", "", "< 0.1 s")


# -- the queue -------------------------------------------------------------------------------


class Rig:
    """A root of its own with one device, its daemon running."""

    def __init__(self, root: Path, durability: str) -> None:
        self.config: Config = dataclasses.replace(
            configs.find(cwd=root),
            queue=root / "queue",
            devices=root / "devices",
            home=root / "home",
            durability=durability,
        )
        introduce(self.config, "device_1")
        home = Home(self.config.devices / "device_1", self.config)
        home.add(to_raw(torch.tensor([-1.0, 2.0])), tag="input_data", release="open")
        home.close()
        gate.mark(self.config, "device_1", up=True)
        daemon.start(self.config)
        self.client = Client(self.config)
        self.device = self.client.device("device_1")

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        daemon.stop(self.config)
        self.client.close()


def double_abs() -> fq.Plan:
    @fq.func2plan(args_shape=[(-1,)])
    def double_abs(x):
        x = x + x
        return torch.abs(x)

    return double_abs


def bench_queue(root: Path, durability: str) -> None:
    where = Path(tempfile.mkdtemp(prefix="fedq-bench-", dir=root))
    print(f"\nqueue, durability {durability!r}, {file_system(where)}")
    try:
        with playing(where) as throw, Rig(where, durability) as rig:
            throughput(rig, *round_trip(rig, bare_put(where, durable=durability == "full"), throw))
    finally:
        shutil.rmtree(where, ignore_errors=True)


def bare_put(where: Path, *, durable: bool) -> Callable[[], None]:
    folder = where / "bare"
    folder.mkdir()
    count = iter(range(1 << 30))
    return lambda: fs.put(folder / str(next(count)), [b"x" * 500], durable=durable)


def round_trip(rig: Rig, put: Callable[[], None], throw: Callable[[], None]) -> tuple[float, float]:
    """Prints it beside bare puts and ping-pongs of the same minutes; what one of these took, µs."""
    pointer = double_abs().send(rig.device)
    x = rig.device.find("input_data")
    pointer(x).get(timeout_s=60)

    took, put_us, pong_us = side_by_side(lambda: ask(rig, pointer, x), put, throw, repeat=100)
    puts, hands, pong = took / (DURABLE_WRITES * put_us), took / (HAND_OVERS * pong_us / 2), took / pong_us
    row("  round trip of a 2-op run and get", f"{took:.0f} µs", "", "< 1000 µs on tmpfs")
    row(
        "    against as many bare puts in sequence",
        f"{puts:.2f} of it",
        f"{DURABLE_WRITES} of {put_us:.0f} µs",
        "<= 1.5 on a disk, durability 'full'",
    )
    row(
        "    against as many bare inotify hand-overs",
        f"{hands:.2f} of it",
        f"{HAND_OVERS} of {pong_us / 2:.0f} µs",
        "<= 4, durability 'none'",
    )
    row("    against one bare inotify ping-pong", f"{pong:.2f} of it", f"{pong_us:.0f} µs")
    return put_us, pong_us


def ask(rig: Rig, pointer: fq.client.pointers.PointerPlan, x: fq.client.pointers.PointerTensor) -> torch.Tensor:
    """One message there, one reply back."""
    with rig.device.batch():
        out = pointer(x)
        return out.copy(timeout_s=60)


def throughput(rig: Rig, put_us: float, pong_us: float) -> None:
    """Each row begins after a full collection: one of all that torch imports takes 0.2 s, and is no row's own."""
    pointer = double_abs().send(rig.device)
    x = rig.device.find("input_data")
    count = 2000
    gc.collect()
    start = time.perf_counter()
    outs = []
    for _ in range(count):
        outs.append(pointer(x))
    fq.gather(outs, timeout_s=120)
    took = time.perf_counter() - start
    row("  sustained, one call per message", f"{count / took:.0f} calls/s", f"{count} calls", "2,000/s on tmpfs")
    each_us = took / count * 1e6
    row(
        "    a call against as many bare puts in sequence",
        f"{each_us / (DURABLE_SEND * put_us):.2f} of it",
        f"{DURABLE_SEND} of {put_us:.0f} µs",
        "<= 1.5 on a disk, durability 'full'",
    )
    row(
        "    a call against a bare inotify ping-pong",
        f"{each_us / pong_us:.2f} of it",
        f"{pong_us:.0f} µs",
        "<= 4, durability 'none'",
    )
    count = 20_000
    gc.collect()
    start = time.perf_counter()
    with rig.device.batch():
        outs = [pointer(x) for _ in range(count)]
    fq.gather(outs, timeout_s=120)
    took = time.perf_counter() - start
    row("  sustained, gathered", f"{count / took:.0f} calls/s", f"{count} calls", "20,000/s")


def bench_sizes(root: Path) -> None:
    print("\nbytes")
    where = Path(tempfile.mkdtemp(prefix="fedq-bench-", dir=root))
    try:
        plan = double_abs()
        plan.save(where / "plan.safetensors")
        row("  plan of 2 ops, signed file", f"{(where / 'plan.safetensors').stat().st_size} B")
        worker = fq.VirtualWorker(id="device_1", data={"input_data": torch.tensor([-1.0, 2.0])})
        pointer = plan.send(worker)
        before = set(worker.pair.carrier.list("in"))
        with worker.batch():
            pointer(worker.find("input_data"))
        new = set(worker.pair.carrier.list("in")) - before
        size = sum(worker.pair.carrier.path(f"in/{name}").stat().st_size for name in new)
        row("  call without tensors, signed file", f"{size} B", "", "< 1 kB")
    finally:
        shutil.rmtree(where, ignore_errors=True)


def bench_help() -> None:
    print("\ncommand line")
    command = [str(Path(sys.executable).with_name("fedq")), "--help"]
    took = median_us(lambda: subprocess.run(command, check=True, capture_output=True), repeat=10) / 1e6
    bare = median_us(lambda: subprocess.run([sys.executable, "-c", ""], check=True), repeat=10) / 1e6
    row("  fedq --help", f"{took:.3f} s", f"bare python: {bare:.3f} s", "< 0.25 s")


# -- training --------------------------------------------------------------------------------


def bench_training() -> None:
    print("\ntraining: one step of fq.training_plan against the same step in eager, batch 32")
    x, y = torch.randn(32, 64), torch.randint(0, 10, (32,))
    for name, make in OPTIMIZERS.items():
        net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
        optimizer = make(net.parameters())
        start = time.perf_counter()
        plan = fq.training_plan(net, torch.nn.functional.cross_entropy, optimizer, x, y)
        built = time.perf_counter() - start
        step, carry = plan.compiled(), plan.carry()
        ours, eager = side_by_side(
            lambda s=step, c=carry: _replayed(s, c, x, y), lambda n=net, o=optimizer: _eager(n, o, x, y), repeat=50
        )
        value, told = f"{ours / eager:.2f} of eager", f"{ours:.0f} µs against {eager:.0f}, built in {built:.2f} s"
        row(f"  MLP 64-128-10, {name}", value, told, "<= 1.0")


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1),
    "SGD, momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01),
}


def _replayed(step: Callable[..., object], carry: object, x: torch.Tensor, y: torch.Tensor) -> None:
    with torch.inference_mode():
        step(carry, x, y)


def _eager(net: torch.nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()


def main() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(
        f"fedq {fq.__version__}, torch {torch.__version__}, Python {platform.python_version()}, {cores} cores, "
        f"{platform.platform()}"
    )
    bench_replay()
    bench_training()
    bench_build()
    bench_fold(row)
    shm = Path("/dev/shm")
    if shm.is_dir():
        bench_queue(shm, "full")
        bench_queue(shm, "none")
    else:
        print("\nqueue on tmpfs: skipped, there is no /dev/shm")
    bench_queue(Path(tempfile.gettempdir()), "full")
    bench_sizes(Path(tempfile.gettempdir()))
    bench_help()
    bench_backlog(Rig, row, shm if shm.is_dir() else Path(tempfile.gettempdir()))


if __name__ == "__main__":
    main()
