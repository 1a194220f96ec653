"""The gate: one process without torch serves all devices of a root.

``step(now)`` does what can be done without waiting; ``serve`` waits for files, workers and the
owner in between. Only one gate runs per devices root, by a lock on its private disk.
"""

from __future__ import annotations

import io
import logging
import os
import selectors
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from fedq import fs, spelling
from fedq.config import Config
from fedq.device import engine
from fedq.device.home import GATE, Home, homes
from fedq.device.lanes import Crew
from fedq.device.pool import ProcessWorker, Worker
from fedq.device.serve import Served
from fedq.errors import AlreadyRunning, FedqError, OtherTorch, Unreachable
from fedq.queue.watch import Heard, Watch, spin

log = logging.getLogger("fedq.device")

SCAN_S = 1.0
"""How often the folders are looked through though nothing was heard."""
UP = "up"
WORKERS = "workers"
HOLD_S = 0.3
"""How long a lock is tried for that somebody may only have looked at."""


def gate_dir(config: Config) -> Path:
    """Where the gate of this devices root keeps lock, log and poke."""
    return config.devices / GATE


def hold(config: Config) -> fs.Lock:
    """The lock of this devices root: one gate serves it.

    Raises:
        AlreadyRunning: another does. Who only looks whether one does is waited for.
    """
    fs.check_folder(gate_dir(config))
    fs.make_dir(gate_dir(config))
    end = time.monotonic() + HOLD_S
    while True:
        try:
            return fs.lock(gate_dir(config) / "lock")
        except AlreadyRunning:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def marked_up(config: Config) -> list[str]:
    """Names of the devices that a gate shall serve."""
    return [n for n in homes(config) if UP in fs.names(config.devices / n)]


def mark(config: Config, name: str, *, up: bool) -> None:
    """Say that a gate shall serve this device, or shall not."""
    path = Home(config.devices / name, config).path / UP
    if up:
        fs.replace(path, [b""])
    else:
        fs.delete(path)


