"""Time, room, deaths and disks: at no limit does a private call show, or anything private leave."""

from __future__ import annotations

import errno
import os

import pytest

from fedq import fs
from fedq.device import questions
from fedq.device.calls import GATE_ENDS
from fedq.queue.message import Cancel, Put
from fedq.trust import policy
from tests.attacks.enemy import NAME, SECRETS, f32
from tests.attacks.stage import DAY_S, DOUBLE, IDENT, MEAN, PICK, Stage, get, id_, look, run, twin

SECRET = [1.0, 2.0, 3.0]


@pytest.fixture
def town(tmp_path):
    made = Stage(tmp_path)
    yield made
    made.close()


def peer(town: Stage, who: str = "enemy"):
    return town.gate.served[NAME].peers[town.names[who]]


# -- time


@pytest.mark.parametrize("restarts", [False, True])
def test_a_question_lives_thirty_days_from_when_it_came_looked_at_or_not(restarts, tmp_path):
    def play(town):
        town.send(run(IDENT, town.p, to="r"), get("r", "r"), expires_s=3600)
        look(town, "r")
        for _ in range(33):
            if restarts:
                town.restart()
            town.go(0.9 * DAY_S)
        assert town.came("r") is None
        town.wait(2 * DAY_S)

    town = twin(tmp_path, play)
    assert town.only("r") == "expired"
    assert "its owner said nothing" in town.failure("r").text


def test_all_that_a_question_needs_stays_to_its_end_though_its_messages_expired(town):
    town.send(Put(id_("mine"), "t0"), expires_s=600, t0=f32(3, 4, 5))
    town.send(run(DOUBLE, town.p, to="a"), run(DOUBLE, "mine", to="o"), expires_s=600)
    town.send(run(DOUBLE, "a", to="b"), get("b", "b", "mine"), expires_s=1200)
    for _ in range(28):
        town.restart()
        town.go(0.99 * DAY_S)
    town.word("b", "approve")
    assert town.came("b") == {id_("b"): [4.0, 8.0, 12.0], id_("mine"): [3.0, 4.0, 5.0]}


def test_a_clock_that_was_ahead_gives_a_question_no_more_than_its_days(town):
    for ahead, reply in ((0.0, "x"), (0.0, "y")):
        town.now += ahead
        town.send(run(IDENT, town.p, to=f"r{reply}"), get(reply, f"r{reply}"), expires_s=900 * DAY_S)
    town.now -= 700 * DAY_S
    town.go()
    town.restart() if town.card("x") else None
    town.wait(33 * DAY_S)
    assert [town.only(r) for r in "xy"] == ["expired", "expired"]


def test_a_question_is_not_given_up_by_a_clock_that_leaps_for_a_while(town):
    town.send(run(IDENT, town.p, to="r"), get("r", "r"))
    town.now += 400 * DAY_S
    town.serve()
    town.now -= 400 * DAY_S
    town.go()
    assert town.came("r") is None
    town.word("r", "approve")
    assert town.only("r") == SECRET


def test_an_approved_question_does_not_expire_while_its_call_runs(town):
    town.silent, town.dies_of = True, frozenset([id_("r")])
    town.send(run(IDENT, town.p, to="r"), get("r", "r"))
    town.wait(29.5 * DAY_S)
    assert town.say(town.card("r"), "approve") == ""
    for _ in range(5):
        town.now += 0.4 * DAY_S
        town.gate.step(town.now)
    town.silent, town.dies_of = False, frozenset()
    town.restart()
    town.go()
    assert town.only("r") == SECRET


def test_an_unasked_call_ends_with_its_message_though_it_was_asked_for_meanwhile(town):
    town.send(run(IDENT, town.p, to="a"), expires_s=600)
    town.send(run(PICK, "a", "never", to="b"), get("b", "b"))
    town.go(700)
    assert list(peer(town).questions.calls())
    town.go(4000)
    town.go()
    assert town.only("b") == "missing_value"
    assert not list(peer(town).questions.calls()) and not peer(town).calls_left


def test_a_value_of_a_question_that_never_comes_is_told_at_once_and_the_rest_can_be_approved(town):
    town.send(run(IDENT, town.p, to="r"), get("both", "r", "never"))
    assert town.say(town.card("both"), "approve") == "usage"
    town.go(4000)
    assert town.card("both").about["misses"] == []
    town.word("both", "approve")
    assert town.came("both") == {id_("r"): SECRET, id_("never"): "missing_value"}


# -- room


