"""The same little work through other queues: ``python benchmarks/peers.py NAME FOLDER`` prints JSON.

A producer sends two numbers, a consumer in another process doubles them, the producer waits for the
answer. Run by `backlog` in an environment of its own (benchmarks/peers.txt). Rows with ``tuned``
poll as fast as their options allow.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NUMBERS = [-1.0, 2.0]
TRIPS = 30
COUNT = 300


def double(numbers: list[float]) -> list[float]:
    return [abs(n + n) for n in numbers]


@contextlib.contextmanager
def consumer(*command: str, **environ: str) -> Iterator[None]:
    process = subprocess.Popen(
        command, env={**os.environ, **environ}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


Send = Callable[[], Any]
"""Sends one piece of work; what it gives is called to wait for the answer."""


def measure(send: Send) -> dict[str, float]:
    send()()
    trips = []
    end = time.monotonic() + 20
    for _ in range(TRIPS):
        start = time.perf_counter()
        send()()
        trips.append(time.perf_counter() - start)
        if time.monotonic() > end:
            break
    start = time.perf_counter()
    answers = [send() for _ in range(COUNT)]
    for answer in answers:
        answer()
    return {"median_us": statistics.median(trips) * 1e6, "per_s": COUNT / (time.perf_counter() - start)}


# -- huey ------------------------------------------------------------------------------------


def huey_app() -> Any:
    from huey import FileHuey, SqliteHuey

    where = os.environ["PEER_FOLDER"]
    kind = os.environ["PEER_KIND"]
    app = FileHuey(path=f"{where}/huey") if kind == "file" else SqliteHuey(filename=f"{where}/huey.db", fsync=True)
    return app, app.task(name="double")(double)


def run_huey(where: Path, kind: str, tuned: bool) -> dict[str, float]:
    os.environ |= {"PEER_FOLDER": str(where), "PEER_KIND": kind}
    (where / "app.py").write_text("from peers import huey_app\napp, task = huey_app()\n")
    import peers  # tasks are known by their module, and here it is __main__

    _, task = peers.huey_app()
    options = ["-d", "0.001", "-m", "0.001"] if tuned else []
    wait = {"backoff": 1.0, "max_delay": 0.001} if tuned else {}
    path = f"{Path(__file__).parent}:{where}"
    program = "import sys; from huey.bin.huey_consumer import consumer_main; consumer_main()"
    with consumer(sys.executable, "-c", program, "app.app", "-w", "1", *options, PYTHONPATH=path):

        def send() -> Any:
            answer = task(NUMBERS)
            return lambda: answer.get(blocking=True, timeout=60, **wait)

        return measure(send)


# -- plain queues, one there and one back ----------------------------------------------------


def boxes(kind: str, where: str) -> Any:
    """``add(text)`` and ``take() -> text or None`` of two queues."""

    def dirq_box(name: str) -> Any:
        from dirq.QueueSimple import QueueSimple

        box = QueueSimple(f"{where}/{name}")

        def take() -> str | None:
            for each in box:
                if box.lock(each):
                    text = box.get(each)
                    box.remove(each)
                    return text if isinstance(text, str) else text.decode()
            return None

        return box.add, take

    def persist_box(name: str) -> Any:
        from persistqueue import SQLiteQueue
        from persistqueue.exceptions import Empty

        box = SQLiteQueue(f"{where}/{name}", auto_commit=True, multithreading=True)

        def take() -> str | None:
            try:
                return str(box.get(block=False))
            except Empty:
                return None

        return box.put, take

    make = dirq_box if kind == "dirq" else persist_box
    return make("there"), make("back")


def serve_boxes(kind: str, where: str, nap: float) -> None:
    (_, take), (add, _) = boxes(kind, where)
    while True:
        text = take()
        if text is None:
            time.sleep(nap)
        else:
            add(json.dumps(double(json.loads(text))))


def run_boxes(where: Path, kind: str, tuned: bool) -> dict[str, float]:
    nap = 0.0005 if tuned else 0.1
    (add, _), (_, take) = boxes(kind, str(where))
    with consumer(sys.executable, __file__, "serve", kind, str(where), str(nap)):

        def wait() -> str:
            while (text := take()) is None:
                time.sleep(nap)
            return str(text)

        def send() -> Any:
            add(json.dumps(NUMBERS))
            return wait

        return measure(send)


# -- Celery ----------------------------------------------------------------------------------


def celery_app() -> Any:
    from celery import Celery

    where = os.environ["PEER_FOLDER"]
    for name in ("queue", "control", "results"):
        Path(where, name).mkdir(exist_ok=True)
    app = Celery("app", broker="filesystem://", backend=f"file://{where}/results")
    folders = {
        "data_folder_in": f"{where}/queue",
        "data_folder_out": f"{where}/queue",
        "control_folder": f"{where}/control",
    }
    if os.environ["PEER_KIND"] == "tuned":
        folders["polling_interval"] = 0.001
    app.conf.update(broker_transport_options=folders, task_serializer="json", result_serializer="json")
    return app, app.task(name="double")(double)


def run_celery(where: Path, _: str, tuned: bool) -> dict[str, float]:
    os.environ |= {"PEER_FOLDER": str(where), "PEER_KIND": "tuned" if tuned else ""}
    (where / "app.py").write_text("from peers import celery_app\napp, task = celery_app()\n")
    _app, task = celery_app()
    path = f"{Path(__file__).parent}:{where}"
    words = ("-m", "celery", "-A", "app", "worker", "-P", "solo", "-l", "error")
    with consumer(sys.executable, *words, PYTHONPATH=path):

        def send() -> Any:
            answer = task.delay(NUMBERS)
            return lambda: answer.get(timeout=60, interval=0.001 if tuned else 0.5)

        return measure(send)


# -- rq --------------------------------------------------------------------------------------


def run_rq(where: Path, _: str, tuned: bool) -> dict[str, float]:
    if shutil.which("redis-server") is None:
        raise RuntimeError("no redis-server on this machine")
    from redis import Redis
    from rq import Queue

    sock = str(where / "redis")
    with consumer("redis-server", "--port", "0", "--unixsocket", sock, "--appendonly", "yes", "--dir", str(where)):
        while not Path(sock).exists():
            time.sleep(0.05)
        path = str(Path(__file__).parent)
        kind = ["-w", "rq.SimpleWorker"] if tuned else []
        with consumer(sys.executable, "-m", "rq.cli", "worker", "-u", f"unix://{sock}", *kind, PYTHONPATH=path):
            queue = Queue(connection=Redis(unix_socket_path=sock))

            def send() -> Any:
                answer = queue.enqueue("peers.double", NUMBERS)

                def wait() -> Any:
                    while (found := answer.return_value(refresh=True)) is None:
                        time.sleep(0.0005 if tuned else 0.05)
                    return found

                return wait

            return measure(send)


PEERS: dict[str, tuple[Callable[[Path, str, bool], dict[str, float]], str]] = {
    "huey, files": (run_huey, "file"),
    "huey, SQLite": (run_huey, "sqlite"),
    "dirq": (run_boxes, "dirq"),
    "persist-queue, SQLite": (run_boxes, "persist"),
    "Celery, filesystem": (run_celery, ""),
    "rq, Redis": (run_rq, ""),
}


def main() -> None:
    if sys.argv[1] == "serve":
        return serve_boxes(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    run, kind = PEERS[sys.argv[1]]
    print(json.dumps(run(Path(sys.argv[2]), kind, sys.argv[3] == "tuned")))
    return None


if __name__ == "__main__":
    main()
