"""A word is for what was shown, by whom it was asked, once; and nothing tells that it was said before it releases."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from unittest.mock import patch

import pytest

from fedq import fs
from fedq.device import review
from fedq.errors import Ambiguous
from fedq.queue.message import Ack, Cancel, Drop, Get, Inline, OwnerRef, Put, Ref, Run
from tests.attacks.enemy import NAME, SECRETS, f32, i64
from tests.attacks.stage import (
    COUNTS,
    DAY_S,
    DOUBLE,
    IDENT,
    ITEM,
    MEAN,
    PICK,
    STEP,
    TWICE,
    WHERE,
    Stage,
    get,
    id_,
    look,
    run,
    twin,
)

SECRET = [1.0, 2.0, 3.0]


@pytest.fixture
def town(tmp_path):
    made = Stage(tmp_path)
    yield made
    made.close()


# -- nothing runs before a word


def test_no_call_on_private_values_is_given_to_a_worker_before_a_word(town):
    town.send(run(DOUBLE, town.p, to="r"), run(DOUBLE, "r", to="s"), run(DOUBLE, town.open, to="o"), get("s", "s"))
    town.send(get("o", "o"))
    town.wait(3 * DAY_S)
    town.restart()
    town.go()
    assert town.ran == {id_("o")}
    assert town.only("o") == [2.0, 4.0, 6.0]
    town.word("s", "approve")
    assert town.ran == {id_("o"), id_("r"), id_("s")}
    assert town.only("s") == [4.0, 8.0, 12.0]


def test_a_private_call_that_nobody_asks_for_never_runs(town):
    town.send(run(DOUBLE, town.p, to="r"), run(DOUBLE, town.p, to="s"), get("s", "s"), expires_s=600)
    town.word("s", "deny")
    town.wait(5 * DAY_S)
    assert town.ran == set()


def test_a_word_runs_the_closure_of_its_question_and_nothing_else(town):
    town.send(run(DOUBLE, town.p, to="a"), run(DOUBLE, "a", to="b"), run(DOUBLE, town.p, to="c"), get("b", "b"))
    town.send(run(DOUBLE, "a", to="d"), get("d", "d"), get("c", "c"))
    town.word("b", "approve")
    assert town.ran == {id_("a"), id_("b")}
    assert town.came("c") is None and town.came("d") is None


def test_what_was_computed_on_the_way_stays_private(town):
    town.send(run(IDENT, town.p, to="a"), run(MEAN, "a", to="b"), get("b", "b"))
    town.word("b", "approve")
    town.send(get("way", "a"), run(IDENT, "a", to="copy"), get("copy", "copy"))
    assert town.only("b") == [2.0]
    assert town.came("way") is None and town.came("copy") is None
    town.restart()
    town.send(run(IDENT, "a", to="late"), get("late", "late"))
    assert town.came("late") is None and town.came("way") is None


def test_another_result_of_a_released_call_stays_private(town):
    """Success is an output, too: of two results of one call each has the sources of both."""
    town.send(run(TWICE, town.p, to=("a", "b")), get("a", "a"))
    town.word("a", "approve")
    town.send(get("b", "b"))
    assert town.only("a") == SECRET and town.came("b") is None


def test_a_value_that_is_derived_from_a_released_one_needs_a_word_of_its_own(town):
    town.send(run(MEAN, town.p, to="a"), get("a", "a"))
    town.word("a", "approve")
    town.send(run(ITEM, "a", to="b"), get("b", "b"), get("again", "a"))
    assert town.only("a") == [2.0]
    assert town.came("b") is None and town.came("again") is None


# -- failures, choices, sizes and times tell nothing


FAILING = {
    "index out of range": lambda t: [run(PICK, t.open, t.q, to="r"), get("r", "r")],
    "not finite": lambda t: [Run_fold(t, "stop"), get("r", "r"), get("s", "s")],
    "an error where not finite": lambda t: [Run_fold(t, "error"), get("r", "r"), get("s", "s")],
    "sizes that depend on data": lambda t: [run(WHERE, t.p, to="r"), get("r", "r")],
    "loops that depend on data": lambda t: [run(COUNTS, t.n, to="r"), get("r", "r")],
    "a failed sibling": lambda t: [run(PICK, t.open, t.q, to="r"), run(MEAN, "r", to="s"), get("s", "s")],
    "an index on a private place": lambda t: [run(PICK, t.p, t.q, to="r"), run(DOUBLE, "r", to="s"), get("s", "s")],
    "a number of it chooses": lambda t: [run(MEAN, t.p, to="m"), run(ITEM, "m", to="r"), get("r", "r")],
}


def Run_fold(town: Stage, nonfinite: str):
    from fedq.plan.fold import Batches
    from fedq.queue.message import Fold

    ids = (id_("r"), id_("s"))
    return Fold(STEP.id, (Inline("zero"),), (town.p,), Batches(1, 1, False), ids, (), "steps", nonfinite)


@pytest.mark.parametrize("kind", FAILING)
def test_nothing_that_depends_on_private_bytes_shows_before_the_releasing_word(kind, tmp_path):
    zero = type(f32(0))("f32", (), bytes(4))

    def play(town):
        actions = FAILING[kind](town)
        fold = {"zero": zero} if "finite" in kind else {}
        town.send(*actions, **fold)
        look(town, *[name(a.reply) for a in actions if isinstance(a, Get)])
        town.send(run(DOUBLE, "r", to="more"), get("more", "more"), get("raw", "r"))
        look(town, "more")
        town.send(Drop((id_("r"),)), Ack((id_("raw"),)))
        town.restart()
        town.wait(2 * DAY_S)

    town = twin(tmp_path, play)
    assert town.ran
    assert not [r for r in "rs" if town.came(r)]


def name(reply: str) -> str:
    return next(n for n in ("r", "s", "more", "raw") if id_(n) == reply)


def test_an_approved_failure_tells_its_class_action_and_line_and_no_number_of_it(tmp_path):
    town = Stage(tmp_path, SECRETS[1])
    town.send(run(PICK, town.open, town.q, to="r"), get("r", "r"))
    town.word("r", "approve")
    failure = town.failure("r")
    town.close()
    assert failure.code == "failed"
    assert set(failure.fields) <= {"action", "op", "line", "kind"}
    assert not re.search(r"\b(99|3)\b", failure.text)


def test_no_text_of_a_private_failure_reaches_what_is_computed_from_it(tmp_path):
    town = Stage(tmp_path, SECRETS[1])
    town.send(run(PICK, town.open, town.q, to="a"), run(DOUBLE, "a", to="b"), run(MEAN, "b", to="c"), get("c", "c"))
    town.word("c", "approve")
    failure = town.failure("c")
    town.close()
    assert set(failure.fields) <= {"action", "op", "line", "kind", "argument"}
    assert not re.search(r"\b99\b", failure.text)


def test_that_a_sibling_stands_is_not_told_by_a_question_for_another(town):
    town.send(run(PICK, town.open, town.q, to="a"), run(MEAN, town.p, to="b"), get("a", "a"), get("b", "b"))
    town.word("a", "look")
    town.send(run(DOUBLE, "a", to="c"), get("c", "c"), get("too", "a", "b"))
    assert [town.came(r) for r in ("a", "b", "c", "too")] == [None] * 4


# -- whom a word is for


def test_a_word_for_one_requester_is_none_for_another(town):
    actions = run(IDENT, town.p, to="r"), get("r", "r")
    town.send(*actions)
    town.send(*actions, who="other")
    (mine,) = [q for q in town.questions() if q.sender == town.names["other"]]
    assert town.say(mine, "approve") == ""
    town.go()
    assert town.only("r", who="other") == SECRET
    assert town.came("r") is None and town.card("r") is not None


def test_a_reference_that_two_requesters_use_decides_nothing_without_saying_whose(town):
    for who in ("enemy", "other"):
        town.send(get("r", town.p), who=who)
    home = town.at_home()
    with pytest.raises(Ambiguous) as caught:
        review.find(home, id_("r"))
    found = review.find(home, id_("r")[:6], requester=town.names["other"])
    home.close()
    assert "--requester" in caught.value.hint
    assert found.sender == town.names["other"]


def test_a_value_of_another_requester_cannot_be_asked_for_nor_computed_on(town):
    town.send(run(IDENT, town.p, to="r"), get("r", "r"), who="other")
    (row,) = town.questions()
    town.say(row, "approve")
    town.go()
    town.send(get("theirs", "r"), run(IDENT, "r", to="copy"), get("copy", "copy"), get("owners", OwnerRef(id_("r"))))
    town.wait(2 * 3700)
    assert town.only("r", who="other") == SECRET
    assert [town.only(r) for r in ("theirs", "copy", "owners")] == ["missing_value", "missing_value", "unknown_value"]


def test_a_denied_value_is_asked_of_the_owner_again_under_another_id_and_by_another_requester(town):
    town.send(run(IDENT, town.p, to="r"), get("r", "r"))
    town.word("r", "deny")
    town.send(run(IDENT, town.p, to="s"), get("s", "s"), get("again", "r"))
    town.send(run(IDENT, town.p, to="r"), get("r", "r"), who="other")
    assert town.only("r") == "denied"
    assert [town.came(r) for r in ("s",)] == [None]
    assert town.only("again") == "denied"
    assert town.came("r", who="other") is None
    assert town.ran == set()


def test_a_denial_stands_after_a_restart_and_a_second_copy_of_the_message(town):
    message = town.send(run(IDENT, town.p, to="r"), get("r", "r"))
    town.word("r", "deny")
    town.restart()
    town.sent -= 1
    town.send(run(IDENT, town.p, to="r"), get("r", "r"), message=message)
    assert town.only("r") == "denied"
    assert town.card("r") is None


# -- what a word is for


def test_a_word_for_what_changed_since_it_was_shown_is_refused(town):
    town.send(run(IDENT, "mine", town.p, to="x"), run(PICK, town.p, "mine", to="r"), get("r", "r", "x"))
    town.send(get("both", "r", town.p))
    shown = town.card("both")
    assert town.say(shown, "approve") == "usage"
    town.send(Put(id_("mine"), "t0"), t0=i64(0, 0, 0))
    assert town.say(shown, "approve") == "conflict"
    assert town.came("both") is None
    assert town.word("both", "approve") == ""
    assert town.came("both")[id_("r")] == [1.0, 1.0, 1.0]


def test_a_question_is_bound_to_the_contents_of_the_enemys_own_tensors(town):
    """Two messages that differ in nothing but a tensor are two questions, whatever their ids."""
    bounds = []
    for mask in (i64(0, 1, 2), i64(1, 1, 1)):
        town.restart()
        other = Stage(town.root / str(len(bounds)))
        other.send(Put(id_("mask"), "t0"), run(PICK, other.p, "mask", to="r"), get("r", "r"), t0=mask)
        bounds.append(other.card("r").bound)
        other.send(run(PICK, other.p, Inline("t0"), to="s"), get("s", "s"), t0=mask)
        bounds.append(other.card("s").bound)
        other.close()
    assert len(set(bounds)) == 4


def test_two_owners_cannot_both_decide(town):
    town.send(run(IDENT, town.p, to="r"), get("r", "r"))
    shown = town.card("r")
    assert town.say(shown, "deny") == ""
    assert town.say(shown, "approve") == "conflict"
    town.go()
    assert town.only("r") == "denied"
    assert town.say(shown, "approve") == "conflict"


def test_an_approve_that_meets_a_removal_releases_nothing(town):
    town.send(run(IDENT, town.p, to="r"), get("r", "r"))
    shown = town.card("r")
    town.remove("p")
    assert town.say(shown, "approve") == "conflict"
    town.go()
    assert town.only("r") == "removed"


def test_a_removal_after_the_word_and_before_it_runs_wins(town):
    town.send(run(IDENT, town.p, to="r"), get("r", "r"))
    assert town.say(town.card("r"), "approve") == ""
    town.remove("p")
    town.go()
    assert town.only("r") == "removed"


def test_a_removal_drops_what_a_look_computed(town):
    town.send(run(IDENT, town.p, to="r"), run(MEAN, "r", to="s"), get("s", "s"))
    town.word("s", "look")
    town.remove("p")
    town.go()
    assert town.only("s") == "removed"
    home = town.at_home()
    left = [home.journal.value(town.names["enemy"], id_(n)) for n in "rs"]
    home.close()
    assert all(v is None or v.data is None for v in left)


def test_a_replaced_value_voids_what_was_not_looked_at_and_is_kept_for_what_was(town):
    town.send(run(IDENT, town.p, to="r"), run(MEAN, town.p, to="s"), get("r", "r"), get("s", "s"), get("raw", town.p))
    town.word("r", "look")
    town.word("raw", "look")
    new = town.add("p", f32(5, 5, 5))
    town.go()
    assert town.only("s") == "replaced"
    assert town.failure("s").fields["id"] == new
    town.restart()
    town.go()
    assert town.came("r") is None and town.came("raw") is None
    town.word("r", "approve")
    town.word("raw", "approve")
    assert (town.only("r"), town.only("raw")) == (SECRET, SECRET)
    assert town.ran == {id_("r")}


def test_a_replaced_version_goes_when_the_last_question_that_kept_it_ended(town):
    file = town.config.devices / NAME / "values" / f"{town.p.id}.safetensors"
    town.send(get("raw", town.p), get("too", town.p))
    town.word("raw", "look")
    town.word("too", "look")
    town.add("p", f32(5, 5, 5))
    town.go()
    town.word("raw", "deny")
    assert file.exists()
    town.restart()
    town.go()
    town.word("too", "approve")
    town.go()
    assert town.only("too") == SECRET
    assert not file.exists()


def test_a_get_for_a_replaced_value_that_another_question_keeps_is_told_so(town):
    town.send(get("raw", town.p))
    town.word("raw", "look")
    town.add("p", f32(5, 5, 5))
    town.go()
    town.send(get("late", town.p), run(IDENT, town.p, to="r"), get("r", "r"))
    assert (town.only("late"), town.only("r")) == ("replaced", "replaced")


def test_replacing_by_an_open_value_opens_nothing_of_the_old_one(town):
    town.send(run(IDENT, town.p, to="r"), get("r", "r"))
    town.word("r", "look")
    town.add("p", f32(5, 5, 5), "open")
    town.go()
    town.send(run(IDENT, "r", to="s"), get("s", "s"), get("too", "r"))
    assert [town.came(r) for r in ("r", "s", "too")] == [None] * 3


# -- cancel, ack, drop and `after` tell nothing


def test_a_cancel_of_the_message_that_asks_ends_a_question_at_once(tmp_path):
    def play(town):
        town.send(run(IDENT, town.p, to="r"))
        asks = town.send(get("r", "r"))
        look(town, "r")
        town.send(Cancel((asks,)))

    town = twin(tmp_path, play)
    assert town.only("r") == "cancelled"
    assert town.card("r") is None


def test_a_cancel_of_the_message_that_computes_ends_its_questions_looked_at_or_not(tmp_path):
    def play(town):
        computes = town.send(run(IDENT, town.p, to="r"))
        town.send(run(MEAN, "r", to="s"), get("s", "s"))
        look(town, "s")
        town.send(Cancel((computes,)))
        town.send(get("late", "r"))

    town = twin(tmp_path, play)
    assert (town.only("s"), town.only("late")) == ("cancelled", "cancelled")


def test_a_cancel_that_comes_before_a_question_ends_it(town):
    town.send(run(IDENT, town.p, to="r"), Cancel((id_("later"),)))
    town.send(get("r", "r"), message=id_("later"))
    assert town.only("r") == "cancelled"


def test_a_cancelled_question_stays_so_after_a_restart_though_another_needs_its_call(town):
    town.send(run(IDENT, town.p, to="r"), get("keep", "r"))
    asks = town.send(run(DOUBLE, town.open, "never", to="o"), get("both", "r", "never"))
    town.send(Cancel((asks,)))
    town.restart()
    town.wait(4000)
    assert town.came("both")[id_("r")] == "cancelled"
    assert town.card("both") is None and town.card("keep") is not None


def test_an_acknowledged_question_is_over_for_its_owner_too(tmp_path):
    def play(town):
        town.send(run(IDENT, town.p, to="r"), get("r", "r"))
        look(town, "r")
        town.send(Ack((id_("r"),)))

    town = twin(tmp_path, play)
    assert town.card("r") is None
    peer = town.gate.served[NAME].peers[town.names["enemy"]]
    assert not peer.questions.open
    town.wait(20 * DAY_S)
    assert not list(peer.questions.calls())
    town.close()


def test_drops_of_what_a_question_needs_wait_for_its_end(tmp_path):
    def play(town):
        town.send(Put(id_("mine"), "t0"), run(PICK, town.p, "mine", to="r"), get("r", "r"), t0=i64(2, 1, 0))
        town.send(Drop((id_("mine"), id_("r"))))
        look(town, "r")
        town.send(run(DOUBLE, "mine", to="x"), get("mine", "mine"))
        town.restart()
        town.go()

    town = twin(tmp_path, play)
    town.word("r", "deny")
    town.go(20)
    town.send(get("left", "mine"))
    assert (town.only("r"), town.only("left")) == ("denied", "missing_value")
    town.close()


def test_a_drop_of_a_result_that_is_not_there_yet_tells_nothing_and_is_done_when_its_call_is(tmp_path):
    def play(town):
        town.send(run(TWICE, town.p, to=("r", "s")), get("r", "r"))
        look(town, "r")
        town.send(Drop((id_("s"),)))
        town.send(get("s", "s"))
        look(town, "s")
        town.go(20)

    town = twin(tmp_path, play)
    assert town.came("s") is None
    town.word("s", "approve")
    assert town.only("s") == [0.0, pytest.approx(float("nan"), nan_ok=True), -7.0]
    town.close()


@pytest.mark.parametrize("word", ["", "look"])
def test_after_waits_for_the_end_of_a_question_and_not_for_a_run(word, town):
    town.send(Put(id_("mine"), "t0"), t0=f32(1))
    computes = town.send(run(IDENT, town.p, to="r"), get("r", "r"))
    town.send(Drop((id_("mine"),), (computes,)))
    if word:
        town.word("r", word)
    town.go(20)
    town.send(get("there", "mine"))
    assert town.only("there") == [1.0]
    town.word("r", "deny")
    town.go(20)
    town.send(get("gone", "mine"))
    assert town.only("gone") == "missing_value"


def test_after_a_private_call_that_nobody_asks_for_waits_for_its_messages_end(town):
    town.send(Put(id_("mine"), "t0"), t0=f32(1))
    computes = town.send(run(IDENT, town.p, to="r"), expires_s=600)
    town.send(Drop((id_("mine"),), (computes,)))
    town.go(300)
    town.send(get("there", "mine"))
    town.go(400)
    town.go(10)
    town.send(get("gone", "mine"))
    assert (town.only("there"), town.only("gone")) == ([1.0], "missing_value")


# -- restarts


def test_after_a_look_and_a_restart_everything_from_it_is_still_private(town):
    town.send(run(IDENT, town.p, to="r"), run(TWICE, "r", to=("s", "t")), get("s", "s"))
    town.word("s", "look")
    for n in range(3):
        town.restart()
        town.send(run(IDENT, "r", to=f"a{n}"), run(MEAN, "t", to=f"b{n}"), get(f"a{n}", f"a{n}"), get(f"b{n}", f"b{n}"))
        town.send(get(f"c{n}", "t"), Get(id_(f"d{n}"), (town.p.id,)))
        assert [town.came(f"{r}{n}") for r in "abc"] == [None] * 3
    assert town.ran == {id_("r"), id_("s"), id_("t")}


def test_a_word_that_was_said_while_no_daemon_ran_is_acted_on(town):
    town.send(run(IDENT, town.p, to="r"), get("r", "r"))
    town.restart()
    assert town.say(town.card("r"), "approve") == ""
    assert town.came("r") is None
    town.go()
    assert town.only("r") == SECRET


def test_ids_that_name_a_result_of_an_open_and_of_a_private_call_in_one_message_do_not_mix(town):
    town.send(Run(TWICE.id, (town.open,), {}, (id_("a"), id_("b"))), Run(IDENT.id, (Ref(id_("b")),), {}, (id_("c"),)),
              run(PICK, "b", town.q, to="d"), get("c", "c"), get("d", "d"))  # fmt: skip
    assert town.only("c") == SECRET
    assert town.came("d") is None


def test_a_denial_said_while_no_daemon_ran_takes_nothing_from_another_question(town):
    replies = sorted("xyz", key=id_)  # the one that is not denied is looked at last
    town.send(run(IDENT, town.p, to="r"), *[get(reply, "r") for reply in replies])
    for denied in replies:
        town.restart()
        card = town.card(denied)
        if denied != replies[-1]:
            town.say(card, "deny")
    town.go()
    assert [town.only(reply) for reply in replies] == ["denied", "denied", None]
    town.word(replies[-1], "approve")
    assert town.only(replies[-1]) == SECRET


def test_a_denial_takes_nothing_from_a_question_that_comes_with_it(town):
    town.send(run(IDENT, town.p, to="r"), get("x", "r"))
    town.say(town.card("x"), "deny")
    town.slip(*[get(f"y{n}", "r") for n in range(8)])
    town.go()
    assert town.only("x") == "denied"
    assert not [n for n in range(8) if town.came(f"y{n}")]


# -- a word for the next question on the same


def again(town: Stage, reply: str, word: str) -> None:
    """The owner says the word for the next question on the same as this one, which was answered."""
    home = town.at_home()
    row = home.journal.question(town.names["enemy"], id_(reply))
    with patch.object(fs, "clock", lambda: town.now):
        review.decide_next(home, [row], word)
    home.close()
    town.go()


def test_a_word_for_the_same_is_for_one_question_and_one_requester(town):
    town.ask("a", town.p)
    town.word("a", "deny")
    again(town, "a", "approve")
    town.send(run(DOUBLE, town.p, to="b"), get("b", "b"), who="other")
    town.ask("c", town.p)
    town.ask("d", town.p)
    assert town.came("b", who="other") is None
    assert (town.only("c"), town.came("d")) == ([2.0, 4.0, 6.0], None)


def test_a_word_for_the_same_is_none_for_a_value_that_is_spelt_alike(town):
    """A mean that stands under the id of the owner's rows; then the rows."""
    town.send(Run(MEAN.id, (town.p,), {}, (town.p.id,)), Get(id_("a"), (town.p.id,)))
    town.word("a", "approve")
    town.send(Get(id_("b"), (town.p.id,)))
    town.word("b", "deny")
    again(town, "b", "approve")
    town.send(get("rows", town.p))
    assert town.came("rows") is None
    town.send(Get(id_("c"), (town.p.id,)))
    assert town.only("c") == [2.0]


