"""Two processes that hand a file of 500 bytes to and fro: what a folder with inotify gives without fedq.

``python pong.py FOLDER`` is the other one; ends when its standard input does.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedq.queue.watch import Watch

BALL = b"x" * 500


def throw(folder: Path, name: str) -> None:
    (folder / f".{name}").write_bytes(BALL)
    os.rename(folder / f".{name}", folder / name)


def catch(folder: Path) -> list[str]:
    caught = [n for n in os.listdir(folder) if not n.startswith(".")]
    for name in caught:
        (folder / name).read_bytes()
        os.unlink(folder / name)
    return caught


@contextmanager
def playing(where: Path) -> Iterator[Callable[[], None]]:
    """Gives one throw there and back; both sides sleep until they are called."""
    there, back = where / "there", where / "back"
    there.mkdir()
    back.mkdir()
    watch, count = Watch(), iter(range(1 << 30))
    watch.add(back)
    with subprocess.Popen(
        [sys.executable, __file__, str(where)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin and other.stdout
        other.stdout.readline()

        def once() -> None:
            throw(there, str(next(count)))
            while not catch(back):
                watch.wait(1.0)

        try:
            yield once
        finally:
            watch.close()
            other.stdin.close()


def main() -> None:
    there, back = Path(sys.argv[1], "there"), Path(sys.argv[1], "back")
    watch = Watch()
    watch.add(there)
    print("ready", flush=True)
    while sys.stdin not in select.select([sys.stdin, watch], [], [])[0]:
        watch.drain()
        for name in catch(there):
            throw(back, name)


if __name__ == "__main__":
    main()
