"""The folder in strangers' hands: large, odd and many files cost nobody anything; what one may fill is bounded."""

from __future__ import annotations

import errno
import json
import os
import socket
import statistics
import struct
import time
from pathlib import Path

import pytest

from fedq import fs
from fedq.client import fetch
from fedq.device.home import Home
from fedq.device.inbox import LOOKS, NAMED
from fedq.errors import UsageError
from fedq.fs.reading import STILL_S
from fedq.plan.codec import RawTensor
from fedq.plan.file import PlanFile
from fedq.plan.graph import About, Action, Graph, Var
from fedq.queue.message import Ack, Drop, Put, SendPlan
from tests.attacks.enemy import NAME, ROWS, f32
from tests.attacks.stage import DOUBLE, IDENT, WHERE, Stage, get, id_, run, twin
from tests.marks import more

GIB = 1 << 30


@pytest.fixture
def town(tmp_path):
    made = Stage(tmp_path)
    yield made
    fs.FAILPOINTS.clear()
    made.close()


def folder(town: Stage, name: str, who: str = "enemy") -> Path:
    return town.config.queue / NAME / town.names[who] / name


def peer(town: Stage, who: str = "enemy"):
    return town.gate.served[NAME].peers[town.names[who]]


def limit(town: Stage, **most: int) -> None:
    """The owner sets limits; a gate that runs is started anew."""
    path = town.config.devices / NAME / "device.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"limits": said.get("limits", {}) | most}))
    town.restart()


def ones(count: int) -> RawTensor:
    return RawTensor("f32", (count,), struct.pack("<f", 1.0) * count)


def sparse(path: Path, size: int, tail: bytes = b"") -> None:
    with path.open("wb") as file:
        file.truncate(size)
        if tail:
            file.seek(size - len(tail))
            file.write(tail)


def plant(path: Path, kind: str) -> None:
    """Something that is no file stands at a name."""
    match kind:
        case "folder":
            path.mkdir()
        case "full folder":
            (path / "below").mkdir(parents=True)
        case "FIFO":
            os.mkfifo(path)
        case "link":
            path.symlink_to("/etc/hostname")
        case "socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(os.path.relpath(path))
        case "file":
            path.write_bytes(b"planted")


KINDS = ["folder", "full folder", "FIFO", "link", "socket", "file"]


def copied(read: list[int]) -> None:
    """From now on, count bytes that are read from files of others."""

    def count(_: str, call, *args):
        data = call(*args)
        read.append(len(data))
        return data

    fs.FAILPOINTS["read.read"] = count


# -- sizes, and one try for each version


