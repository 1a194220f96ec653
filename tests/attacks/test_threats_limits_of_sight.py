"""Who is to see nothing of something is told nothing: requesters of others' data, workers of keys, a network of all."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

import fedq
from fedq.device.gate import Gate
from fedq.device.home import Home
from fedq.device.pool import InlineWorker, ProcessWorker
from fedq.errors import Unreachable
from fedq.plan.codec import RawTensor, decode
from fedq.queue.message import Get, OwnerRef, Run, SendPlan, decode_reply
from tests.attacks.stage import DOUBLE as DOUBLED
from tests.attacks.stage import Stage, get, id_, run
from tests.device.world import DOUBLE, NAME, World

SOURCES = sorted(Path(fedq.__file__).parent.rglob("*.py"))
NETWORK = {"asyncio", "ftplib", "http", "imaplib", "poplib", "requests", "smtplib", "socketserver", "ssl", "urllib",
           "xmlrpc"}  # fmt: skip


def told(world: World, id_: str) -> list[object]:
    """What Alice is told who asks for a value and for a call on it, at once and an hour later."""
    device = world.alice
    value, result = device.client.new_id(), device.client.new_id()
    plan = SendPlan(DOUBLE.id, DOUBLE.graph, (), DOUBLE.about)
    run = Run(DOUBLE.id, (OwnerRef(id_),), {}, (result,))
    device.submit([plan, run, Get(value, (id_,), frozenset([id_])), Get(result, (result,))])
    world.step()
    early = [(Path(device.pair.carrier.path("out")) / f"{reply}.safetensors").exists() for reply in (value, result)]
    world.now += 3700
    world.step()
    replies = [decode_reply(decode(bytes(device.pair.carrier.get(f"out/{r}.safetensors")))) for r in (value, result)]
    failures = [failure for reply in replies for failure in reply.values.values()]
    return [
        early,
        *(str(f).replace(id_, "ID").replace(id_[:12], "ID") for f in failures),
        [e.tag for e in device.catalog().values],
    ]


def test_a_value_for_others_alone_is_as_one_that_is_not_there(tmp_path):
    world = World(tmp_path)
    bob = world.requester("bob")
    home = Home(world.config.devices / NAME, world.config)
    ones = RawTensor("f32", (1,), b"\0\0\0\0")
    his = home.add(ones, tag="his", release="open", allow=[bob.client.name])
    home.close()
    seen = told(world, his)
    assert seen == told(world, "f" * 32)
    assert "Failure" in seen[1] and "Failure" in seen[2] and seen[3] == []
    world.close()


def test_a_device_does_not_start_in_a_root_that_carries_another_mark(tmp_path):
    world = World(tmp_path)
    world.step()
    id_ = world.put(world.alice, 3)
    mark = world.config.queue / ".fedq"
    right = mark.read_bytes()
    mark.write_bytes(right.replace(world.alice.client.root.encode(), b"f" * 32))
    world.restart()
    before = {p: p.read_bytes() for p in world.config.queue.rglob("*") if p.is_file()}
    with pytest.raises(Unreachable, match="another queue root"):
        Gate(world.config, [NAME], worker=InlineWorker, now=world.now).step(world.now)
    assert {p: p.read_bytes() for p in world.config.queue.rglob("*") if p.is_file()} == before
    mark.write_bytes(right)
    world.restart()
    world.step()
    assert world.got(world.alice, id_) == [3.0]
    world.close()


def test_a_worker_starts_with_no_key_no_file_and_nothing_of_the_gates_surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDQ_HOME", str(tmp_path))
    monkeypatch.setenv("A_SECRET", "s3cret")
    with (tmp_path / "key").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        worker = ProcessWorker(threads=1)
        try:
            place = Path(f"/proc/{worker.pid}")
            said = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
            files = {os.readlink(fd) for fd in (place / "fd").iterdir()}
        finally:
            worker.close()
    assert b"FEDQ" not in said and b"s3cret" not in said and os.fsencode(tmp_path) not in said
    assert str(tmp_path / "key") not in files


def test_no_worker_does_calls_of_two_requesters(tmp_path):
    town = Stage(tmp_path)
    for n in range(3):
        for who in ("enemy", "other"):
            town.slip(run(DOUBLED, town.open, to=f"{who}{n}"), get(f"{who}{n}", f"{who}{n}"), who=who)
        town.go()
    for worker in town.workers:
        whose = {who for who in ("enemy", "other") for n in range(3) if id_(f"{who}{n}") in worker.ran}
        assert len(whose) <= 1
    assert {id_(f"{who}{n}") for who in ("enemy", "other") for n in range(3)} <= town.ran
    town.close()


def test_nothing_listens_on_a_network_or_asks_one():
    for file in SOURCES:
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not NETWORK & {name.partition(".")[0] for name in names}, f"{file}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("socket.socket", "socket.create")):
                pair = ast.unparse(node.func) == "socket.socketpair"
                assert pair or [k.arg for k in node.keywords] == ["fileno"], f"{file}:{node.lineno}"
