"""The folder in strangers' hands, with a daemon and workers that just started."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import torch

import fedq as fq
from fedq.client.session import Client
from fedq.device import home
from fedq.device.home import Requester
from tests.attacks.test_folder import junk, plant
from tests.marks import more
from tests.rig import Rig, wait_until


def stranger(rig: Rig, name: str = "mallory") -> Path:
    """The pair of another requester, who never sends anything."""
    who = Requester(f"{name}-{'0' * 8}", "0" * 64)
    home.init(rig.config, rig.name, requester=who).close()
    return rig.config.queue / rig.name / who.name


@fq.func2plan(args_shape=[(-1,)])
def twice(x):
    return x + x


def next_call(rig: Rig, pointer, x) -> float:
    start = time.perf_counter()
    assert pointer(x).get(timeout_s=60).tolist() == [2.0, 4.0]
    return time.perf_counter() - start


@more
def test_twenty_thousand_junk_names_of_one_slow_no_call_of_another(tmp_path):
    with Rig(tmp_path, data={"x": torch.tensor([1.0, 2.0])}) as rig:
        pair = stranger(rig)
        rig.start()
        pointer, x = twice.send(rig.device), rig.device.find("x")
        before = statistics.median(next_call(rig, pointer, x) for _ in range(50))
        for name in ("in", "out", "blobs", ""):
            junk(pair / name, 20_000)
        time.sleep(1)
        after = statistics.median(next_call(rig, pointer, x) for _ in range(50))
        print(f"{before * 1e3:.2f} ms, with junk {after * 1e3:.2f} ms")
        assert after <= 2 * before


def test_what_is_planted_at_a_replys_name_stops_no_reply_of_a_daemon(tmp_path):
    with Rig(tmp_path, data={"x": torch.tensor([1.0, 2.0])}) as rig:
        out = Path(rig.device.pair.carrier.path("out"))
        pointer, x = twice.send(rig.device), rig.device.find("x")
        first, second = pointer(x), pointer(x)
        replies = rig.device.ask([first])
        rig.device.flush()
        plant(out / f"{replies[first.address]}.safetensors", "full folder")
        rig.start()
        assert second.get(timeout_s=60).tolist() == first.get(timeout_s=60).tolist() == [2.0, 4.0]
        assert [p.name for p in out.iterdir() if ".aside-" in p.name]
        wait_until(lambda: rig.heartbeat().state == "up")
        assert rig.heartbeat().trouble == "" and isinstance(rig.client, Client) and os.listdir(out)
