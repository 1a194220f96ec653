"""One device being served: what arrives, what it means, what goes out.

A step has four parts. *Collect* reads new files and workers' answers. *Decide* happens in one
transaction of the journal: messages are recorded, results are stored, attempts are counted.
*Act* follows the commit and may be done again after a crash: batches are handed over, replies
published. *Tidy* is what nobody waits for, when nothing else is to be done: values are dropped,
shared files deleted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from fedq import fs
from fedq.device import batch as batches
from fedq.device import boots, kinds, restart
from fedq.device.beat import SOON_S, Beats
from fedq.device.calls import Call
from fedq.device.home import Home
from fedq.device.intake import SUFFIX, Arrival
from fedq.device.journal import Taken
from fedq.device.lanes import Crew, Lane
from fedq.device.peer import STOPPED, Peer, Want
from fedq.device.pool import Answer, Died
from fedq.device.publish import Blocked, Publisher
from fedq.device.tidy import Tidier
from fedq.device.times import Time
from fedq.errors import FedqError, OldCopy, Quota, Unreachable
from fedq.queue.message import Fold, Get, Run
from fedq.queue.watch import Heard

log = logging.getLogger("fedq.device")

SPOOL_BYTES = 8 << 20
"""Larger messages are kept as files beside the journal until they are done."""
MAX_TAKEN = 100
"""Files taken in one step, over all requesters: a flood is worked off in turns, 30 ms each."""
MAX_PUBLISHED = 50
"""Replies of one requester written in one step: each may cost an fsync or two."""
MAX_TAKEN_BYTES = 64 << 20
MANY_CALLS = 100
"""Before the answer to so many is recorded, their worker gets more: it need not wait for the journal."""
LOOK_S = 1.0
"""How often time itself is looked at: what expired, what waited too long."""
SWEEP_S = 3600.0
SWEEP_AGE_S = 24 * 3600.0
"""Temporary files that were not written to for so long are swept."""


class Answered(NamedTuple):
    """What came of the calls that a lane's worker had."""

    peer: Peer
    lane: Lane
    said: Answer | Died
    calls: list[Call]
    row: int


