"""A fold against a plain PyTorch loop: an MLP on the digits, batches of 32, SGD, the same order of rows.

Both in this process and on one thread, the fold as a worker does it: frame in, frame out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch.nn import functional

import fedq as fq
from fedq.device.worker import Replayer, do
from fedq.plan.fold import order
from fedq.plan.graph import graph_to_json
from fedq.plan.tensors import to_raw

EPOCHS, SIZE, RATE, SEED = 10, 32, 0.1, 7


def step(w1, b1, w2, b2, x, y):
    params = [p.requires_grad_() for p in (w1, b1, w2, b2)]
    hidden = torch.relu(functional.linear(x, params[0], params[1]))
    loss = functional.cross_entropy(functional.linear(hidden, params[2], params[3]), y)
    return [p - RATE * g for p, g in zip(params, torch.autograd.grad(loss, params), strict=True)], loss


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))


def folded(x: torch.Tensor, y: torch.Tensor) -> Callable[[bool], None]:
    start = [p.detach() for p in model().parameters()]
    plan = fq.func2plan()(step).build(*start, x[:SIZE], y[:SIZE])
    raws, replayer, page = [to_raw(t) for t in (*start, x, y)], Replayer(fork_rng=True), [0, 0, 0]
    replayer.load("p", graph_to_json(plan.graph), [], [])
    give, args = [[f"c{i}", i] for i in range(4)], [*(f"c{i}" for i in range(4)), {"m": 4}, {"m": 5}]

    def fold(shuffle: bool) -> None:
        call = ["p", args, list("abcde"), SEED, [4, 2, SIZE, EPOCHS, shuffle, False]]
        rows, _ = do(replayer, {"give": give, "calls": [call]}, raws, page)
        assert rows[0][0] == "ok"

    return fold


def plain(x: torch.Tensor, y: torch.Tensor, shuffle: bool) -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    losses = []
    for epoch in range(EPOCHS):
        rows = torch.from_numpy(order(len(x), SEED, epoch)) if shuffle else None
        for at in range(0, len(x), SIZE):
            batch = slice(at, at + SIZE) if rows is None else rows[at : at + SIZE]
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bench_fold(row: Callable[..., None]) -> None:
    print("\nfold: MLP 64-128-10 on the digits, batch 32, against a plain PyTorch loop")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    x = x.float() / 16
    fold = folded(x, y)
    for shuffle in (False, True):
        pairs = [(seconds(lambda s=shuffle: fold(s)), seconds(lambda s=shuffle: plain(x, y, s))) for _ in range(9)][2:]
        ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
        steps = EPOCHS * -(-len(x) // SIZE)
        told = f"{ours / steps * 1e6:.0f} µs a step against {theirs / steps * 1e6:.0f}"
        row(f"  {'shuffled' if shuffle else 'in order'}, {steps} steps", f"{ours / theirs:.2f} of it", told, "<= 1.05")
    torch.set_num_threads(threads)


if __name__ == "__main__":
    bench_fold(lambda *texts: print(*texts))
