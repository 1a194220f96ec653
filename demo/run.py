"""The tour of ``make demo``: two devices with real data, plans that run there, results checked here.

Works in a folder of its own (``.demo``, or the one given), through the same commands a user types;
each is printed before its output. Ends its daemon also when it fails or is interrupted.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from digits import Digits, share_right
from sklearn.datasets import load_breast_cancer, load_digits

HERE = Path(__file__).resolve().parent
FEDQ = Path(sys.executable).with_name("fedq")
DEVICES = ("device_1", "device_2")
SETTINGS = """queue = "queue"
devices = "devices"
home = "me"
user = "you"
"""


class Tour:
    """Runs commands in the demo's folder and shows them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if (root / "fedq.toml").exists():
            self.fedq("device", "down", show=False)
            shutil.rmtree(root)
        root.mkdir(parents=True)
        (root / "fedq.toml").write_text(SETTINGS)
        shutil.copy(HERE / "plans.py", root)

    def fedq(self, *words: str, show: bool = True) -> str:
        """Run one command; its standard output."""
        if show:
            print("\n$ fedq", *(f'"{w}"' if set(w) & set(" (") else w for w in words), flush=True)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("FEDQ_")}
        done = subprocess.run([FEDQ, *words], cwd=self.root, env=environ, text=True, capture_output=True, check=False)
        if show:
            print((done.stdout + done.stderr).rstrip(), flush=True)
        if done.returncode and show:
            raise SystemExit(f"the demo failed: exit code {done.returncode}")
        return done.stdout


def say(text: str) -> None:
    print(f"\n# {text}", flush=True)


def check(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The number that came back is the number computed here."""
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5):
        raise SystemExit(f"the demo failed: {what} differ: {ours} here, {theirs} there")
    print(f"  checked: {what}, the same as computed here", flush=True)


def load(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(file, allow_pickle=False))


def halves(table: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(DEVICES, np.array_split(table, len(DEVICES)), strict=True))


def trained(pictures: torch.Tensor, labels: torch.Tensor) -> Digits:
    """A small classifier, trained here on pictures that are here."""
    torch.manual_seed(0)
    net = Digits()
    steps = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(120):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(net.forward(pictures), labels).backward()
        steps.step()
    return net


def owners(tour: Tour, tables: dict[str, dict[str, np.ndarray]]) -> None:
    say("Two owners, each with a device of their own and half of the data (569 patients, 1,197 digits)")
    for device in DEVICES:
        tour.fedq("device", "init", device)
        for tag, parts in tables.items():
            np.save(tour.root / f"{device}_{tag}.npy", parts[device])
            tour.fedq("data", "add", device, f"{device}_{tag}.npy", "--tag", tag, "--release", "open")
    tour.fedq("device", "up", *DEVICES)
    tour.fedq("device", "ls")


def small_plan(tour: Tour, patients: dict[str, np.ndarray]) -> None:
    say("A small plan: recorded once, run where the patients are, fetched by ids known beforehand")
    tour.fedq("build", "plans.py:column_means", "--args-shape", "(-1,30)", "-o", "column_means.safetensors")
    tour.fedq("show", "column_means.safetensors")
    tour.fedq("search", "device_1", "patients")
    *lines, run = tour.fedq("run", "column_means.safetensors", "patients", "--on", ",".join(DEVICES)).split()
    tour.fedq("get", run)
    for device, line in zip(DEVICES, lines, strict=True):
        tour.fedq("get", line, "-o", f"{device}_means.npy", show=False)
        check(f"means of {device}", torch.from_numpy(patients[device]).mean(0), load(tour.root / f"{device}_means.npy"))

    say("A result is an argument as good as any: the largest mean, from the result that lies on device_1")
    tour.fedq("build", "plans.py:largest", "--args-shape", "(30,)", "-o", "largest.safetensors")
    value, column = tour.fedq("run", "largest.safetensors", lines[0]).split()
    tour.fedq("get", value, column)
    tour.fedq("get", value, "-o", "largest.npy", show=False)
    check("largest mean", torch.from_numpy(patients["device_1"]).mean(0).max(), load(tour.root / "largest.npy"))


def classifier(tour: Tour, net: Digits, pictures: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> None:
    say("A classifier, trained here on 600 digits, reads those of the devices; only its scores and their worth leave")
    net.build(torch.zeros(2, 64)).save(tour.root / "digits.safetensors")
    share_right.build(torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64)).save(tour.root / "share_right.safetensors")
    tour.fedq("show", "digits.safetensors")
    tour.fedq("send", "digits.safetensors", *DEVICES)
    for device in DEVICES:
        scores = tour.fedq("run", "digits.safetensors", f"{device}:digits", "--keep").strip()
        share = tour.fedq("run", "share_right.safetensors", scores, f"{device}:labels").strip()
        tour.fedq("get", share, "-o", f"{device}_share.npy")
        tour.fedq("get", scores, "-o", f"{device}_scores.npy")
        with torch.inference_mode():
            here = net.forward(torch.from_numpy(pictures[device]))
        right = (here.argmax(1) == torch.from_numpy(labels[device])).float().mean()
        check(f"scores of {len(here)} digits on {device}", here, load(tour.root / f"{device}_scores.npy"))
        check(f"share read right, {right:.1%}", right, load(tour.root / f"{device}_share.npy"))


def main(root: Path) -> None:
    started = time.monotonic()
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda number, _: sys.exit(128 + number))
    patients = load_breast_cancer().data.astype(np.float32)
    digits = load_digits()
    pictures, labels = digits.data.astype(np.float32), digits.target.astype(np.int64)
    os.environ["FEDQ_HOME"] = str(root / "me")
    tour = Tour(root)
    tables = {"patients": halves(patients), "digits": halves(pictures[600:]), "labels": halves(labels[600:])}
    try:
        owners(tour, tables)
        small_plan(tour, tables["patients"])
        net = trained(torch.from_numpy(pictures[:600]), torch.from_numpy(labels[:600]))
        classifier(tour, net, tables["digits"], tables["labels"])
        say(f"All numbers are those computed here; {time.monotonic() - started:.0f} s. What was written: {root}")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        tour.fedq("device", "down", show=False)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parent / ".demo").absolute())
    except KeyboardInterrupt:
        sys.exit("\nthe demo was interrupted; its daemon has ended")