class Served:
    """A device while a gate serves it.

    Args:
        crew: gives workers, called at a requester's first batch.

    Raises:
        Unreachable: the queue root is not there, or is another.
    """

    def __init__(self, home: Home, crew: Crew, *, now: float) -> None:
        self.home, self.journal, self.name = home, home.journal, home.name
        home.check_root()
        boot, home.is_latest = boots.begin(home), True
        self._crew = crew
        self.peers: dict[str, Peer] = {}
        self._answers: list[Answered] = []
        self._publisher, self._beats = Publisher(home), Beats(home, boot)
        self._first = 0
        self._looked_at = self._swept_at = 0.0
        self._held_up = False
        self._ahead: BaseException | None = None
        self._poison: set[str] = set()
        self._scribe = kinds.Scribe()
        self.time = Time(*self.journal.time())
        self._tidier = Tidier(home, self._publisher, self.time)
        self.trouble = ""
        """What holds it up: the code of an error."""
        self._trouble: FedqError | None = None
        self._pair_trouble: FedqError | None = None
        self._untold: list[tuple[Peer, str]] = []
        self._private: tuple[float, int] = (0.0, 0)
        self.full = False
        """Whether calls that their owner approved wait, because private calls made as much as there may be."""
        self.twin: OldCopy | None = None
        """Another copy of this device that was seen: nothing more is done here."""
        self.refresh()
        self._recover(self.time.read(now))

    def refresh(self) -> None:
        """Look again at who is trusted and what the owner changed; if that fails, the next step looks again."""
        before, self.home.changed = self.home.deadline_s, True
        self.home.reread()
        for peer in self.peers.values() if self.home.deadline_s != before else ():
            for lane in [lane for lane in peer.lanes if not lane.calls]:
                self._crew.close(peer, lane)  # its worker has the deadline it was started with
        trusted = self.home.trusted()
        self._part({requester.name for requester in trusted})
        for requester in trusted:
            if requester.name not in self.peers:
                with self._apart():
                    self.peers[requester.name] = Peer(self.home, requester.name, requester.key, self._poison)
        for peer in self.peers.values():
            peer.catalog_due = True
            peer.resume()
            peer.unseen = True
        self.home.changed = not self.peers.keys() >= {requester.name for requester in trusted}

    def _part(self, trusted: set[str]) -> None:
        """Of requesters who are not trusted any more nothing is taken, and the next step ends their workers."""
        for peer in self.peers.values():
            peer.leaving = peer.name not in trusted
            peer.cut += [lane for lane in peer.lanes if peer.leaving and lane not in peer.cut]

    def _forget_parted(self) -> None:
        """Those of them who were told what was decided."""
        for peer in [p for p in self.peers.values() if p.leaving and not (p.unseen or p.touched or p.publish)]:
            self._crew.leave(peer)
            del self.peers[peer.name]
            with self._apart():
                self._beats.beat(peer, self.time.high, "down", "")
            log.info("%s: %s is not trusted any more", self.name, peer.name)

    @contextmanager
    def _apart(self, peer: Peer | None = None) -> Iterator[None]:
        """What goes wrong with one requester's folder holds up no other: it rests for a moment, the others go on.

        What concerns all, the step raises at its end.
        """
        try:
            yield
        except FedqError as error:
            if peer is None:
                self._trouble = self._trouble or error
                return
            self._pair_trouble = self._pair_trouble or error
            if peer.trouble_told != str(error):
                self._untold.append((peer, str(error)))
            peer.trouble, peer.rests_until = error.code, self.time.high + LOOK_S

    @property
    def _awake(self) -> list[Peer]:
        """Requesters whose folders can be used, as far as is known."""
        return [peer for peer in self.peers.values() if not peer.rests_until]

    def _wake_rested(self, now: float) -> None:
        for peer in self.peers.values():
            if not peer.rests_until and not peer.trouble and peer.trouble_told:
                log.info("%s: goes on for %s", self.name, peer.name)
                peer.trouble_told = ""
            if not now < peer.rests_until <= now + LOOK_S:
                peer.trouble, peer.rests_until = "", 0.0

    def _wrong(self) -> FedqError | None:
        """What the whole device is held up by: something of its own, or that nobody's folder can be used.

        Then nobody rests. Else who is held up alone is named in the log, once.
        """
        everybody = self._pair_trouble if self._pair_trouble and not self._awake else None
        trouble = self._trouble or everybody
        if trouble is not None:
            for peer in self.peers.values():
                peer.rests_until = 0.0
            return trouble
        for peer, why in self._untold:
            peer.trouble_told = why
            log.error("%s: held up for %s: %s", self.name, peer.name, why)
        return None

    def close(self) -> None:
        """End its workers; nothing is lost by it, and what they did counts as no attempt."""
        cut_off = [lane.row for peer in self.peers.values() for lane in peer.lanes if lane.calls]
        for peer in self.peers.values():
            self._crew.leave(peer)
        with suppress(FedqError), self.journal.transaction():
            self._publisher.note(self.time.high)
            self.journal.ended(cut_off)

    @property
    def idle(self) -> bool:
        """Whether nothing is running or ready to run."""
        busy = (
            p.queue
            or (p.questions.queue and not self.full)
            or p.unseen
            or any(n.calls for n in p.lanes)
            or p.touched
            or (p.publish and not p.rests_until)
            for p in self.peers.values()
        )
        return not self._tidier.untidy(self.peers) and not any(busy)

    # -- a step

    def step(self, now: float, *, scan: bool = True, heard: Heard = None, due: bool = True) -> bool:
        """Do what can be done now without waiting; whether there was anything.

        Args:
            scan: look for new files.
            heard: names by folder; None: whatever there may be. due: whether folders are to be listed, too.

        Raises:
            DiskFull, Unreachable: something could not be done, and is done by a later step.
            OtherTorch: calls wait; all else is done.
            OldCopy: another copy of this device is at work; nothing is done.
        """
        if self.twin is not None:
            raise self.twin
        self._held_up, self._trouble, self._pair_trouble, self._untold = True, None, None, []
        try:
            busy = self._step(self.time.read(now), scan=scan, heard=heard, due=due)
            self._trouble = self._trouble or self._crew.unfit
            if (trouble := self._wrong()) is not None:
                raise trouble
        except Exception as error:
            self.trouble = error.code if isinstance(error, FedqError) else FedqError.code
            raise
        self._held_up, self.trouble = False, ""
        return busy

    def _step(self, now: float, *, scan: bool, heard: Heard, due: bool) -> bool:
        if self._ahead is not None:
            self._rebuild(self._ahead, now)
        if scan:
            self._wake_rested(now)
        arrivals = self._collect(now, scan=scan, heard=heard, due=due) if scan or self._more else []
        lanes = ((peer, lane) for peer in self.peers.values() for lane in peer.lanes)
        self._answers = [Answered(peer, lane, *said, lane.row) for peer, lane in lanes if (said := lane.answer())]
        if scan and (self.journal.changed_elsewhere() or self.home.changed):
            self.refresh()
        busy = bool(arrivals or self._answers or self._ready)
        if idle := [a.peer for a in self._answers if len(a.calls) >= MANY_CALLS and isinstance(a.said, Answer)]:
            self._record(lambda: self._start_all(idle, now))
            self._hand_over()
        looked = self._look(now)
        if busy or looked:
            self._record(lambda: self._decide(arrivals, now))
        self._act()
        tidied = self._tidier.turn(looked or not busy) and self._tidy(now)
        self._sweep(now)
        return busy or tidied

    def _record(self, decide: Callable[[], object]) -> None:
        """Decide, in one transaction; if it fails, what is in memory is ahead of the journal."""
        try:
            with self.journal.transaction():
                decide()
        except BaseException as error:
            self._ahead = error
            raise

    def _rebuild(self, why: BaseException, now: float) -> None:
        """Forget what the journal does not know, and begin again from there, as after a restart.

        A full disk is not a call's fault; what else goes wrong may be: it counts as an end of the gate.
        """
        for peer in self.peers.values():
            self._crew.leave(peer)
        self.peers = {}
        self._publisher.forget()
        self.refresh()
        self._recover(now, blame=not isinstance(why, Unreachable))
        self._ahead = None

    @property
    def _ready(self) -> bool:
        return any(
            p.touched
            or p.unseen
            or (p.publish and not p.rests_until)
            or p.cut
            or (p.questions.queue and not self.full and not any(n.sources and n.calls for n in p.lanes))
            or (p.queue and not p.stalled and self._crew.may_start(p))
            for p in self.peers.values()
        )

    @property
    def nap_s(self) -> float:
        """How long a gate may wait before the next step, if nothing calls."""
        if self._held_up:
            return LOOK_S
        at_once = self._more or self._ready or (self._tidier.untidy(self.peers) and not self.patient)
        return 0.0 if at_once else SOON_S if self._beats.unsaid else LOOK_S

    @property
    def patient(self) -> bool:
        """Whether it would rather hear of a worker than tidy up."""
        untidy = self._tidier.untidy(self.peers) and not self._held_up
        return untidy and any(p.running for p in self.peers.values())

    def _look(self, now: float) -> bool:
        """Whether time has come for something, or something is to be noted."""
        if 0 <= now - self._looked_at < LOOK_S:
            return False
        self._looked_at = now
        for peer in (p for p in self.peers.values() if p.blocked):
            peer.publish.extend(peer.blocked.values())
            peer.blocked.clear()
        if self.full or any(p.inbox.unnoted for p in self.peers.values()):
            return True
        return any(p.late(now) for p in self.peers.values()) or self._tidier.due(now)

    # -- collect

    @property
    def _more(self) -> bool:
        """Whether files are left that may be taken."""
        return any(p.inbox.more and p.room for p in self._awake)

    def _collect(self, now: float, *, scan: bool, heard: Heard, due: bool) -> list[tuple[Peer, Arrival]]:
        """New messages, a share of each requester's: a flood of one is worked off in turns with the others'."""
        arrivals: list[tuple[Peer, Arrival]] = []
        size = 0
        peers = [peer for peer in self.peers.values() if not peer.leaving]
        for peer in peers[self._first :] + peers[: self._first]:
            if peer.rests_until:
                continue
            with self._apart(peer):
                names = {} if not scan else heard
                said = None if names is None else names.get(str(peer.pair.carrier.path("in")), set())
                peer.inbox.scan(now, names=said, due=due and scan)
                share = MAX_TAKEN if len(peers) == 1 else max(5, MAX_TAKEN // len(peers))
                room = peer.room
                new = peer.inbox.take(min(share, room), MAX_TAKEN_BYTES - size)
                peer.full = not room and peer.inbox.more
                arrivals += [(peer, arrival) for arrival in new]
                size += sum(len(arrival.raw) for arrival in new)
        self._first = (self._first + 1) % max(1, len(peers))
        return arrivals

    # -- decide

    def _decide(self, arrivals: list[tuple[Peer, Arrival]], now: float) -> None:
        for answered in self._answers:
            self._answered(answered, now)
        for peer, arrival in arrivals:
            if peer.leaving:
                continue
            try:
                self._take(peer, arrival, now)
            except (Unreachable, OSError):
                raise
            except Exception:  # a message that the gate stumbles over must not come up again and again
                self._poison.add(arrival.digest)
                raise
        for peer in self.peers.values():
            if peer.unseen:
                peer.look_again()
            peer.give_up(now)
            peer.settle(now)
            self._cut(peer)
            self._note_refused(peer, now)
        self._crew.give_way()
        for peer in self.peers.values():
            self._cut(peer)
        self._start_all(self.peers.values(), now)
        for peer in self.peers.values():
            peer.settle(now)

    def _note_refused(self, peer: Peer, now: float) -> None:
        """What its owner finds in the record: files that are not taken."""
        unnoted, peer.inbox.unnoted = peer.inbox.unnoted, []
        for id_, why in unnoted:
            try:
                self.journal.record("refused", peer.name, id_, kinds.printable(why[:500]), now=now)
            except (Unreachable, OSError):
                raise
            except Exception:  # what the gate stumbled over once it may stumble over again
                log.exception("%s: file %s of %s is not in the record", self.name, id_, peer.name)

    def _take(self, peer: Peer, arrival: Arrival, now: float) -> None:
        """Record a message and enter it; one that can not be entered harms no other."""
        message, raw = arrival.message, arrival.raw
        if arrival.again:
            self._again(peer, arrival)
            return
        calls = any(isinstance(verb, Run | Fold) for verb in message.actions)
        lacks = peer.quota.lacks(len(raw)) if calls else None
        large = len(raw) > SPOOL_BYTES and lacks is None
        if large:
            folder = self.home.spool(peer.name)
            fs.make_dir(folder)
            fs.replace(folder / message.id, [raw], durable=self.home.durable)
            peer.spooled.add(message.id)
        kept = None if large or lacks is not None else bytes(raw)
        taken = Taken(peer.name, message.id, arrival.digest, now, message.expires, "taken", 0, kept)
        self.journal.take(taken)
        if lacks is not None:
            peer.refuse(message, taken, lacks, now)
        else:
            peer.sizes[message.id] = len(raw)
            peer.enter(message, arrival.file, taken, now)
            peer.sizes.clear()
        peer.inbox.taken.append(message.id)

    def _again(self, peer: Peer, arrival: Arrival) -> None:
        """A message that came before: its replies are published again, if they are not out."""
        taken = self.journal.message(peer.name, arrival.message.id)
        carrier = peer.pair.carrier
        for verb in arrival.message.actions:
            if isinstance(verb, Get) and verb.reply not in peer.wants:
                wanted = self.journal.reply(peer.name, verb.reply)
                there = carrier.mark(f"out/{verb.reply}{SUFFIX}") is not None
                if taken is not None and wanted is not None and wanted.state == "published" and not there:
                    peer.want(wanted, taken)
        peer.inbox.taken.append(arrival.message.id)

    def _start_all(self, peers: Iterable[Peer], now: float) -> None:
        for peer in peers:
            if not peer.leaving:
                self._start(peer, now)

    def _start(self, peer: Peer, now: float) -> None:
        """Make the next batches, and note them before they start."""
        while peer.queue and not peer.stalled and (lane := self._lane(peer)) is not None:
            share = -(-len(peer.queue) // self._crew.width)
            suspects = not any(c.suspect for p in self.peers.values() for n in p.lanes for c in n.calls[:1])
            batch = batches.make(peer, lane, peer.queue, now, min(share, lane.most_calls), suspects=suspects)
            if not batch.calls:
                peer.stalled = bool(peer.queue)
                return
            self._note(peer, lane, batch)
        self._start_private(peer, now)

    def _start_private(self, peer: Peer, now: float) -> None:
        """What the owner said a word for, in a lane of its own."""
        queue = peer.questions.queue
        if queue and not self._has_private_room(peer, now):
            return
        while queue and (lane := self._lane(peer, peer.private_sources(queue[0]))) is not None:
            suspects = not any(c.suspect for p in self.peers.values() for n in p.lanes for c in n.calls[:1])
            batch = batches.make(peer, lane, queue, now, lane.most_calls, suspects=suspects)
            if not batch.calls:
                return
            self._note(peer, lane, batch)

    def _has_private_room(self, peer: Peer, now: float) -> bool:
        """Whether private calls made less than they may. Its owner alone is told if not: what they made is private."""
        time, made = self._private
        if not time <= now < time + LOOK_S:
            made = self.journal.private_bytes()
            self._private = now, made
        most, was = self.home.limits.private_bytes, self.full
        self.full = made >= most
        if self.full and not was:
            text = f"private calls made {made:,} bytes of at most {most:,}: what you approved waits until some are gone"
            log.warning("%s: %s", self.name, text)
            self.journal.record("no room", peer.name, peer.questions.queue[0].name, text, now=now)
        return not self.full

    def _note(self, peer: Peer, lane: Lane, batch: batches.Batch) -> None:
        lane.row = self.journal.start(peer.name, [call.key for call in batch.calls])
        lane.calls, lane.start = batch.calls, batch

    def _lane(self, peer: Peer, sources: frozenset[str] = frozenset()) -> Lane | None:
        with self._apart():
            try:
                if sources:
                    return self._crew.private(peer, sources, deadline_s=self.home.deadline_s)
                return self._crew.free(peer, deadline_s=self.home.deadline_s)
            except OSError as error:
                raise fs.told(error, sys.executable) from error
        return None

    def _answered(self, answered: Answered, now: float) -> None:
        peer, lane, said, calls, row = answered
        self.journal.ended([row])
        if calls[0].suspect:
            self._wake()
        if isinstance(said, Died):
            self._bury(peer, lane, said, calls, now)
            return
        for call, row_ in zip(calls, said.rows, strict=True):
            if row_[0] == "e":
                self._write_down(call, row_, now)
            peer.answered(call, batches.values(peer, call, row_, said.tensors, lane.worker.held), now)

    def _write_down(self, call: Call, row: list[Any], now: float) -> None:
        """Why a call failed, in full: for the owner, in the log."""
        where = f"{self.name}: action {call.action} of message {call.message} of {call.sender}"
        code = "" if row[1] == "failed" else f"{row[1]}: "
        said = kinds.printable(f"{code}{row[2].removesuffix(' failed')}"[:500])
        log.info("%s failed: %s", where, said)
        lines = list(self._scribe.lines(row[4] if len(row) > 4 else "", now))
        for line in lines:
            log.info("%s: | %s", self.name, line)
        self.journal.record("failed", call.sender, call.name, "\n".join([said, *lines]), now=now)

    def _bury(self, peer: Peer, lane: Lane, died: Died, calls: list[Call], now: float) -> None:
        """A worker ended in the middle: blame one call, put all back in their order."""
        log.warning("%s: %s, on call %d of %d of %s", self.name, died.why, died.at + 1, len(calls), peer.name)
        self._crew.close(peer, lane)
        blamed = calls[min(died.at, len(calls) - 1)]
        for line in self._scribe.lines(died.said, now):
            log.warning("%s: | %s", self.name, line)
        self.journal.record("worker ended", peer.name, blamed.name, died.why, now=now)
        peer.blame(blamed, died, now)
        peer.put_back(lane, calls)

    def _cut(self, peer: Peer) -> None:
        """End the workers that do what was cancelled; the other calls of their batches are put back, nobody blamed."""
        for lane in dict.fromkeys(peer.cut):
            self._crew.close(peer, lane)
            self.journal.ended([lane.row])
            peer.put_back(lane, lane.calls)
            self._wake()
        peer.cut.clear()

    def _wake(self) -> None:
        """What waited for another lane may be started."""
        for peer in self.peers.values():
            peer.stalled = False

    # -- act

    def _hand_over(self) -> None:
        """Give the workers what was made ready for them."""
        for lane in (lane for peer in self.peers.values() for lane in peer.lanes):
            if lane.start is not None:
                batch, lane.start = lane.start, None
                lane.worker.start(batch.head, batch.tensors)

    def _act(self) -> None:
        self._hand_over()
        for peer in self._awake:
            with self._apart(peer):
                self._catalog(peer)
            with self._apart(peer):
                self._act_for(peer)
        self._forget_parted()

    def _catalog(self, peer: Peer) -> None:
        """Before the replies: who got one finds by its tag what came to be with it."""
        if peer.catalog_due:
            self.home.tell([peer.name])
            peer.catalog_due = False

    def _act_for(self, peer: Peer) -> None:
        for _ in range(min(MAX_PUBLISHED, len(peer.publish))):
            want = peer.publish[0]
            if not peer.has_room(want):
                peer.roomless[want.wanted.id] = peer.publish.popleft()
                continue
            try:
                self._publisher.publish(peer, want)
            except Blocked as error:
                self._block(peer, peer.publish.popleft(), str(error))
                continue
            peer.out(peer.publish.popleft())

    def _block(self, peer: Peer, want: Want, why: str) -> None:
        """A reply's place cannot be had: it is tried again, the other replies go out."""
        peer.blocked[want.wanted.id] = want
        if not want.told:
            want.told = True
            log.error("%s: %s", self.name, why)
            peer.inbox.unnoted.append((want.wanted.id, why))

    def _tidy(self, now: float) -> bool:
        """Do what nobody waits for; whether there was anything."""
        untidy = self._tidier.untidy(self.peers)
        if self._tidier.has_rows(self.peers, now):
            self._record(lambda: self._tidier.record(self.peers, now))
        for peer in self.peers.values():
            with self._apart(peer):
                self._tidier.delete_files(peer)
        return untidy

    def _recover(self, now: float, *, blame: bool = True) -> None:
        """Take up what was open when the last gate ended, however it ended."""
        with self.journal.transaction():
            restart.reenter(self.home, self.peers, now, blame=blame)
        for call in (c for p in self.peers.values() for c in (*p.stopped(), *p.questions.stopped())):
            what = f"{self.name}: action {call.action} of message {call.message} of {call.sender} is {STOPPED}"
            log.warning("%s; 'fedq device resume %s %s' lets it go on", what, self.name, call.message)
        for peer in self.peers.values():
            with self._apart(peer):
                restart.clear_leftovers(self.home, peer)

    def _sweep(self, now: float) -> None:
        """Now and then, temporary files that crashes left."""
        if not 0 <= now - self._swept_at < SWEEP_S:
            self._swept_at = now
            with self._apart():
                swept = self.home.sweep(before=now - SWEEP_AGE_S)
                log.info("%s: %d temporary files swept", self.name, swept) if swept else None

    # -- what others see

    def beat(self, now: float, state: str = "up") -> None:
        """Write the heartbeats that are due."""
        self._trouble, self._beats.unsaid = None, False
        for peer in self.peers.values():
            with self._apart():
                try:
                    self._beats.beat(
                        peer, now, state, self.trouble or peer.trouble or (Quota.code if peer.full else "")
                    )
                except OldCopy as error:
                    self.twin = error
                    raise
        if self._trouble is not None:
            raise self._trouble
