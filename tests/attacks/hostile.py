"""A worker that was taken over: it reads what it is asked, and answers whatever it likes.

Run as ``python hostile.py NAME SEED SOCK THREADS PAGE``, where a gate runs a worker: NAME is one of
`KINDS`, or ``any``. With ``zygote PATH`` it listens there and forks such workers: starting Python
each time would take most of a long run.
"""

from __future__ import annotations

import array
import contextlib
import json
import mmap
import os
import random
import signal
import socket
import struct
import sys
import time

from fedq.device import wire
from fedq.plan.codec import RawTensor

PACK = struct.Struct("<IIQ?")
PAGE = struct.Struct("<4Q")


class Enemy:
    """One taken-over worker: ``sock`` to the gate, the page, and dice."""

    def __init__(self, sock: socket.socket, page: int, seed: int) -> None:
        self.sock, self.page_fd, self.rng = sock, page, random.Random(seed)
        self.page = mmap.mmap(page, PAGE.size)
        self.calls: list[list] = []

    def serve(self, kind: str) -> None:
        reader = wire.Reader(self.sock, trusted=True)
        while True:
            while (frame := reader.frame()) is None:
                if not reader.receive():
                    return
            self.calls = frame[0]["calls"]
            self.page[:] = PAGE.pack(len(self.calls), 0, 0, 1)
            name = self.rng.choices(NAMES, WEIGHTS)[0] if kind == "any" else kind
            KINDS[name](self)

    # -- what is right

    def right(self) -> tuple[list, list[RawTensor]]:
        rows, out = [], []
        for _, _, results, *_ in self.calls:
            made = []
            for _ in results:
                made.append(len(out))
                n = self.rng.choice((1, 3, 3, 3, 20_000))
                out.append(RawTensor("f32", (n,), bytes(4 * n)))
            rows.append(["ok", made])
        return rows, out

    def answer(self, rows=None, out=None) -> None:
        right = self.right()
        wire.send(self.sock, right[0] if rows is None else rows, right[1] if out is None else out)

    def text(self, text: bytes, blob: bytes = b"", fds=(), *, sealed=wire.SEALS, count=None, size=None) -> None:
        """A frame with this text; larger ones in memory, sealed like this."""
        apart = len(text) + len(blob) > wire.BODY_BYTES or sealed is not wire.SEALS
        fds = list(fds)
        if apart:
            fds.append(memory(text + blob, sealed))
        head = PACK.pack(len(text), len(fds) if count is None else count, len(blob) if size is None else size, apart)
        socket.send_fds(self.sock, [head], fds)
        if not apart:
            self.sock.sendall(text + blob)

    def whole(self) -> bytes:
        """The text of a right answer of small tensors."""
        rows = [["ok", [{"n": 1.5} for _ in c[2]]] for c in self.calls]
        return json.dumps([rows, []]).encode()

    # -- what is not

    def odd_rows(self) -> None:
        rng, (rows, out) = self.rng, self.right()
        rows[rng.randrange(len(rows))] = rng.choice(ODD_ROWS)
        self.answer(rng.choice([rows, rows, rows, rows[1:], rows * 2, {}, 7, None, "rows", [], True]), out)

    def odd_layout(self) -> None:
        blob = bytes(12)
        layout = self.rng.choice(ODD_LAYOUTS)
        self.text(json.dumps([[["ok", [0]] for _ in self.calls], [layout]]).encode(), blob)

    def failure(self) -> None:
        text = self.rng.choice(TEXTS)
        facts = {k: self.rng.choice([0, -1, 1 << 70, text, [0, 4711], None]) for k in FACTS if self.rng.random() < 0.5}
        code = self.rng.choice([*CODES, text])
        row = self.rng.choice(
            [["e", code, text, facts, text], ["e", code, text, facts], ["ok", [{"e": [code, text, facts]}]]]
        )
        self.answer([row for _ in self.calls], [])

    def mutated(self) -> None:
        text, rng = bytearray(self.whole()), self.rng
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(text))
            how = rng.randrange(4)
            if how == 0:
                text[at] = rng.randrange(256)
            elif how == 1:
                del text[at : at + rng.randrange(1, 9)]
            elif how == 2:
                text[at:at] = rng.choice(
                    [b"[" * 5000, b'"', b"\\ud800", b"9" * 5000, b"NaN", b"1e999", b"\x1b[2J", b","]
                )
            else:
                text[at:at] = text[:at]
            text = text or bytearray(b"[")
        self.text(bytes(text))

    def deep(self) -> None:
        n = self.rng.choice((40, 3000, 200_000))
        self.text(self.rng.choice([b"[" * n + b"]" * n, b'{"a":' * n + b"1" + b"}" * n, b"[" * n]))

    def many(self) -> None:
        self.text(b"[[" + b"[]," * self.rng.choice((10_000, 1_000_000)) + b"[]],[]]")

    def long_text(self) -> None:
        n = self.rng.choice((100_000, 3 << 20, 40 << 20))
        self.text(json.dumps([[["e", "failed", "x" * n, {}, "y" * n] for _ in self.calls], []]).encode())

    def odd_head(self) -> None:
        big = (0, 1, 17, 1 << 16, (1 << 32) - 1)
        count, text, blob = self.rng.choice(big), self.rng.choice(big), self.rng.choice((*big, 1 << 50, (1 << 64) - 1))
        self.sock.sendall(PACK.pack(text, count, blob, self.rng.random() < 0.5) + bytes(self.rng.choice((0, 100))))

    def random_bytes(self) -> None:
        self.sock.sendall(self.rng.randbytes(self.rng.choice((1, 16, 17, 40, 5000))))
        self.after()

    def truncated(self) -> None:
        whole = PACK.pack(len(self.whole()), 0, 0, False) + self.whole()
        self.sock.sendall(whole[: self.rng.randrange(len(whole))])
        self.after()

    def slow(self) -> None:
        whole = PACK.pack(len(self.whole()), 0, 0, False) + self.whole()
        for at in range(0, len(whole), 7):
            self.sock.sendall(whole[at : at + 7])
            time.sleep(0.001)

    def after(self) -> None:
        """What follows a part of a frame: the end, one way or another."""
        match self.rng.randrange(5):
            case 0:
                os._exit(self.rng.choice((0, 1, 112)))
            case 1:
                os.kill(os.getpid(), self.rng.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)))
            case 2:
                self.sock.shutdown(socket.SHUT_WR)
            case _:
                self.sock.sendall(bytes(100))
                os._exit(0)

    def surplus(self) -> None:
        match self.rng.randrange(4):
            case 0:
                self.answer()
                self.answer()
            case 1:
                self.answer()
                self.sock.sendall(self.rng.randbytes(self.rng.choice((1, 100))))
            case 2:  # when nothing is asked any more
                self.answer()
                time.sleep(0.002)
                self.answer()
            case 3:
                for _ in range(50):
                    self.answer()

    def flood(self) -> None:
        """Without an end: until it is killed."""
        head = self.rng.choice([b"", PACK.pack(1 << 31, 0, 1 << 40, False), PACK.pack(9, 0, 60_000, False)])
        with contextlib.suppress(OSError):
            self.sock.sendall(head)
            while True:
                self.sock.sendall(bytes(1 << 20))

    def descriptors(self) -> None:
        rng = self.rng
        opened = [os.open(p, os.O_RDONLY) for p in ("/dev/zero", "/dev/null", "/", "/proc/self/status", sys.executable)]
        opened += [*os.pipe(), self.sock.fileno(), self.page_fd, memory(b"x" * 100, ())]
        chosen = [rng.choice(opened) for _ in range(rng.choice((1, 2, 100, 250)))]
        body = json.dumps(
            [[["ok", [0]] for _ in self.calls], [["u8", [100], rng.choice((0, len(chosen) - 1)), 0]]]
        ).encode()
        head = PACK.pack(len(body), rng.choice((0, 1, len(chosen))), 0, False)
        match rng.randrange(3):
            case 0:
                socket.send_fds(self.sock, [head], chosen)
                self.sock.sendall(body)
            case 1:  # the body in something that is no memory
                socket.send_fds(self.sock, [PACK.pack(50, 1, 50, True)], chosen[:1])
            case 2:  # more and more of them
                for _ in range(20):
                    socket.send_fds(self.sock, [head[:1]], chosen)
                    head = head[1:] or b"x"
        self._close(opened)

    def _close(self, opened) -> None:
        for fd in set(opened) - {self.sock.fileno(), self.page_fd}:
            os.close(fd)

    def memories(self) -> None:
        """A large result in memory that can still be changed, and is; or that is shorter, or was never filled in."""
        rng, size = self.rng, 2 << 20
        sealed = rng.choice(
            [(), ("SHRINK",), ("WRITE",), ("SHRINK", "GROW", "WRITE"), ("SHRINK", "GROW", "SEAL"), wire.SEALS]
        )
        fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        match rng.randrange(3):
            case 0:
                os.ftruncate(fd, rng.choice((size, size, 1 << 45)))  # holes
            case 1:
                os.write(fd, bytes(rng.choice((0, 1, size - 1))))
            case _:
                os.write(fd, bytes(size))
        wire._seal(fd, sealed)
        body = json.dumps(
            [[["ok", [0]]] + [["ok", [{"n": 1}]]] * (len(self.calls) - 1), [["u8", [size], 0, 0]]]
        ).encode()
        socket.send_fds(self.sock, [PACK.pack(len(body), 1, 0, False)], [fd])
        self.sock.sendall(body)
        for _ in range(rng.choice((1, 50))):
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
                os.ftruncate(fd, size)
        os.close(fd)

    def unsealed_body(self) -> None:
        body = self.whole()
        fd = os.memfd_create("x")
        os.write(fd, body)
        socket.send_fds(self.sock, [PACK.pack(len(body), 1, 0, True)], [fd])
        os.ftruncate(fd, 0)
        os.close(fd)

    def spoilt_page(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.ftruncate(self.page_fd, 0)
        with contextlib.suppress(OSError):
            os.ftruncate(self.page_fd, 1 << 40)
        self.page[:] = self.rng.randbytes(PAGE.size)
        self.rng.choice([self.answer, self.random_bytes, self.odd_rows])()

    def noisy(self) -> None:
        with contextlib.suppress(OSError):
            for _ in range(self.rng.choice((1, 30))):
                os.write(2, b"\x1b[2J\x1b]0;owned\x07 \xe2\x80\xae loud\n" * 500)
        self.rng.choice([self.answer, self.random_bytes])()

    def hangs(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(3600)

    def deaf(self) -> None:
        """Answers what it did not read, again and again, and takes nothing in."""
        for _ in range(5):
            self.answer()
        time.sleep(3600)


TEXTS = ["", "x", "\x1b[31mred\x07", "\u202egnp.exe", "\ud800", "a\nb\rc", "x" * 4000, ",[{" * 3000, "4711"]
CODES = ["failed", "missing_value", "spec_mismatch", "not_allowed", "not_finite", "cannot_record", "bad_file", "usage"]
FACTS = ("action", "input", "step", "steps", "kind", "outputs", "hint", "names", "line", "op", "id")
ODD_ROWS = [
    None, [], 0, "ok", ["ok"], ["ok", None], ["ok", [0, 0]], ["ok", [-1]], ["ok", [1 << 70]], ["ok", [1.0]],
    ["ok", [True]],
    ["ok", ["0"]], ["ok", [[]]], ["ok", [{}]], ["ok", [{"n": []}]], ["ok", [{"n": 1 << 64}]], ["ok", [{"n": "x"}]],
    ["ok", [{"n": 1, "m": 2}]], ["ok", [{"e": ["failed", "x", {}], "n": 1}]], ["ok", [{"e": []}]], ["ok", []],
    ["ok", [0] * 500], ["e"], ["e", 1, 2, 3, 4], ["e", "failed", "x", [], ""], {"ok": [0]}, [[[[]]]],
    ["ok", [float("nan")]], ["ok", [{"n": float("inf")}]], ["e", "failed", "x", {}, ["text"]], ["ok", {"0": 0}],
]  # fmt: skip
ODD_LAYOUTS = [
    None, [], ["f32"], ["f32", [3], None], ["x", [3], None, 0], [["f32"], [3], None, 0], ["f32", 3, None, 0],
    ["f32", [-3], None, 0], ["f32", [3.0], None, 0], ["f32", ["3"], None, 0], ["f32", [True], None, 0],
    ["f32", [3] * 65, None, 0],
    ["f32", [1 << 60], None, 0], ["f32", [0, 1 << 62], None, 0], ["u8", [1 << 31], None, 0], ["f32", [3], 0, 0],
    ["f32", [3], -1, 0], ["f32", [3], "0", 0], ["f32", [3], None, -1], ["f32", [3], None, "0"],
    ["f32", [3], None, 1 << 62],
    ["f32", [4], None, 0], ["bool", [3], None, 0], ["f32", [], None, 0, 0], "f32[3]", 7,
]  # fmt: skip
KINDS = {
    name: getattr(Enemy, name)
    for name in (
        "answer", "odd_rows", "odd_layout", "failure", "mutated", "deep", "many", "long_text", "odd_head",
        "random_bytes", "truncated", "slow", "surplus", "flood", "descriptors", "memories", "unsealed_body",
        "spoilt_page", "noisy",
        "hangs", "deaf",
    )
}  # fmt: skip
NAMES = tuple(KINDS)
_RARE = {"hangs": 0.02, "deaf": 0.02, "many": 0.3, "long_text": 0.2, "flood": 0.5, "slow": 0.5}
WEIGHTS = [_RARE.get(name, 1.0) for name in NAMES]


def memory(content: bytes, sealed) -> int:
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    wire._seal(fd, sealed)
    return fd


def be(kind: str, seed: int, sock: int, page: int) -> None:
    """Answer until the end; what fails here is the enemy's own end."""
    with contextlib.suppress(OSError):
        Enemy(socket.socket(fileno=sock), page, seed).serve(kind)


def zygote(path: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(16)
    print("ready", flush=True)
    while True:
        sock, _ = server.accept()
        data, fds, _, _ = socket.recv_fds(sock, 100, 3)
        kind, seed = data.decode().split()
        pid = os.fork()
        if not pid:
            server.close()
            os.dup2(fds[2], 2)
            sock.close()
            try:
                be(kind, int(seed), fds[0], fds[1])
            finally:
                os._exit(0)
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(OSError):
            held = os.pidfd_open(pid)
            sock.sendmsg([b"%d" % pid], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [held]))])
            os.close(held)
        sock.close()


def main() -> None:
    if sys.argv[1] == "zygote":
        zygote(sys.argv[2])
    be(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[5]))


if __name__ == "__main__":
    main()