def test_the_question_beyond_the_thousandth_is_refused_by_number_and_others_go_on(town, monkeypatch):
    assert questions.MOST == 1000
    monkeypatch.setattr(questions, "MOST", 5)
    for n in range(6):
        town.send(get(f"q{n}", town.p), run(DOUBLE, town.open, to=f"o{n}"), get(f"o{n}", f"o{n}"))
    assert [town.came(f"q{n}") is None for n in range(6)] == [True] * 5 + [False]
    assert town.only("q5") == "not_allowed" and "5 questions" in town.failure("q5").text
    assert town.only("o5") == [2.0, 4.0, 6.0]
    town.send(get("q0", town.p), who="other")
    assert town.came("q0", who="other") is None
    town.word("q1", "deny") if town.card("q1") else None
    town.send(get("late", town.p))
    assert town.came("late") is None and town.card("late") is not None


def test_a_thousand_and_one_questions_in_one_message(town):
    town.send(*[get(f"q{n}", town.p) for n in range(1001)])
    asked = [n for n in range(1001) if town.came(f"q{n}") is None]
    assert len(asked) == 1000
    assert len(town.questions()) == 1000


def test_questions_that_need_too_many_calls_are_refused_also_when_the_calls_come_later(town, monkeypatch):
    monkeypatch.setattr(questions, "MOST_CALLS", 50)
    chain = [run(DOUBLE, f"c{n}" if n else "start", to=f"c{n + 1}") for n in range(10)]
    town.send(*chain, run(DOUBLE, "c10", to="end"), *[get(f"q{n}", "end") for n in range(10)])
    town.send(run(DOUBLE, town.open, to="o"), get("o", "o"), run(DOUBLE, town.p, to="start"))
    asked = [n for n in range(10) if town.came(f"q{n}") is None]
    assert len(asked) == 4 and town.only("o") == [2.0, 4.0, 6.0]
    assert {town.only(f"q{n}") for n in range(10)} == {None, "not_allowed"}
    town.restart()
    town.go()
    assert [n for n in range(10) if town.came(f"q{n}") is None] == asked
    for n in asked:
        town.word(f"q{n}", "deny")
    assert peer(town).questions._needed == 0
    town.ask("late", town.p)
    assert town.came("late") is None


def test_private_calls_that_nobody_asks_for_stop_no_open_call_and_no_other_requester(town):
    device = town.config.devices / NAME / "device.json"
    device.write_text(device.read_text().replace("{", '{"most_waiting": 20,', 1))
    for n in range(60):
        town.slip(run(DOUBLE, town.p, to=f"f{n}"), run(DOUBLE, town.open, to=f"o{n}"), get(f"o{n}", f"o{n}"))
    town.slip(run(DOUBLE, town.open, to="o"), get("o", "o"), who="other")
    town.go()
    assert town.only("o", who="other") == [2.0, 4.0, 6.0]
    taken = [n for n in range(60) if town.came(f"o{n}")]
    assert len(taken) >= 20
    town.restart()
    town.go()
    assert town.ran.isdisjoint({id_(f"f{n}") for n in range(60)})


def test_what_waits_for_the_owner_takes_no_place_among_waiting_messages(town):
    device = town.config.devices / NAME / "device.json"
    device.write_text(device.read_text().replace("{", '{"most_waiting": 10,', 1))
    for n in range(30):
        town.send(run(DOUBLE, town.p, to=f"r{n}"), get(f"r{n}", f"r{n}"))
    town.send(run(DOUBLE, town.open, to="o"), get("o", "o"))
    assert town.only("o") == [2.0, 4.0, 6.0]
    assert len(town.questions()) == 30
    assert peer(town).room == 10


def test_ended_questions_give_no_room_that_is_not_there(town):
    for n in range(20):
        town.send(run(DOUBLE, town.p, to=f"r{n}"), get(f"r{n}", f"r{n}"))
        town.word(f"r{n}", "deny")
    assert peer(town).room == peer(town).home.limits.messages
    assert peer(town).questions.messages == set()


# -- workers and daemons that end


