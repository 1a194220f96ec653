"""The gate as a process: ``python -m fedq.device.daemon``, started and ended by ``fedq device``.

Holds the lock of its devices root as long as it lives; the lock file names its process.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from fedq import config as configs
from fedq import fs
from fedq.config import Config
from fedq.device.gate import Gate, formatter, gate_dir, hold, workers
from fedq.errors import FedqError, Unreachable

START_S = 20.0
STOP_S = 20.0


def log_file(config: Config) -> Path:
    return gate_dir(config) / "log"


def pid(config: Config) -> int | None:
    """The process that serves this devices root, or None."""
    if "lock" not in fs.names(gate_dir(config)):
        return None
    fs.check_folder(gate_dir(config))  # another's lock could name any process
    found = fs.holder(gate_dir(config) / "lock")
    return None if found is None else int(found) if found.isdecimal() else 0


def start(config: Config) -> int:
    """Start the gate in the background and wait until it holds the lock; its pid.

    Raises:
        Unreachable: it ended at once; the message ends with its last words.
    """
    running = pid(config)
    if running is not None:
        return running
    fs.make_dir(gate_dir(config))
    environ = {
        **os.environ,
        "FEDQ_QUEUE": str(config.queue),
        "FEDQ_DEVICES": str(config.devices),
        "FEDQ_DURABILITY": config.durability,
    }
    log = log_file(config)
    with fs.append(log) as out:
        command = [sys.executable, "-P", "-m", "fedq.device.daemon"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ, start_new_session=True, cwd="/"
        )
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if pid(config) == process.pid:
            process.returncode = 0  # it outlives this process; nobody here waits for it
            return process.pid
        if process.poll() is not None:
            break
        time.sleep(0.01)
    last = fs.tail(log, 3)
    raise Unreachable(f"the gate did not start: {last or 'it said nothing'}", hint=f"its log: {log}")


def stop(config: Config) -> int | None:
    """End the gate and wait until it let go of the lock; its pid, None if none ran."""
    running = pid(config)
    if not running:
        return None
    os.kill(running, signal.SIGTERM)
    end = time.monotonic() + STOP_S
    while pid(config) == running:
        if time.monotonic() > end:
            raise Unreachable(f"process {running} does not end", hint=f"kill -9 {running}")
        time.sleep(0.01)
    return running


def run(config: Config) -> None:
    """Serve in this process until SIGTERM or SIGINT, or until no device is marked up."""
    stopped: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        stopped.append(number)
        with suppress(FedqError):  # with a full disk it ends within a second, not at once
            fs.replace(gate_dir(config) / "poke", [b"stop"], durable=False)

    with hold(config):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        gate = Gate(config, workers=workers(config))
        try:
            gate.serve(lambda: bool(stopped))
        finally:
            gate.close()


def main() -> int:
    logging.basicConfig(level=logging.INFO)
    logging.getLogger().handlers[0].setFormatter(formatter())
    gc.freeze()
    gc.set_threshold(100_000)  # thousands of small frozen records come and go without cycles
    try:
        run(configs.find())
    except FedqError as error:
        logging.getLogger("fedq.device").error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
