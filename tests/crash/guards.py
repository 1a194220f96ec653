"""Each guard is taken away in a copy of the tree, one at a time, and some test must notice.

``python -m tests.crash.guards`` prints the table of docs/reliability.md. A guard is a piece of text
that stands in one file exactly once; when the code moved on, the guard is "moved" and its row here
must follow. The checks: the crash matrix (``kills``), the model of power cuts (``states``), or tests.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
KILLS = ("-m", "tests.crash", "--lanes", "1", "--seed", "7", "--kills", "2500")
STATES = ("-m", "tests.crash.powerloss", "--most", "24", "--limit", "900")
PYTEST = ("-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", "-p", "no:randomly")


def tests(*paths: str) -> tuple[str, ...]:
    return (*PYTEST, *paths)


PROMISES = tests("tests/crash/test_promises.py")
WORDS, LIMITS = tests("tests/attacks/test_owners_words.py"), tests("tests/attacks/test_limits.py")
MEANING = tests("tests/attacks/test_one_meaning.py")
SIGNED, LINKS = (tests(f"tests/attacks/test_threats_{name}.py") for name in ("signed_before", "links"))
RECEIVERS, COPIES = tests("tests/attacks/test_receivers.py"), tests("tests/attacks/test_copies.py")


@dataclass(frozen=True)
class Guard:
    """What it is for; where it stands, what is there, and what instead; who should notice."""

    what: str
    file: str
    old: str
    new: str
    check: tuple[str, ...]


FS, SERVE, PEER, JOURNAL = "fedq/fs/writing.py", "fedq/device/serve.py", "fedq/device/peer.py", "fedq/device/journal.py"
PUBLISH, RESTART = "fedq/device/publish.py", "fedq/device/restart.py"
OUTBOX, SENDING, SESSION = "fedq/client/outbox.py", "fedq/client/sending.py", "fedq/client/session.py"
CARRIER = "fedq/queue/carrier.py"
BOOTS = "fedq/device/boots.py"
QUESTIONS, BATCH, STORE, HOME = (f"fedq/device/{name}.py" for name in ("questions", "batch", "store", "home"))

GUARDS = (
    Guard("a file is fsynced before it has a name", FS,
          '        step(f"{what}.sync", os.fsync, file)', "        pass", STATES),
    Guard("put: the directory is fsynced before it returns", FS,
          '            step("put.sync_folder", sync, at)', "            pass", STATES),
    Guard("replace: the directory is fsynced before it returns", FS,
          '            step("replace.sync_folder", sync, at)', "            pass", STATES),
    Guard("put: a name whose last fsync failed is taken back", FS,
          "                if _take_back(at, name):\n                    raise", "                raise", PROMISES),
    Guard("make_dir: the parent is fsynced", FS,
          '        step("make_dir.sync_folder", sync, at)', "        pass", STATES),
    Guard("what is found under its name already is fsynced by who finds it", CARRIER,
          "                fs.flush(path)", "                pass", STATES),
    Guard("a file is written under no name, then linked", FS,
          "        if not (_UNNAMED and _put_unnamed(at, name, chunks, durable, mode, exact)):\n"
          "            _put_named(at, name, chunks, durable, mode, exact)",
          '        file = step("put.create", os.open, name, _NEW, mode, dir_fd=at)\n'
          '        _fill("put", file, chunks, durable)\n        os.close(file)', KILLS),
    Guard("a name is given by link, never over another file", FS,
          "        if not (_UNNAMED and _put_unnamed(at, name, chunks, durable, mode, exact)):\n"
          "            _put_named(at, name, chunks, durable, mode, exact)",
          '        temp = _write_temp("put", at, chunks, durable, mode, exact)\n'
          '        step("put.rename", os.rename, temp, name, src_dir_fd=at, dst_dir_fd=at)', tests("tests/test_fs.py")),
    Guard("replace: by rename, not in place", FS,
          '            step("replace.rename", os.replace, temp, name, src_dir_fd=at, dst_dir_fd=at)',
          '            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode, dir_fd=at)\n'
          '            _fill("replace", file, chunks, durable)\n            os.close(file)\n'
          "            os.unlink(temp, dir_fd=at)", tests("tests/test_fs.py")),
    Guard("a write that wrote less goes on", "fedq/fs/steps.py",
          "        rest = rest[written:]", "        return", tests("tests/test_fs.py")),
    Guard("one gate per devices root, by a lock", "fedq/fs/locks.py",
          'step("lock.flock", fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)', "pass", tests("tests/test_fs.py")),
    Guard("other bytes under a name that is taken are refused", CARRIER,
          "        if there is None or sha256([there]) != sha256(chunks):", "        if False:",
          tests("tests/queue/test_carrier.py")),
    Guard("commits are fsynced (synchronous=FULL)", "fedq/fs/database.py",
          "'FULL' if durable else 'OFF'", "'OFF'", STATES),
    Guard("send: the outbox is committed before the put", SENDING,
          "        _commit(device, draft, [part])\n",
          "        _put(device, part.id, part.chunks)\n        _commit(device, draft, [part])\n", KILLS),
    Guard("send: a message counts as put after it was put", SENDING,
          "        carrier.put(name, chunks)\n    except Conflict:",
          "        device.client.outbox.was_put(device.number, id_, chunks)\n"
          "        device.client.outbox.settle()\n        carrier.put(name, chunks)\n"
          "    except Conflict:", KILLS),
    Guard("send: what a crash cut off is finished at the next start", SESSION,
          "        self._finish_all()\n", "", KILLS),
    Guard("send: large messages are spooled before the commit that names them", OUTBOX,
          "                fs.replace(self._spooled(part.id, part.digest), part.chunks, durable=self._durable)",
          "                pass", KILLS),
    Guard("take: the shared copy is deleted after the commit", SERVE,
          "        self.journal.take(taken)\n",
          '        peer.pair.carrier.delete(f"in/{message.id}{SUFFIX}")\n        self.journal.take(taken)\n', KILLS),
    Guard("take: an id that was taken is not entered again", SERVE,
          "        if arrival.again:\n            self._again(peer, arrival)\n            return\n", "", KILLS),
    Guard("take: message, values and attempts share one commit", JOURNAL,
          '        self._db.execute("BEGIN IMMEDIATE")\n        try:\n            yield\n'
          '            self._write_added()\n            self._db.execute("COMMIT")',
          "        try:\n            yield\n            self._write_added()", KILLS),
    Guard("take: large messages are spooled before the commit", SERVE,
          "            fs.replace(folder / message.id, [raw], durable=self.home.durable)\n", "", KILLS),
    Guard("take: one id has one content", "fedq/device/inbox.py",
          "        if seen not in (None, digest):", "        if False:", PROMISES),
    Guard("do: what starts is in the journal before it starts", SERVE,
          "        lane.row = self.journal.start(peer.name, [call.key for call in batch.calls])\n", "",
          PROMISES),
    Guard("do: an end of the gate is counted, and what ran five times is held", RESTART,
          "        journal.charge_gate(now)\n", "        pass\n", PROMISES),
    Guard("do: an end of the gate is charged once", RESTART,
          "    journal.forget_started()\n", "", PROMISES),
    Guard("do: a worker's end is in the journal", PEER,
          "        self.journal.set_ends(self.name, call.message, call.action, ends)\n", "", PROMISES),
    Guard("do: an orderly stop, and what ended, is charged nothing", SERVE,
          "            self.journal.ended(cut_off)\n", "", PROMISES),
    Guard("do: what a call was charged is forgotten when it is done", PEER,
          "            self.journal.forget_ends(self.name, call.message, call.action)\n", "            pass\n", KILLS),
    Guard("do: what has a result is not done again", PEER,
          "calls = [c for c in calls if not made.issuperset(c.results)]",
          "calls = list(calls)", PROMISES),
    Guard("do: a call gives nothing under an id that has a content, or will have one", PEER,
          "        taken = {r for r in call.results if r in there or self._is_promised(r)}",
          "        taken = set()", MEANING),
    Guard("do: memory that is ahead of the journal is built anew", SERVE,
          "            self._ahead = error\n", "            pass\n", PROMISES),
    Guard("do: a message that the gate stumbles over is put aside", SERVE,
          "                self._poison.add(arrival.digest)\n", "", PROMISES),
    Guard("publish: after the commit of what it says", SERVE,
          "        for peer in self.peers.values():\n            peer.settle(now)\n",
          "        for peer in self.peers.values():\n            peer.settle(now)\n"
          "            [self._publisher.publish(peer, want) for want in peer.publish]\n",
          PROMISES),
    Guard("publish: noted, so that it is not done for ever", PUBLISH,
          "        self._journal.set_published(self._out, now=now)\n", "", KILLS),
    Guard("publish: a reply is never published otherwise than before", PUBLISH,
          "        if not want.fresh and self._journal.published(peer.name, id_) not in (None, digest):",
          "        if False:", PROMISES),
    Guard("publish: a reply that vanished is published again", SERVE,
          "                    peer.want(wanted, taken)\n", "                    pass\n", PROMISES),
    Guard("publish: a planted file is replaced", PUBLISH,
          "                peer.pair.carrier.clear(name)\n", "                pass\n",
          PROMISES),
    Guard("publish: one requester's catalog holds up no other", SERVE,
          "            with self._apart(peer):\n                self._catalog(peer)\n",
          "            self._catalog(peer)\n", PROMISES),
    Guard("publish: one requester's folder holds up no other", SERVE,
          "            with self._apart(peer):\n                self._act_for(peer)\n",
          "            self._act_for(peer)\n", PROMISES),
    Guard("collect: values are dropped after the replies that need them are out", PEER,
          "            self.drops.opened(wanted.ids)\n", "            pass\n", PROMISES),
    Guard("collect: what was acknowledged is deleted also after a crash", RESTART,
          '    peer.delete += [i for i in out if (w := home.journal.reply(peer.name, i)) and w.state == "acked"]\n',
          "    del out\n", KILLS),
    Guard("collect: files of values that are no more go also after a crash", RESTART,
          "    home.store.forget(peer.name, gone)\n", "", PROMISES),
    Guard("collect: temporary files are swept", FS,
          "        if name.startswith(TEMP) or (also is not None and also(name)):",
          "        if also is not None and also(name):", KILLS),
    Guard("time: a clock set back starts the waiting anew", PEER,
          "            want.received = min(want.received, now)", "            pass", PROMISES),
    Guard("ask: a question is in the journal with its message", QUESTIONS,
          "            self._journal.set_question(QuestionRow(*head, self._about(question), bound))",
          "            pass", WORDS),
    Guard("ask: what open questions need is known before the first of them ends", RESTART,
          "        peer.questions.take_up(now)\n", "", WORDS),
    Guard("ask: a reply id keeps its first list", PEER,
          "        if (first.ids, first.owners, first.message) != (wanted.ids, wanted.owners, wanted.message):",
          "        if False:", MEANING),
    Guard("ask: a word is for what it was said to, not for what came to be later", QUESTIONS,
          "        if row.bound != question.bound or question.misses:", "        if False:", WORDS),
    Guard("ask: a word of a reply that was forgotten is forgotten", QUESTIONS,
          "            self._journal.forget_question(row)", "            pass", MEANING),
    Guard("ask: only what nobody decided ends by time", QUESTIONS,
          "            if row.word in UNDECIDED:", "            if True:", LIMITS),
    Guard("ask: a device that failed to look for words looks again", SERVE,
          "        before, self.home.changed = self.home.deadline_s, True",
          "        before, self.home.changed = self.home.deadline_s, False", LIMITS),
    Guard("do: a private call sleeps", PEER,
          "            if not self.journal.are_open(call.sources):", "            if False:", WORDS),
    Guard("do: a private call is handed over by its owner's word and an enforceable rule alone", BATCH,
          "    if not journal.are_open(call.sources) and "
          "not policy.may_be_given(journal.rules(call.sources), call.word):",
          "    if False:", LIMITS),
    Guard("do: sources are fixed when a call is given", BATCH,
          "        call.sources = peer.sources_of(call)\n    journal",
          "        call.sources = frozenset()\n    journal", WORDS),
    Guard("do: a failure on private values is private, too", BATCH,
          "    return call.sources if call.word else frozenset()", "    return frozenset()", WORDS),
    Guard("do: a worker is given the values of one set of sources", BATCH,
          " or peer.private_sources(call) != lane.sources:", ":", WORDS),
    Guard("do: a value that was replaced stays for those who decided on it", PEER,
          "not self._is_kept_for(call, id_)", "True", LIMITS),
    Guard("publish: what may leave is committed before it does", PEER,
          "        self.journal.allow(self.name, want.wanted.id, allowed)\n", "", LIMITS),
    Guard("publish: no other content than was allowed", STORE,
          "        if (made if known is value else self.digest(value)) != digest:", "        if False:", LIMITS),
    Guard("publish: what leaves has its owner's word", PEER,
          "            elif not self._may_leave(frozenset([id_]) if owners else value.sources, want.word):",
          "            elif False:", LIMITS),
    Guard("publish: what was approved is not dropped by another question's end", PEER,
          " and not self._leave(call.results):", ":", WORDS),
    Guard("remove: what came from a value goes with it", JOURNAL,
          "        self.spoil(made, REMOVED)\n", "", LIMITS),
    Guard("remove: files of values that are no more go also after a kill", HOME,
          '        swept += fs.sweep(self.path / "values", before=before, also=self._is_left)\n', "", KILLS),
    Guard("read: a message is for this device, in this root", "fedq/device/intake.py",
          "    if (message.sender, message.to) != (requester, to):", "    if False:", RECEIVERS),
    Guard("read: a card, catalog or heartbeat is this device's, for this requester, in this root", "fedq/trust/keys.py",
          "    if (found.device, found.to) != (device, to):", "    if False:", RECEIVERS),
    Guard("read: a card, catalog or heartbeat is no older than one read before", "fedq/client/device.py",
          "            if found.count < latest:", "            if False:", RECEIVERS),
    Guard("trust: of two keys with the same digits the second is refused", HOME,
          "            if known.name == requester.name and known.key != requester.key:",
          "            if False:", RECEIVERS),
    Guard("start: a home that is behind what was seen of it does nothing", BOOTS,
          "    if seen > mine:", "    if False:", COPIES),
    Guard("beat: who finds a later copy of itself stops", BOOTS,
          "    if beat is None or beat.run == run or beat.count[0] < boot:", "    if True:", COPIES),
    Guard("restore: what may have been done before is not done again", PEER,
          "        if not again and self.journal.fenced(self.name, message.id, message.created):", "        if False:",
          COPIES),
    Guard("publish: what the device signed for another is no reply that is out", PUBLISH,
          "            ours = (found.id, found.to) == (id_, peer.address)",
          "            ours = found.id == id_", SIGNED),
    Guard("send: another message of one's own at the name is replaced", SENDING,
          "    return (found.id, found.to) == (id_, device.address)", "    return True", SIGNED),
    Guard("collect: nothing behind a link in a pair is swept", "fedq/queue/pair.py",
          "                swept += fs.sweep(self.carrier.path(folder), before=before, follow=False)",
          "                swept += fs.sweep(self.carrier.path(folder), before=before)", LINKS),
)  # fmt: skip


def copy_tree(to: Path) -> None:
    for name in ("fedq", "tests"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)


def noticed(guard: Guard | None, tree: Path, check: Sequence[str]) -> tuple[bool, str]:
    """Whether the check fails in the tree without the guard, and what it said last."""
    copy_tree(tree)
    if guard is not None:
        path = tree / guard.file
        text = path.read_text()
        if text.count(guard.old) != 1:
            return False, f"moved: its text stands {text.count(guard.old)} times in {guard.file}"
        path.write_text(text.replace(guard.old, guard.new))
    environ = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    how = ["--where", str(tree / "run")] if "tests.crash" in check else []
    (tree / "run").mkdir()
    try:
        done = subprocess.run([sys.executable, *check, *how], cwd=tree, env=environ, capture_output=True, text=True,
                              timeout=900)  # fmt: skip
    except subprocess.TimeoutExpired:
        return True, "it did not come to an end in 15 minutes"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("VIOLATION", "FAILED", "ERROR", "E  "))]
    return done.returncode != 0, (lines or done.stdout.splitlines() or done.stderr.splitlines() or [""])[-1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.guards", description=__doc__)
    parser.add_argument("--only", default="", help="guards whose description contains this")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    where = Path(tempfile.mkdtemp(prefix="fedq-guards-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    chosen = [g for g in GUARDS if args.only in g.what]
    rows: list[tuple[Guard | None, tuple[str, ...]]] = [(g, g.check) for g in chosen]
    if not args.only:
        rows = [(None, check) for check in dict.fromkeys(g.check for g in chosen)] + rows
    missed = 0

    def one(n: int) -> str:
        nonlocal missed
        guard, check = rows[n]
        began = time.monotonic()
        found, said = noticed(guard, where / str(n), check)
        shutil.rmtree(where / str(n), ignore_errors=True)
        fine = found == (guard is not None)
        missed += not fine
        name = guard.what if guard else "(nothing taken away)"
        by = {"tests.crash": "kills", "tests.crash.powerloss": "states"}.get(check[1]) or check[-1]
        row = f"| {name} | {by} | {'ok' if fine else 'NOT NOTICED'} {time.monotonic() - began:.0f} s | {said[:150]} |"
        print(row, flush=True)
        return row

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, range(len(rows))))
    shutil.rmtree(where, ignore_errors=True)
    print(f"{len(chosen)} guards, {missed} not noticed")
    return missed


if __name__ == "__main__":
    sys.exit(main())