def test_a_worker_that_ends_under_a_look_shows_nothing_and_the_owner_is_told(tmp_path):
    def play(town):
        town.dies_of = frozenset([id_("r")])
        town.send(run(IDENT, town.p, to="r"), run(DOUBLE, town.open, to="o"), get("r", "r"), get("o", "o"))
        look(town, "r")
        town.restart()
        town.send(run(MEAN, "r", to="s"), get("s", "s"))

    town = twin(tmp_path, play)
    assert sum(id_("r") in w.ran for w in town.workers) == 3
    assert town.only("o") == [2.0, 4.0, 6.0]
    assert town.came("r") is None and town.card("r").state == "looked"
    home = town.at_home()
    value = home.journal.value(town.names["enemy"], id_("r"))
    assert value.failure.code == "worker_died" and "SIGSEGV" in home.journal.failed()[0][3]
    home.close()
    town.word("r", "approve")
    assert town.only("r") == "worker_died"
    assert set(town.failure("r").fields) <= {"kind", "hint"}
    town.close()


def test_a_worker_that_ends_three_times_after_an_approve_is_released_as_such(town):
    town.dies_of = frozenset([id_("r")])
    town.send(run(IDENT, town.p, to="r"), get("r", "r"))
    town.word("r", "approve")
    assert town.only("r") == "worker_died"
    assert sum(id_("r") in w.ran for w in town.workers) == 3


def test_a_daemon_that_ends_under_a_look_shows_nothing_and_holds_the_call(tmp_path):
    """Five ends of the gate hold a call; of a private one nobody hears but its owner."""

    def play(town):
        town.dies_of, town.silent = frozenset([id_("r")]), True
        town.send(run(IDENT, town.p, to="r"), get("r", "r"))
        if town.looks:
            town.say(town.card("r"), "look")
        for _ in range(GATE_ENDS):
            town.now += 2
            town.gate.step(town.now)
            town.gate.step(town.now)
            _kill(town)
        for _ in range(4):
            town.go(10)

    def _kill(town):
        for served in town.gate.served.values():
            served.journal.close()
        town._gate = None

    town = twin(tmp_path, play)
    assert town.came("r") is None
    home = town.at_home()
    assert [action for _, _, action, _ in home.stopped()] == [1]
    before = len(town.workers)
    town.go()
    assert len(town.workers) == before, "it must not run again before its owner says so"
    town.silent, town.dies_of = False, frozenset()
    home.resume()
    home.close()
    town.go()
    assert town.came("r") is None and town.card("r").state == "looked"
    town.word("r", "approve")
    assert town.only("r") == [0.0, pytest.approx(float("nan"), nan_ok=True), -7.0]
    town.close()


def test_a_private_end_is_charged_to_no_open_sibling(town):
    town.dies_of = frozenset([id_("r")])
    town.send(run(IDENT, town.p, to="r"), run(DOUBLE, town.open, to="o"), get("r", "r"), get("late", "x"))
    town.word("r", "approve")
    town.dies_of = frozenset([id_("x")])
    home = town.at_home()
    assert home.journal.ends() == {}
    home.close()


# -- disks


def test_a_file_that_changed_between_the_allow_and_the_reply_is_not_sent(town, monkeypatch):
    file = town.config.devices / NAME / "values" / f"{town.p.id}.safetensors"
    other = town.config.devices / NAME / "values" / f"{town.q.id}.safetensors"
    town.send(get("raw", town.p))
    served = town.gate.served[NAME]
    publish = served._publisher.publish

    def late(*args):
        file.write_bytes(other.read_bytes())
        publish(*args)

    monkeypatch.setattr(served._publisher, "publish", late)
    town.word("raw", "approve")
    assert town.only("raw") == "failed"
    assert bytes(SECRETS[0]["q"].data) not in b"".join(town.share().values())


@pytest.mark.parametrize("how", ["lost", "torn"])
@pytest.mark.parametrize("release", ["open", "review"])
def test_a_lost_file_is_told_as_such_and_holds_up_nobody(how, release, town):
    asked = town.open if release == "open" else town.p
    file = town.config.devices / NAME / "values" / f"{asked.id}.safetensors"
    file.unlink() if how == "lost" else file.write_bytes(file.read_bytes()[:-120])
    town.send(get("raw", asked))
    if release == "review":
        town.word("raw", "approve")
    town.send(run(DOUBLE, town.open, to="o"), get("mine", "o"), who="other")
    assert town.only("raw") == "failed"
    assert town.came("mine", who="other") is not None