def test_a_word_for_the_same_is_none_for_another_content_of_the_enemys_own(town):
    for name_, mask in (("x", i64(0, 0, 0)), ("y", i64(0, 1, 2))):
        town.send(Put(id_(f"mask {name_}"), "t0"), t0=mask)
        town.send(run(PICK, town.p, f"mask {name_}", to=name_), get(name_, name_))
        town.send(run(PICK, town.p, Inline("t0"), to=f"{name_}i"), get(f"{name_}i", f"{name_}i"), t0=mask)
        if name_ == "x":
            for reply in ("x", "xi"):
                town.word(reply, "deny")
                again(town, reply, "approve")
    assert town.came("y") is None and town.came("yi") is None


def test_a_word_for_the_same_is_none_for_another_private_value_on_the_way(town):
    town.send(run(MEAN, town.p, to="m"), run(IDENT, town.p, to="r"), run(TWICE, "r", to=("s", "t")), get("a", "m", "s"))
    town.word("a", "approve")
    town.send(get("b", "m"))
    town.word("b", "deny")
    again(town, "b", "approve")
    town.send(get("way", "r"), get("other", "t"))
    assert town.came("way") is None and town.came("other") is None


@pytest.mark.parametrize("end", ["deny", "replace"])
@pytest.mark.parametrize("looks", [False, True])
def test_what_was_approved_leaves_though_another_question_on_it_ends_otherwise_in_that_moment(end, looks, town):
    first, *others = sorted((f"q{n}" for n in range(6)), key=id_)
    town.send(run(IDENT, town.p, to="a"), run(IDENT, "a", to="b"), *[get(q, "a", "b") for q in (first, *others)])
    if looks:
        town.word(first, "look")
    shown = {reply: town.card(reply) for reply in others}
    assert town.say(town.card(first), "approve") == ""
    if end == "replace":
        town.add("p", f32(5, 5, 5))
    else:
        assert [town.say(card, "deny") for card in shown.values()] == [""] * 5
    town.go()
    assert town.came(first) == {id_("a"): SECRET, id_("b"): SECRET}
    assert all(set(town.came(reply).values()) <= {"denied", "replaced"} for reply in shown)