def test_a_strangers_large_file_is_refused_before_a_byte_is_copied(town):
    town.go()
    read: list[int] = []
    copied(read)
    sparse(folder(town, "in") / f"{1:032x}.safetensors", 3 * GIB)
    sparse(folder(town, "in") / f"{2:032x}.safetensors", GIB // 2)
    town.go()
    assert sum(read) == 0
    assert dict(town.heard()["refused"]) == {f"{1:032x}": "bad_file", f"{2:032x}": "bad_signature"}


def test_a_large_file_that_only_names_its_key_is_read_once_and_others_like_it_wait(town):
    limit(town, message_bytes=40 << 20)
    town.go()
    read: list[int] = []
    copied(read)
    key = bytes.fromhex(peer(town).key) + bytes(64)
    for n in range(5):
        sparse(folder(town, "in") / f"{n:032x}.safetensors", 20 << 20, key)
    for _ in range(5):
        town.go(0.01)
    assert sum(read) == 20 << 20
    for _ in range(100):
        town.go(0.01)
    assert sum(read) <= 3 * (20 << 20)
    town.ask("r", town.open, who="other")
    assert town.only("r", who="other") == [2.0, 4.0, 6.0]


def test_a_message_beyond_the_devices_own_limit_is_refused_and_one_within_it_taken(town):
    limit(town, message_bytes=20_000)
    town.send(Put(id_("big"), "t0"), get("big", "big"), t0=ones(10_000))
    town.send(Put(id_("fits"), "t0"), get("fits", "fits"), t0=ones(3))
    assert town.came("big") is None and town.only("fits") == [1.0] * 3
    assert [code for _, code in town.heard()["refused"]] == ["bad_file"]


def test_a_message_that_arrives_in_parts_is_taken_when_it_is_whole(town):
    town.slip(Put(id_("v"), "t0"), get("v", "v"), message=id_("m"), t0=f32(1))
    path = folder(town, "in") / f"{id_('m')}.safetensors"
    whole = path.read_bytes()
    for part in (b"", whole[:100], whole[:-1]):
        path.write_bytes(part)
        town.go()
        assert town.came("v") is None
    path.write_bytes(whole)
    town.go()
    assert town.only("v") == [1.0] and not town.heard()["refused"]


# -- junk


def junk(where: Path, count: int) -> None:
    for n in range(count // 5):
        name = f"{n:08x}"
        (where / f"{name * 4}.safetensors").touch()
        (where / f"{'a' * 24}{name}.safetensors").mkdir()
        (where / f"{'b' * 24}{name}.safetensors").symlink_to("/dev/zero")
        os.mkfifo(where / f"{'c' * 24}{name}.safetensors")
        (where / f"notes {n}.txt").touch()


def clear(where: Path) -> None:
    for path in where.iterdir():
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def next_call(town: Stage, n: int) -> float:
    start = time.perf_counter()
    town.ask(f"o{n}", town.open, who="other")
    took = time.perf_counter() - start
    assert town.only(f"o{n}", who="other") == [2.0, 4.0, 6.0]
    return took


@pytest.mark.parametrize("count", [2_000, pytest.param(20_000, marks=more)])
def test_junk_slows_no_other_and_is_forgotten_when_it_goes(count, town, tmp_path):
    clean = Stage(tmp_path / "clean")
    for name in ("in", "out", "blobs", ""):
        junk(folder(town, name), count if name == "in" else count // 4)
    for _ in range(count // LOOKS + 10):
        town.go(0.01)
    time.sleep(2 * STILL_S)  # so that the folders are still
    town.go()
    took = [(next_call(clean, n), next_call(town, n)) for n in range(25)]
    clean.close()
    before, after = (statistics.median(times[5:]) for times in zip(*took, strict=True))
    print(f"next call of another: {before * 1e3:.2f} ms, with {count} junk names {after * 1e3:.2f} ms")
    assert after <= 2 * before
    inbox = peer(town).inbox
    assert len(inbox._refused) == 4 * (count // 5)
    assert len(town.heard()["refused"]) == 100
    town.send(run(DOUBLE, town.open, to="mine"), get("mine", "mine"))
    assert town.only("mine") == [2.0, 4.0, 6.0]
    clear(folder(town, "in"))
    town.go(60)
    town.go(60)
    assert not inbox._refused and not inbox.told(100) and not inbox._signed
    assert not town.heard()["refused"]


def test_the_owner_finds_refused_files_in_the_record_by_name_and_of_many_the_first(town):
    for n in range(NAMED + 30):
        (folder(town, "in") / f"{n:032x}.safetensors").write_bytes(b"no message")
    town.go()
    town.go()
    home = town.at_home()
    told = [(e.ref, e.text) for e in home.journal.events() if e.kind == "refused"]
    home.close()
    assert len(told) == NAMED + 1
    assert told[0][0] == f"{0:032x}" and "signed" in told[0][1] and "counted, not named" in told[-1][1]


# -- what stands at names of ours


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_at_a_replys_name_is_moved_and_all_replies_go_out(kind, town, monkeypatch):
    monkeypatch.chdir(town.root)
    plant(folder(town, "out") / f"{id_('r')}.safetensors", kind)
    town.send(run(DOUBLE, town.open, to="r"), get("r", "r"), get("s", "r"))
    town.ask("o", town.open, who="other")
    assert town.only("r") == town.only("s") == town.only("o", who="other") == [2.0, 4.0, 6.0]
    assert town.heard()["state"] == "up" and "trouble" not in town.heard()


def test_a_place_that_cannot_be_had_is_told_and_the_other_replies_go_out(town):
    place = folder(town, "out") / f"{id_('r')}.safetensors"
    plant(place, "full folder")

    def may_not(*_, **__):
        raise OSError(errno.EPERM, "not permitted")

    fs.FAILPOINTS["aside.rename"] = may_not
    town.send(run(DOUBLE, town.open, to="r"), get("r", "r"), get("s", "r"))
    town.ask("o", town.open, who="other")
    assert town.only("s") == town.only("o", who="other") == [2.0, 4.0, 6.0]
    assert [id_("r"), "blocked"] in town.heard()["held"]
    assert town.gate.served[NAME].nap_s > 0 and "trouble" not in town.heard("other")
    home = town.at_home()
    assert [e.ref for e in home.journal.events() if e.kind == "refused"] == [id_("r")]
    home.close()
    town.fall()
    assert town.came("s") is not None and place.is_dir()
    fs.FAILPOINTS.clear()
    town.go()
    town.go()
    assert town.only("r") == [2.0, 4.0, 6.0] and not town.heard()["held"]


@pytest.mark.parametrize("name", ["card", "catalog", "heartbeat"])
@pytest.mark.parametrize("kind", ["folder", "full folder", "FIFO", "link"])
def test_a_devices_own_three_files_are_written_whatever_stands_there(name, kind, town):
    path = folder(town, f"{name}.json")
    path.unlink(missing_ok=True)
    plant(path, kind)
    owner = town.at_home()
    owner.trust(next(r for r in owner.trusted() if r.name == town.names["enemy"]))
    owner.close()
    town.ask("r", town.open)
    town.go()
    assert town.only("r") == [2.0, 4.0, 6.0]
    assert path.is_file() and not path.is_symlink() and json.loads(path.read_bytes().split(b"\n")[0])["kind"] == name


@pytest.mark.parametrize("name", ["in", "out"])
@pytest.mark.parametrize("kind", ["file", "link", "FIFO"])
def test_a_pair_whose_folders_are_none_holds_up_nobody_else(name, kind, town):
    town.go()
    folder(town, name).rename(folder(town, "was"))
    plant(folder(town, name), kind)
    if name == "out":
        town.slip(run(DOUBLE, town.open, to="r"), get("r", "r"))
    for n in range(3):
        town.ask(f"o{n}", town.open, who="other")
        assert town.only(f"o{n}", who="other") == [2.0, 4.0, 6.0]
    assert town.heard()["trouble"] == "unreachable" and "trouble" not in town.heard("other")
    assert town.gate.served[NAME].nap_s > 0
    folder(town, name).unlink()
    folder(town, "was").rename(folder(town, name))
    town.ask("again", town.open)
    town.go()
    assert town.only("again") == [2.0, 4.0, 6.0] and "trouble" not in town.heard()


# -- quotas


def test_values_have_their_room_and_a_drop_frees_it(town):
    limit(town, stored_bytes=10_000)
    for n in range(4):
        town.send(Put(id_(f"v{n}"), "t0"), get(f"v{n}", f"v{n}"), t0=ones(750))
    assert [type(town.only(f"v{n}")) for n in range(3)] == [list] * 3
    failure = town.failure("v3")
    assert failure.code == "quota" and failure.fields["which"] == "stored_bytes" and "drop" in failure.fields["hint"]
    town.fall()
    town.send(run(DOUBLE, "v0", to="no"), get("no", "no"))
    assert town.only("no") == "quota"
    town.send(Drop((id_("v0"),), ()))
    town.send(Put(id_("w"), "t0"), get("w", "w"), t0=ones(750))
    assert town.only("w") == [1.0] * 750
    town.ask("o", town.open, who="other")
    assert town.only("o", who="other") == [2.0, 4.0, 6.0]


def test_one_value_in_hundreds_of_replies_is_refused_before_they_are_made(town):
    limit(town, published_bytes=1 << 20, repeated_bytes=100_000)
    town.send(Put(id_("v"), "t0"), t0=ones(10_000))
    message = town.send(*(get(f"r{n}", "v") for n in range(300)))
    out = [p.stat().st_size for p in folder(town, "out").iterdir()]
    assert len(out) == 300 and sum(out) < 600_000
    assert len([n for n in range(300) if town.only(f"r{n}") != "quota"]) == 3
    assert town.failure("r299").fields["which"] == "repeated_bytes" and message


def test_replies_count_before_they_are_made_and_an_acknowledgement_frees_room(town):
    limit(town, published_bytes=50_000)
    town.send(Put(id_("v"), "t0"), t0=ones(5_000))
    for n in range(4):
        town.slip(run(IDENT, "v", to=f"r{n}"), get(f"r{n}", f"r{n}"))
    town.go()
    came = [town.only(f"r{n}") for n in range(4)]
    assert [c == "quota" for c in came].count(True) == 2
    assert sum(p.stat().st_size for p in folder(town, "out").iterdir()) <= 50_000
    town.fall()
    town.send(get("more", "v"))
    assert town.failure("more").fields["which"] == "published_bytes"
    town.send(Ack(tuple(id_(f"r{n}") for n in range(4))))
    town.send(get("then", "v"))
    assert town.only("then") == [1.0] * 5_000


def test_a_reply_that_never_fits_is_refused_by_the_limits_name(town):
    limit(town, published_bytes=10_000)
    town.send(Put(id_("v"), "t0"), get("v", "v"), t0=ones(5_000))
    assert town.failure("v").code == "quota" and "published_bytes" in town.failure("v").fields["hint"]


@pytest.mark.parametrize("falls", [False, True])
def test_what_no_type_foretells_waits_for_room_and_comes_when_there_is(falls, town):
    limit(town, published_bytes=30_000)
    town.send(Put(id_("v"), "t0"), get("first", "v"), t0=ones(2_500))
    town.send(run(WHERE, "later", to="found"), get("found", "found"))
    town.send(Put(id_("later"), "t0"), t0=ones(2_500))
    town.go()
    assert town.only("first") == [1.0] * 2_500 and town.came("found") is None
    assert [id_("found"), "room"] in town.heard()["held"]
    town.ask("o", town.open, who="other")
    assert town.only("o", who="other") == [2.0, 4.0, 6.0]
    if falls:
        town.fall()
        town.go()
        assert town.came("found") is None and [id_("found"), "room"] in town.heard()["held"]
    town.send(Ack((id_("first"),)))
    town.go()
    town.go()
    assert town.only("found") == list(range(2_500)) and not town.heard()["held"]


def test_plans_have_their_room_and_those_without_are_told_and_may_come_again(town):
    limit(town, plans=1)
    town.ask("a", town.open, plan=DOUBLE)
    town.ask("b", town.open, plan=IDENT)
    assert town.only("a") == [2.0, 4.0, 6.0] and town.failure("b").fields["which"] == "plans"
    limit(town, plans=5)
    town.ask("c", town.open, plan=IDENT)
    assert town.only("c") == [1.0, 2.0, 3.0]


def test_messages_that_wait_count_and_what_they_let_go_of_is_let_go_of(town):
    limit(town, stored_bytes=30_000)
    town.send(Put(id_("v"), "t0"), t0=ones(2_000))
    for n in range(3):
        town.send(run(DOUBLE, "never", to=f"w{n}"), Put(id_(f"p{n}"), "t0"), get(f"w{n}", f"w{n}"), t0=ones(1_500))
    assert town.only("w2") == "quota" and town.came("w0") is None
    town.send(run(DOUBLE, "v", to="x"), Drop((id_("v"), id_("p0")), ()), get("x", "x"))
    town.send(Put(id_("u"), "t0"), get("u", "u"), t0=ones(1_000))
    assert town.only("u") == [1.0] * 1_000


# -- what is private counts against the device


def test_what_private_calls_made_counts_for_the_owner_alone(town):
    limit(town, private_bytes=10)
    for reply in ("a", "b"):
        town.ask(reply, town.p)
        town.word(reply, "approve")
    assert town.only("a") == [2.0, 4.0, 6.0] and town.came("b") is None
    assert [id_("b"), "asked"] in town.heard()["held"] and town.gate.idle
    home = town.at_home()
    assert [e.kind for e in home.journal.events() if e.kind == "no room"] == ["no room"]
    home.close()
    town.send(Drop((id_("a"),), ()))
    town.go()
    town.go()
    assert town.only("b") == [2.0, 4.0, 6.0]


def test_room_tells_nothing_of_private_sizes_nor_of_a_look(tmp_path):

    def play(town):
        limit(town, published_bytes=12_000, stored_bytes=60_000)
        for n in range(6):
            town.send(run(WHERE, town.p, to=f"w{n}"), run(DOUBLE, town.p, to=f"d{n}"), get(f"w{n}", f"w{n}", f"d{n}"))
        for n in range(6):
            if town.looks and town.card(f"w{n}") is not None:
                town.word(f"w{n}", "look")
            else:
                town.go()
        town.restart()
        town.go()
        for n in range(6):
            town.send(Put(id_(f"v{n}"), "t0"), get(f"v{n}", f"v{n}"), get(f"again {n}", f"d{n}"), t0=ones(300))
        assert any(town.came(f"v{n}") and town.only(f"v{n}") == "quota" for n in range(6))

    twin(tmp_path, play)


def test_an_unknown_limit_is_told_in_words(town):
    limit(town, everything=3)
    with pytest.raises(UsageError, match="unknown limit 'everything'"):
        Home(town.config.devices / NAME, town.config)


def test_who_sends_more_messages_than_may_wait_is_told_by_the_limits_name_and_nobody_else_is(town):
    limit(town, messages=3)
    for n in range(6):
        town.slip(run(DOUBLE, town.p, to=f"f{n}"))
    for _ in range(3):
        town.go()
        town.now += 6
        town.gate.step(town.now)
    beats = {who: json.loads((folder(town, "", who) / "heartbeat.json").read_bytes()) for who in ("enemy", "other")}
    assert {who: beat.get("trouble", "") for who, beat in beats.items()} == {"enemy": "quota", "other": ""}
    assert "limits.messages" in fetch.HOLDS["quota"]
    assert len(list(folder(town, "in").iterdir())) == 3


def test_a_reply_whose_texts_no_file_holds_is_a_failure_and_holds_up_no_other(town):
    """4,000 reasons that name a plan with a long name: the header of a file has 4 MiB."""
    negated = Graph((ROWS,), (Action("aten.neg", (Var(0),), {}, (ROWS,)),), Var(1), {"n": 0})
    wide = PlanFile(negated, {}, About('"' * 300))
    names = [f"n{n}" for n in range(4000)]
    for start in (0, 2000):
        town.slip(
            SendPlan(wide.id, wide.graph, (), wide.about), *(run(wide, 7, to=n) for n in names[start : start + 2000])
        )
    town.slip(get("all", *names))
    town.slip(Put(id_("z"), "t0"), get("z", "z"), t0=f32(5))
    town.go()
    assert town.only("z") == [5.0]
    assert set(town.came("all").values()) == {"failed"}
