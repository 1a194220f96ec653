"""After a restart: what was open is taken up from the journal, what an end left lying is cleared away."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fedq import fs, ids
from fedq.device.drops import DropRow
from fedq.device.home import Home
from fedq.device.intake import SUFFIX
from fedq.device.journal import Taken
from fedq.device.peer import Peer
from fedq.plan.codec import decode
from fedq.queue.message import message_from_json

log = logging.getLogger("fedq.device")


def reenter(home: Home, peers: Mapping[str, Peer], now: float, *, blame: bool = True) -> None:
    """Enter what is open in the journal; inside one of its transactions.

    Args:
        blame: what was running when the last gate ended is told so; see `Journal.charge_gate`.
    """
    journal = home.journal
    journal.set_back(now)
    if blame:
        journal.charge_gate(now)
    journal.forget_started()
    for (sender, *call), ends in journal.ends().items():
        if sender in peers:
            peers[sender].ends[*call] = ends  # type: ignore[index]
    for question in journal.questions():
        if question.sender in peers:
            calls = {(message, action) for message, action, *_ in question.about["calls"]}
            peers[question.sender].questions.kept |= calls
            peers[question.sender].questions.before.add(question.reply)
    for taken in journal.open_messages():
        if taken.sender in peers:
            _enter(home, peers[taken.sender], taken, now)
    for row, sender, values, after, expires in journal.drops():
        if sender in peers:
            peers[sender].drops.add(DropRow(row, values, after, expires))
    for wanted in journal.wanted():
        peer, message = peers.get(wanted.sender), journal.message(wanted.sender, wanted.message)
        if peer is not None and message is not None and wanted.id not in peer.wants:
            peer.want(wanted, message)
    for peer in peers.values():
        peer.questions.take_up(now)
        peer.settle(now)  # so that calls are known to be asked for, before any is given up


def _enter(home: Home, peer: Peer, taken: Taken, now: float) -> None:
    try:
        raw = taken.file or fs.map_private(home.spool(peer.name) / taken.id)
    except FileNotFoundError:
        log.error("%s: message %s of %s lost its file; it is given up", home.name, taken.id, peer.name)
        home.journal.done([(peer.name, taken.id)])
        return
    if taken.file is None:
        peer.spooled.add(taken.id)
    file = decode(raw)
    peer.sizes[taken.id] = len(raw)
    peer.enter(message_from_json(file.body), file, taken, now, again=True)


def _has_file(home: Home, scope: str, id_: str) -> bool:
    value = home.journal.value(scope, id_)
    return value is not None and value.in_file


def clear_leftovers(home: Home, peer: Peer) -> None:
    """Files that an end left behind, before the commit that names them or after the one that does not.

    At once: the next step may write them anew.
    """
    values = (n.removesuffix(SUFFIX) for n in fs.names(home.store.folder / peer.name))
    gone = tuple(i for i in values if ids.is_id(i) and not _has_file(home, peer.name, i))
    home.store.forget(peer.name, gone)
    for name in fs.names(home.spool(peer.name)):
        if ids.is_id(name) and name not in peer.spooled:
            fs.delete(home.spool(peer.name) / name)
    out = (n.removesuffix(SUFFIX) for n in peer.pair.carrier.list("out"))
    peer.delete += [i for i in out if (w := home.journal.reply(peer.name, i)) and w.state == "acked"]