# -- guards that stand behind others


def test_a_word_that_was_recorded_for_another_content_is_void(town):
    town.send(run(IDENT, town.p, to="r"), get("r", "r"))
    assert town.say(town.card("r"), "approve") == ""
    with contextlib.closing(sqlite3.connect(town.config.devices / NAME / "journal.sqlite")) as db, db:
        db.execute("UPDATE questions SET bound='another'")
    town.go()
    assert town.came("r") is None and town.ran == set()
    assert town.card("r").word == ""


def test_no_worker_is_given_values_of_two_sets_however_their_calls_are_approved(town):
    town.send(run(DOUBLE, town.open, to="o"), run(DOUBLE, town.p, to="a"), run(PICK, town.p, town.q, to="b"),
              run(PICK, town.open, town.q, to="c"), run(MEAN, town.p, to="d"), run(DOUBLE, "a", to="e"),
              *[get(name_, name_) for name_ in "obced"])  # fmt: skip
    cards = [town.card(name_) for name_ in "bced"]
    assert [town.say(card, "approve") for card in cards] == [""] * 4
    town.go()
    assert [town.only(name_) is not None for name_ in "obced"] == [True] * 5
    private = {town.p.id, town.q.id}
    sets = [private.intersection(worker.given) for worker in town.workers if worker.ran]
    assert sorted(map(len, sets)) == [0, 1, 1, 2]


def test_a_question_is_there_as_soon_as_its_message_was_taken(town):
    """Its message is gone from the share: only the journal knows of it now."""
    town.slip(run(IDENT, town.p, to="r"), get("r", "r"))
    town.now += 2
    town.gate.step(town.now)
    for served in town.gate.served.values():
        served.journal.close()
    town._gate = None
    assert town.card("r") is not None
    assert town.say(town.card("r"), "approve") == ""
    town.go()
    assert town.only("r") == SECRET
