"""Start, stop and watch the process that serves this machine's devices."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from fedq import fs
from fedq.client import fetch
from fedq.client.device import Device
from fedq.client.session import Client
from fedq.config import Config
from fedq.device import boots, daemon, engine, gate, review
from fedq.device.daemon import log_file as log_file
from fedq.device.home import Home, Requester, homes
from fedq.errors import AlreadyRunning, FedqError, OldCopy, UnknownDevice, Unreachable, UsageError
from fedq.queue import pair as pairs
from fedq.queue.pair import Heartbeat
from fedq.trust import keys

READY_S = 20.0
SILENT_S = 15.0
"""A device that was not heard for so long is not up, whatever it said last."""


def mark(config: Config, names: Sequence[str] | None, *, up: bool) -> list[str]:
    """Say which devices shall be served, or not; all if none are named. Their names, once each."""
    wanted = list(dict.fromkeys(names or homes(config)))
    if up and not wanted:
        raise UsageError(f"no devices in {config.devices}", hint="fedq device init NAME")
    if up:
        engine.check()
    for name in wanted:
        home = Home(config.devices / name, config)
        if up:
            home.check_root()
            boots.check(home)
        home.close()
    for name in wanted:
        gate.mark(config, name, up=up)
    return wanted


def start(config: Config, names: Sequence[str]) -> int:
    """Start the gate or join the one that runs, and wait until it serves these devices; its pid."""
    since = 0.0 if daemon.pid(config) else fs.clock()
    _poke(config, names)
    for _ in range(2):  # one that was about to end when it was joined is started anew
        pid = daemon.start(config)
        _wait(lambda: all(_is_up(config, name, since) for name in names) or not daemon.pid(config))
        if daemon.pid(config):
            break
    late = [name for name in names if not _is_up(config, name, since)]
    if late:
        raise Unreachable(f"process {pid} does not serve {', '.join(late)}", hint=_last_words(config))
    return pid


def stop(config: Config, names: Sequence[str]) -> list[str]:
    """Let the gate leave these devices; it ends when none is left. Those that it served."""
    if not daemon.pid(config):
        return []
    were = [name for name in names if _is_up(config, name)]
    if gate.marked_up(config):
        _poke(config, names)
        _wait(lambda: not any(_is_up(config, name) for name in were))
    else:
        daemon.stop(config)
    return were


def serve_here(config: Config, names: Sequence[str]) -> None:
    """Serve in this process until Ctrl-C, saying on stderr what happens."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        daemon.run(config)
    finally:
        for name in names:
            gate.mark(config, name, up=False)


def _wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + READY_S
    while not done() and time.monotonic() < end:
        time.sleep(0.02)


def _poke(config: Config, names: Sequence[str]) -> None:
    for name in names[:1]:
        Home(config.devices / name, config).poke()


def _last_words(config: Config) -> str:
    said = fs.tail(log_file(config), 3)
    return f"{log_file(config)} ends with:\n{said}" if said else f"its log: {log_file(config)}"


def _is_up(config: Config, name: str, since: float = 0.0) -> bool:
    return any(_alive(b) and b.time >= since for b in _beats(Home(config.devices / name, config)))


def is_served(config: Config, name: str) -> bool:
    """Whether a process serves this device."""
    return daemon.pid(config) is not None and name in gate.marked_up(config)


def await_parted(config: Config, name: str, requester: Requester) -> None:
    """Until the process that serves the device, if one does, is done with a requester who is not trusted any more."""
    home = Home(config.devices / name, config)

    def parted() -> bool:
        with contextlib.suppress(FedqError, FileNotFoundError):
            return _beat(home, requester).state != "up"
        return True

    if is_served(config, name):
        _wait(parted)
    home.close()


def check_not_served(config: Config, name: str) -> None:
    """AlreadyRunning if a process serves a device, or shall."""
    if name in gate.marked_up(config) or (daemon.pid(config) is not None and _is_up(config, name)):
        raise AlreadyRunning(f"{name} is up, or shall be", hint=f"fedq device down {name}")


def erase(config: Config, home: Home) -> list[str]:
    """Delete a device, while no ``step`` serves it; what of its pairs could not be deleted."""
    if daemon.pid(config) is not None:  # it holds the lock, and serves others
        return home.erase()
    with gate.hold(config):
        return home.erase()


def _alive(beat: Heartbeat) -> bool:
    return beat.state == "up" and fs.clock() - beat.time < SILENT_S


def _beats(home: Home) -> list[Heartbeat]:
    """What it last said to each requester."""
    found = []
    for requester in home.trusted():
        with contextlib.suppress(FedqError, FileNotFoundError):
            found.append(_beat(home, requester))
    home.close()
    return found