def test_an_allow_that_was_committed_before_a_crash_sends_these_bytes_and_no_others(town, monkeypatch):
    town.send(run(IDENT, town.p, to="r"), get("r", "r"), get("raw", town.p))
    town.say(town.card("r"), "approve")
    town.say(town.card("raw"), "approve")
    from fedq.device.publish import Publisher

    with monkeypatch.context() as patched:
        patched.setattr(Publisher, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            town.go()
    town.add("p", f32(9, 9, 9))
    town.fall()
    assert (town.only("r"), town.only("raw")) == (SECRET, SECRET)


def test_a_removal_between_the_allow_and_the_reply_sends_nothing(town, monkeypatch):
    from fedq.device.publish import Publisher

    town.send(run(IDENT, town.p, to="r"), get("r", "r"), get("raw", town.p))
    town.say(town.card("r"), "approve")
    town.say(town.card("raw"), "approve")
    with monkeypatch.context() as patched:
        patched.setattr(Publisher, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            town.go()
    town.remove("p")
    town.fall()
    assert (town.only("r"), town.only("raw")) == ("removed", "removed")


def test_a_word_is_acted_on_though_the_device_failed_to_look_when_it_heard_of_it(town):
    town.send(run(IDENT, town.p, to="r"), get("r", "r"))
    assert town.say(town.card("r"), "approve") == ""
    left = [OSError(errno.EACCES, "permission denied")]

    def once(_, call, *args, **kwargs):
        if left and "trust" in os.fspath(args[0] if not isinstance(args[0], int) else f"/proc/self/fd/{args[0]}"):
            raise left.pop()
        return call(*args, **kwargs)

    fs.FAILPOINTS["folder.open"] = once
    try:
        town.now += 2
        town.gate.step(town.now)
        assert not left
        town.go()
    finally:
        fs.FAILPOINTS.clear()
    assert town.only("r") == SECRET


# -- rules


@pytest.mark.parametrize("rule", ["dp", "aggregate", "update", "", "Open", "open ", "anything"])
def test_a_rule_that_cannot_be_enforced_opens_nothing_whatever_the_owner_says(rule):
    for word in ("", policy.LOOK, policy.APPROVE):
        assert not policy.may_leave([policy.OPEN, rule], word)
        assert not policy.may_be_given([rule, policy.REVIEW], word)


def test_rules_add_up_and_are_not_ranked():
    both = [policy.OPEN, policy.REVIEW]
    assert not policy.is_open(both) and not policy.is_open(both[::-1])
    assert policy.may_leave(both, policy.APPROVE) and not policy.may_leave(both, policy.LOOK)
    assert policy.may_be_given(both, policy.LOOK) and not policy.may_be_given(both, "")
    assert policy.may_leave([], "")


@pytest.mark.parametrize("word", ["look", "approve"])
def test_a_value_with_a_rule_of_a_later_version_is_not_given_and_does_not_leave(word, town):
    import sqlite3

    town.send(run(IDENT, town.p, to="r"), get("r", "r"), get("raw", town.p))
    town.restart()
    with sqlite3.connect(town.config.devices / NAME / "journal.sqlite") as db:
        db.execute("UPDATE vals SET release='dp' WHERE id=?", (town.p.id,))
    db.close()
    for reply in ("r", "raw"):
        town.word(reply, word)
    assert town.ran == set()
    assert {town.only("r"), town.only("raw")} <= {None, "denied"}


def test_a_removed_source_keeps_its_rule_and_an_unknown_one_denies(town):
    home = town.at_home()
    assert home.journal.rules([town.p.id, town.open.id, id_("never")]) == ["review", "open", ""]
    town.remove("p")
    town.remove("open")
    home.journal.changed_elsewhere()
    assert home.journal.rules([town.p.id, town.open.id]) == ["review", "open"]
    home.close()


def test_what_an_owner_removed_is_gone_from_all_that_came_from_it(town):
    town.send(run(DOUBLE, town.open, to="a"), run(DOUBLE, "a", to="b"), run(IDENT, town.p, to="c"), get("c", "c"))
    town.send(get("b", "b"))
    town.word("c", "approve")
    town.remove("open")
    town.remove("p")
    town.send(get("b2", "b"), get("c2", "c"), run(DOUBLE, "a", to="d"), get("d", "d"))
    assert (town.only("b"), town.only("c")) == ([4.0, 8.0, 12.0], SECRET)
    assert [town.only(r) for r in ("b2", "c2", "d")] == ["removed"] * 3


def test_questions_that_are_asked_and_cancelled_leave_nothing_for_good(town):
    for n in range(5):
        asked = town.send(run(DOUBLE, town.p, to=f"v{n}"), get(f"r{n}", f"v{n}"), expires_s=600)
        town.send(Cancel((asked,)), expires_s=600)
    town.wait(20 * DAY_S)
    owner = town.at_home()
    assert not owner.journal.questions(ended=True)
    owner.close()