class Gate:
    """The devices it serves, and their workers.

    Args:
        names: the devices; None: those that are marked up, as that changes.
        worker: makes workers; default is a process each.
        workers: at most so many at a time, for one requester too; see `Crew`.

    Raises:
        OtherTorch: what is installed is not what the ops of plans were judged for.
    """

    def __init__(
        self,
        config: Config,
        names: Iterable[str] | None = None,
        *,
        worker: Callable[[], Worker] | None = None,
        workers: int | None = None,
        now: float | None = None,
    ) -> None:
        engine.check()
        self.config = config
        self.served: dict[str, Served] = {}
        self._names = None if names is None else list(names)
        self.crew = Crew((lambda _: worker()) if worker else self._process, workers)
        self._workers = workers
        self._failed: dict[str, str] = {}
        self.refresh(fs.clock() if now is None else now)

    def _process(self, deadline_s: float) -> Worker:
        engine.check()
        threads = max(1, (os.cpu_count() or 1) // max(1, self._workers or len(self.served)))
        return ProcessWorker(threads=threads, deadline_s=deadline_s)

    def refresh(self, now: float) -> None:
        """Serve the devices that shall be served, and no others; one that cannot be harms no other."""
        wanted = marked_up(self.config) if self._names is None else self._names
        for name in [n for n, served in self.served.items() if n not in wanted or served.twin is not None]:
            self._leave(name, now)
        for name in wanted:
            if name not in self.served:
                try:
                    home = Home(self.config.devices / name, self.config)
                    self.served[name] = Served(home, self.crew, now=now)
                    self._failed.pop(name, None)
                    log.info("%s: served", name)
                except FedqError as error:
                    self._grumble(name, str(error))
                    if self._names is not None:
                        raise

    def _leave(self, name: str, now: float) -> None:
        served = self.served.pop(name)
        with suppress(FedqError):
            served.beat(now, "down")
        served.close()
        served.home.close()
        log.info("%s: no longer served", name)

    def step(self, now: float, *, scan: bool = True, heard: Heard = None, due: bool = True) -> bool:
        """One step of every device; whether anything was done.

        Args:
            scan: look for new files; not needed when only a worker called.
            heard: names by folder; None: whatever there may be. due: whether folders are to be listed, too.
        """
        busy = False
        for name, served in self.served.items():
            busy |= self._try(name, partial(served.step, now, scan=scan, heard=heard, due=due))
            self._try(f"{name}'s heartbeat", partial(served.beat, now))
        return busy

    def _try(self, what: str, do: Callable[[], Any]) -> bool:
        """Do it; what goes wrong is said once, and the gate goes on: with a full disk it holds until there is room."""
        try:
            done = do()
            if self._failed.pop(what, None) is not None:
                log.info("%s: goes on", what)
            return bool(done)
        except FedqError as error:
            self._grumble(what, str(error))
        except Exception as error:
            if self._failed.get(what) != repr(error):
                log.exception("%s: a step failed", what)
            self._failed[what] = repr(error)
        return False

    def _grumble(self, name: str, text: str) -> None:
        """Say once what holds a device up."""
        if self._failed.get(name) != text:
            log.error("%s: held up: %s", name, text)
        self._failed[name] = text

    def serve(self, stop: Callable[[], bool]) -> None:
        """Serve until told to stop, or, when devices are marked, until none is."""
        watch = Watch()
        watch.add(gate_dir(self.config))
        looked, poked, heard = 0.0, None, True
        with selectors.PollSelector() as selector:
            selector.register(watch.fileno(), selectors.EVENT_READ)
            while not stop() and self._wanted():
                now = fs.clock()
                due = not looked <= now < looked + SCAN_S
                names = watch.heard() if heard or due else {}
                listed = due or names is None
                busy = self.step(now, scan=heard or due, heard=names or {}, due=listed)
                poke = self._poked() if heard or due else poked
                if due or poke != poked:
                    for served in self.served.values() if poke != poked else ():
                        self._try(served.name, served.refresh)  # who is trusted is said in files
                    looked, poked, heard = now, poke, True
                    self._try("the gate", partial(self._look_around, watch, now))
                    continue
                heard = self._wait(selector, watch, busy=busy)
        watch.close()

    def finish(self) -> None:
        """Let what runs come to its end; nothing new is begun."""
        self.crew.closing = True
        with selectors.PollSelector() as selector:
            while self.crew.busy:
                self._wait(selector)
                self.step(fs.clock(), scan=False)

    def _wanted(self) -> bool:
        """Whether there is something to serve, or was when it could last be told."""
        try:
            return bool(self.served or self._names is not None or marked_up(self.config))
        except FedqError:
            return True

    def _poked(self) -> tuple[int, ...] | None:
        with suppress(FedqError):
            return fs.fingerprint(gate_dir(self.config) / "poke")
        return None

    def _look_around(self, watch: Watch, now: float) -> None:
        self.refresh(now)
        if self._names is None and (said := workers(self.config)) != self._workers:
            self._workers = said
            self.crew.resize(said)
        for served in self.served.values():
            for peer in served.peers.values():
                watch.add(peer.pair.carrier.path("in"))
        self.crew.close_idle()
        self._check_torch()
        self._try("a worker that stands by", self.crew.stand_by)
        watch.wait(0)

    def _check_torch(self) -> None:
        """A torch that was changed meanwhile gets no call, not in a worker that loaded the one before either."""
        try:
            engine.check()
            self.crew.unfit = None
        except OtherTorch as error:
            self.crew.unfit = error

    def _wait(self, selector: selectors.BaseSelector, watch: Watch | None = None, *, busy: bool = False) -> bool:
        """Until a file, a worker or the clock calls; whether files are to be looked for. ``busy``: it was until now."""
        workers = self.crew.busy
        for worker in workers:
            selector.register(worker.fileno(), selectors.EVENT_READ)
        nap_s = min((s.nap_s for s in self.served.values()), default=SCAN_S)
        patient = any(s.patient for s in self.served.values())
        calls = (busy and nap_s and spin(lambda: selector.select(0))) or selector.select(0 if patient else nap_s)
        called = {key.fd for key, _ in calls}
        for worker in workers:
            selector.unregister(worker.fileno())
        if watch is None or watch.fileno() not in called:
            return not called
        return watch.drain()

    @property
    def trouble(self) -> str | None:
        """What holds a device up, if something does."""
        return next(iter(self._failed.values()), None)

    @property
    def pair_trouble(self) -> str | None:
        """What is wrong with the folder of one requester, if something is."""
        wrong = ((p.name, p.trouble) for served in self.served.values() for p in served.peers.values() if p.trouble)
        return next((f"the folder of {name} cannot be used ({code})" for name, code in wrong), None)

    @property
    def ready(self) -> bool:
        """Whether there is something to do at once."""
        return any(s.nap_s == 0 for s in self.served.values())

    @property
    def idle(self) -> bool:
        return all(s.idle for s in self.served.values())

    def close(self) -> None:
        """Say down, end the workers."""
        for name in list(self.served):
            self._leave(name, fs.clock())
        self.crew.end_fresh()


def workers(config: Config) -> int | None:
    """How many workers the gate may have, if its owner said."""
    if WORKERS not in fs.names(gate_dir(config)):
        return None
    text = bytes(fs.read(gate_dir(config) / WORKERS, limit_bytes=100)).decode()
    return int(text) if text.isdecimal() else None


def set_workers(config: Config, count: int) -> None:
    """Say how many workers the gate may have; one that runs follows."""
    fs.make_dir(gate_dir(config))
    fs.replace(gate_dir(config) / WORKERS, [str(count).encode()])


@contextmanager
def _logged(config: Config) -> Iterator[None]:
    """What a daemon would write to its log is written there, too, and warnings go where they went."""
    fs.make_dir(gate_dir(config))
    root, level = logging.getLogger("fedq"), logging.getLogger("fedq").level
    with fs.append(gate_dir(config) / "log") as out:
        handler = logging.StreamHandler(io.TextIOWrapper(out, "utf-8", write_through=True))
        handler.setFormatter(formatter())
        others = [handler] if root.hasHandlers() or logging.lastResort is None else [handler, logging.lastResort]
        for one in others:
            root.addHandler(one)
        root.setLevel(logging.INFO)
        try:
            yield
        finally:
            root.setLevel(level)
            for one in others:
                root.removeHandler(one)


class _Visible(logging.Formatter):
    """Tracebacks echo what others sent, too."""

    def format(self, record: logging.LogRecord) -> str:
        return spelling.visible(super().format(record))


def formatter() -> logging.Formatter:
    """How a line of the log looks."""
    made = _Visible("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    made.converter = time.gmtime
    return made


def serve_for(config: Config, names: Sequence[str], *, seconds: float) -> None:
    """Serve these devices for so long, and until what runs then is done: for cron."""
    end = time.monotonic() + seconds
    with hold(config), _logged(config):
        gate = Gate(config, names, workers=workers(config))
        try:
            gate.serve(lambda: time.monotonic() > end)
            gate.finish()
        finally:
            gate.close()


def serve_waiting(config: Config, names: Sequence[str]) -> None:
    """Serve what waits for these devices, then end: for cron.

    Raises:
        Unreachable: something waits and could not be served; it is not lost.
    """
    with hold(config), _logged(config):
        gate = Gate(config, names, workers=workers(config))
        try:
            with selectors.PollSelector() as selector:
                while gate.step(fs.clock()) or not gate.idle:
                    if gate.trouble is not None:
                        raise Unreachable(f"{' '.join(names)}: {gate.trouble}")
                    if not gate.ready:
                        gate._wait(selector)
            if (trouble := gate.pair_trouble) is not None:
                raise Unreachable(f"{' '.join(names)}: {trouble}")
        finally:
            gate.close()