def not_taken(home: Home) -> int:
    """Messages that lie in its queue and were not read yet."""
    new = 0
    for requester in home.trusted():
        with contextlib.suppress(FedqError):
            names = home.pair(requester.name).carrier.list("in")
            new += sum(home.journal.seen(requester.name, name.partition(".")[0]) is None for name in names)
    return new


def refused(home: Home) -> list[tuple[str, str, str]]:
    """Files of its queue that are not taken, as the device said last: requester, id and the code of an error."""
    found: list[tuple[str, str, str]] = []
    for requester in home.trusted():
        with contextlib.suppress(FedqError, FileNotFoundError):
            there = set(home.pair(requester.name).carrier.list("in"))
            said = _beat(home, requester).refused
            found += [(requester.name, id_, code) for id_, code in said if f"{id_}.safetensors" in there]
    return found


def _beat(home: Home, requester: Requester) -> Heartbeat:
    raw = home.pair(requester.name).read_bytes(Heartbeat.KIND)
    return keys.unseal(Heartbeat, raw, home.key.public, home.name, home.to(requester))


def state(config: Config, name: str) -> dict[str, Any]:
    """A device as ``device ls`` shows it; counts are over all its requesters."""
    home = Home(config.devices / name, config)
    values, waiting = len(home.values()), home.journal.count_open() + not_taken(home)
    held = len(review.questions(home)) + len(home.stopped())
    failed = len(home.journal.failed())
    old = _old_copy(home)
    beats = _beats(home)
    last = max((b.time for b in beats), default=None)
    up = any(map(_alive, beats)) and daemon.pid(config) is not None
    running = sum(len(b.running) for b in beats) if up else 0
    return {
        "device": name,
        "state": "up" if up else "down" if last else "never started",
        "last_seen": last,
        "values": values,
        "waiting": max(0, waiting - running),
        "running": running,
        "failed": failed,
        "refused": sum(len(b.refused) for b in beats),
        "trouble": old or next((b.trouble for b in beats if b.trouble and up), ""),
        "progress": [list(p) for b in beats for p in b.progress],
        "held": held,
    }


def _old_copy(home: Home) -> str:
    try:
        boots.check(home)
    except OldCopy as error:
        return error.code
    return ""


def states(config: Config) -> list[dict[str, Any]]:
    """The devices on this machine, then those elsewhere that you have a pair with."""
    here = homes(config)
    return [state(config, name) for name in here] + [_elsewhere(d) for d in _paired(config) if d.name not in here]


def _paired(config: Config) -> list[Device]:
    """Those that are trusted here, without making a key or a root by looking."""
    found: list[Device] = []
    if "key" in fs.names(config.home) and pairs.MARK in fs.names(config.queue):
        client = Client(config)
        for name in client.devices():
            with contextlib.suppress(UnknownDevice):
                found.append(client.device(name))
    return found


def _elsewhere(device: Device) -> dict[str, Any]:
    beat = fetch.heartbeat(device)
    return {
        "device": device.name,
        "state": "never started" if beat is None else "up" if _alive(beat) else "not running",
        "last_seen": beat and beat.time,
        "values": len(device.catalog().values),
        "waiting": len(beat.waiting) if beat else 0,
        "running": len(beat.running) if beat else 0,
        "progress": [list(p) for p in beat.progress] if beat else [],
        "held": len(beat.held) if beat else 0,
        "failed": None,
        "refused": len(beat.refused) if beat else 0,
        "trouble": beat.trouble if beat and _alive(beat) else "",
    }


def failed(config: Config, names: Sequence[str]) -> list[dict[str, Any]]:
    """Messages that ended their workers too often, or ran when the gate ended too often; the oldest first."""
    rows = []
    for name in names:
        home = Home(config.devices / name, config)
        for sender, id_, time_, reason in home.journal.failed():
            file = str(home.failed(sender) / f"{id_}.safetensors")
            rows.append(
                {"device": name, "time": time_, "requester": sender, "message": id_, "reason": reason, "file": file}
            )
        for sender, id_, action, time_ in home.stopped():
            reason = f"action {action}: held: the gate ended five times while it ran; fedq device resume {name} {id_}"
            rows.append(
                {"device": name, "time": time_, "requester": sender, "message": id_, "reason": reason, "file": ""}
            )
        home.close()
    return sorted(rows, key=lambda row: float(row["time"]))


def log_lines(config: Config, name: str | None, count: int) -> list[str]:
    """The newest lines of the gate's log, those about one device if it is named."""
    lines = fs.tail(log_file(config), count if name is None else 100 * count).splitlines()
    return [line for line in lines if name is None or f" {name}: " in line][-count:]
