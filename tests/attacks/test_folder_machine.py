"""A carrier that plants, swaps, truncates and links, on both sides: every honest call is answered rightly."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from fedq import ids
from tests.device.world import World

KINDS = ("folder", "full folder", "FIFO", "link", "file", "sparse")
SUFFIX = ".safetensors"
SIDES = st.sampled_from(["in", "out"])
WHO = st.sampled_from([0, 1])
PICK = st.integers(0, 1000)


def plant(path: Path, kind: str) -> None:
    match kind:
        case "folder":
            path.mkdir()
        case "full folder":
            (path / "below").mkdir(parents=True)
        case "FIFO":
            os.mkfifo(path)
        case "link":
            path.symlink_to("/dev/zero")
        case "file":
            path.write_bytes(os.urandom(300))
        case "sparse":
            with path.open("wb") as file:
                file.truncate(3 << 30)


class Carrier(RuleBasedStateMachine):
    """Two requesters who call and ask, and someone who writes to their pairs."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="carrier-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.world = World(self.root)
        self.devices = [self.world.alice, self.world.requester("bob")]
        self.asked: list[tuple[int, str, list[float]]] = []
        self.cut: dict[Path, bytes] = {}
        self.moved: list[tuple[Path, Path]] = []
        self.count = 0

    def folder(self, who: int, side: str) -> Path:
        return Path(self.devices[who].pair.carrier.path(side))

    def is_whole(self, who: int) -> bool:
        return all(place != self.folder(who, side) for place, _ in self.moved for side in ("in", "out"))

    def fresh(self) -> str:
        self.count += 1
        return ids.derive("planted", self.count)

    @rule(who=WHO, number=st.integers(-5, 5), twice=st.booleans())
    def call(self, who: int, number: int, twice: bool) -> None:
        """An honest one, as long as its folder is one."""
        if not self.is_whole(who):
            return
        id_ = self.world.put(self.devices[who], number)
        self.asked.append((who, id_, [float(number)]))
        if twice:
            self.asked.append((who, self.world.double(self.devices[who], id_), [2.0 * number]))

    @rule()
    def serve(self) -> None:
        self.world.now += 1
        self.world.gate.step(self.world.now)

    @rule()
    def restart(self) -> None:
        self.world.restart()

    @rule(who=WHO, side=SIDES, kind=st.sampled_from(KINDS), form=st.booleans())
    def plant(self, who: int, side: str, kind: str, form: bool) -> None:
        """At a name of our form that nobody uses, or another."""
        if self.is_whole(who):
            plant(self.folder(who, side) / (self.fresh() + (SUFFIX if form else ".part")), kind)

    @rule(who=WHO, kind=st.sampled_from(KINDS), pick=PICK)
    def plant_at_a_reply(self, who: int, kind: str, pick: int) -> None:
        """Before it comes, or in its place."""
        mine = [id_ for w, id_, _ in self.asked if w == who]
        if mine and self.is_whole(who):
            path = self.folder(who, "out") / (mine[pick % len(mine)] + SUFFIX)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            plant(path, kind)

    @rule(who=WHO, pick=PICK)
    def swap_replies(self, who: int, pick: int) -> None:
        out = sorted(p for p in self.folder(who, "out").glob("*" + SUFFIX) if p.is_file()) if self.is_whole(who) else []
        if len(out) > 1:
            a, b = out[pick % len(out)], out[pick // 31 % len(out)]
            one, other = a.read_bytes()[: 1 << 20], b.read_bytes()[: 1 << 20]
            a.write_bytes(other)
            b.write_bytes(one)

    @rule(who=WHO, side=SIDES, pick=PICK)
    def truncate(self, who: int, side: str, pick: int) -> None:
        """A message is whole later, as where a tool that syncs writes in place."""
        found = (
            sorted(p for p in self.folder(who, side).glob("*" + SUFFIX) if p.is_file()) if self.is_whole(who) else []
        )
        if found:
            path = found[pick % len(found)]
            if path.stat().st_size < 1 << 20:
                whole = path.read_bytes()
                path.write_bytes(whole[: len(whole) * pick // 1000])
                if side == "in":
                    self.cut.setdefault(path, whole)

    @rule(who=WHO, side=SIDES, link=st.booleans())
    def replace_a_folder(self, who: int, side: str, link: bool) -> None:
        if self.is_whole(who):
            place = self.folder(who, side)
            away = place.with_name(f"away-{side}")
            place.rename(away)
            place.symlink_to(away) if link else place.write_bytes(b"")
            self.moved.append((place, away))

    @rule()
    def put_folders_back(self) -> None:
        for place, away in self.moved:
            place.unlink()
            away.rename(place)
        self.moved.clear()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.put_folders_back()
            for path, whole in self.cut.items():
                if path.is_file():
                    path.write_bytes(whole)
            for _ in range(6):
                self.world.now += 61
                self.world.step()
            for who, id_, right in self.asked:
                assert self.world.got(self.devices[who], id_) == right
        finally:
            self.world.close()
            shutil.rmtree(self.root, ignore_errors=True)


Carrier.TestCase.settings = settings(
    max_examples=int(os.environ.get("FEDQ_CARRIERS", "12")), stateful_step_count=25, deadline=None
)
TestCarrier = Carrier.TestCase
