"""An id has one meaning: whatever is spelt alike, promised twice, put over or asked twice, the first one stands."""

from __future__ import annotations

import pytest

from fedq.plan.codec import decode
from fedq.queue.message import Ack, Cancel, Drop, Get, Inline, OwnerRef, Put, Ref, Run, decode_reply
from tests.attacks.enemy import SECRETS, f32, i64
from tests.attacks.stage import DOUBLE, IDENT, MEAN, PICK, TWICE, Stage, get, id_, look, run, twin

SECRET = [1.0, 2.0, 3.0]


@pytest.fixture
def town(tmp_path):
    made = Stage(tmp_path)
    yield made
    made.close()


def released(town: Stage) -> list[object]:
    """All tensors and numbers that ever lay in a reply to the enemy."""
    out = town.config.queue / "ward" / town.names["enemy"] / "out"
    replies = [decode_reply(decode(path.read_bytes())) for path in out.iterdir()]
    return [v for reply in replies for v in reply.values.values() if not hasattr(v, "code")]


# -- owner's and requester's ids that are spelt alike


def test_an_own_value_under_the_id_of_an_owners_value_is_another_value(town):
    alike = town.p.id
    town.send(run(IDENT, town.p, to="r"), get("r", "r"))
    town.send(Put(alike, "t0"), t0=f32(9, 9))
    town.send(Run(IDENT.id, (Ref(alike),), {}, (id_("own"),)), get("own", "own"))
    assert town.only("own") == [9.0, 9.0]
    assert town.came("r") is None and town.card("r") is not None
    town.word("r", "approve")
    assert town.only("r") == SECRET


def test_an_owners_value_is_not_reached_by_the_spelling_of_an_own_one(town):
    town.send(Run(IDENT.id, (Ref(town.p.id),), {}, (id_("r"),)), get("r", "r"), Get(id_("raw"), (town.p.id,)))
    town.wait(4000)
    assert (town.only("r"), town.only("raw")) == ("missing_value", "missing_value")


def test_a_call_that_promises_the_id_of_an_owners_value_does_not_show_in_the_question_for_that_value(town):
    """An owner who is shown ``mean(#p)`` and one number would release the rows themselves."""
    town.send(Run(MEAN.id, (town.p,), {}, (town.p.id,)), get("raw", town.p))
    about = town.card("raw").about
    assert (about["chain"], about["types"], about["calls"]) == (["#p"], ["f32[3]"], [])


def test_a_value_of_the_enemys_own_is_not_shown_under_an_owners_tag(town):
    town.send(Put(town.open.id, "t0"), t0=f32(1, 1, 1, 1, 1))
    town.send(run(IDENT, town.p, to="r"), Get(id_("both"), (id_("r"), town.open.id)))
    about = town.card("both").about
    assert about["chain"][0] == "ident(#p)"
    assert "#open" not in about["chain"] and "f32[3]" not in about["types"][1:]


def test_a_word_for_a_result_under_an_owners_id_is_none_for_the_owners_value(town):
    town.send(Run(MEAN.id, (town.p,), {}, (town.p.id,)), Get(id_("mean"), (town.p.id,)))
    town.word("mean", "approve")
    assert town.only("mean") == [2.0]
    town.send(Drop((town.p.id,)), Ack((id_("mean"),)))
    town.send(Get(id_("again"), (town.p.id,)), get("raw", town.p))
    assert town.only("again") == "missing_value"
    assert town.came("raw") is None


def test_a_question_that_reads_an_id_spelt_as_an_owners_is_incomplete_while_that_is_not_put(town):
    town.send(Run(PICK.id, (town.p, Ref(town.q.id)), {}, (id_("r"),)), get("r", "r"), get("twin", town.p, "r"))
    card = town.card("twin")
    assert card.about["misses"] == [town.q.id]
    assert town.say(card, "approve") == "usage"


# -- put, promise and ask under an id that stands, is coming, or stood


@pytest.mark.parametrize("when", ["before", "meanwhile", "after"])
def test_a_put_under_the_id_of_a_private_result_changes_nothing(when, tmp_path):
    def play(town):
        zeros = Put(id_("r"), "t0")
        if when == "before":
            town.send(zeros, t0=f32(0, 0))
        town.send(run(TWICE, town.p, to=("r", "s")), get("r", "r"), get("s", "s"))
        if town.card("r"):
            look(town, "r")
        if when == "meanwhile":
            town.send(zeros, t0=f32(0, 0))
        town.send(run(IDENT, "r", to="copy"), get("copy", "copy"))
        if when == "after":
            town.send(Drop((id_("r"),)))
            town.send(zeros, t0=f32(0, 0))
            town.send(run(IDENT, "r", to="late"), get("late", "late"))

    town = twin(tmp_path, play)
    assert town.came("copy") is None or town.only("copy") == [0.0, 0.0]
    assert SECRET not in released(town)


def test_who_promises_an_id_that_is_promised_already_gets_a_conflict_and_nothing_private(tmp_path):
    def play(town):
        town.send(run(IDENT, town.p, to="r"), get("r", "r"))
        look(town, "r")
        town.send(run(IDENT, town.open, to="r"))
        town.send(run(TWICE, town.open, to=("r", "s")), get("s", "s"))
        town.send(run(IDENT, "r", to="copy"), get("copy", "copy"))

    town = twin(tmp_path, play)
    assert town.only("s") == "conflict"
    assert town.came("r") is None and town.came("copy") is None


def test_a_message_that_came_too_late_takes_no_id_that_is_promised(tmp_path):
    """Else its failure would stand there where the owner did not look, and not where they did."""

    def play(town):
        town.send(run(IDENT, town.p, to="r"), get("r", "r"))
        look(town, "r")
        town.send(run(IDENT, town.open, to="r"), Put(id_("s"), "t0"), expires_s=-5.0, t0=f32(1))
        town.send(run(IDENT, "r", to="copy"), get("copy", "copy"))

    town = twin(tmp_path, play)
    assert town.came("r") is None and town.came("copy") is None


def test_a_message_that_was_cancelled_before_it_came_takes_no_id_that_is_promised(tmp_path):
    def play(town):
        town.send(run(IDENT, town.p, to="r"), get("r", "r"))
        look(town, "r")
        town.send(Cancel((id_("later"),)))
        town.send(run(IDENT, town.open, to="r"), message=id_("later"))
        town.send(run(IDENT, "r", to="copy"), get("copy", "copy"))

    town = twin(tmp_path, play)
    assert town.came("r") is None and town.came("copy") is None


def test_a_reply_id_keeps_the_first_list_that_it_was_asked_with(town):
    town.send(run(MEAN, town.p, to="mean"), get("reply", "mean"))
    town.send(get("reply", town.p), get("other", town.p))
    town.send(run(IDENT, town.p, to="rows"), get("reply", "rows"))
    town.word("reply", "approve")
    assert town.came("reply") == {id_("mean"): [2.0]}
    assert town.came("other") is None


def test_a_reply_id_that_was_answered_and_forgotten_asks_its_owner_again(town):
    """The word was for what was asked then: another content under the same ids needs a word of its own."""
    town.send(run(PICK, town.p, Inline("i"), to="r"), get("r", "r"), message=id_("m"), expires_s=60.0, i=i64(0, 0, 0))
    town.word("r", "approve")
    assert town.only("r") == [1.0, 1.0, 1.0]
    town.send(Ack((id_("r"),)))
    town.wait(20 * 86_400.0)
    assert town.came("r") is None
    town.send(run(PICK, town.p, Inline("i"), to="r"), get("r", "r"), message=id_("m"), i=i64(2, 1, 0))
    assert town.came("r") is None and town.card("r") is not None
    assert town.card("r").word == ""


def test_an_owners_id_is_never_used_again(town):
    old = town.p
    town.remove("p")
    home = town.at_home()
    with pytest.raises(Exception, match="one meaning"):
        home.add(f32(5), tag="p", release="open", id=old.id)
    home.close()
    town.send(run(IDENT, old, to="r"), get("r", "r"), get("raw", old))
    assert (town.only("r"), town.only("raw")) == ("removed", "removed")


def test_digests_of_owners_values_never_travel(tmp_path):
    from fedq import ids
    from fedq.plan.codec import sha256

    town = Stage(tmp_path)
    town.send(
        run(MEAN, town.p, to="r"), get("r", "r"), get("raw", town.p), run(IDENT, town.open, to="o"), get("o", "o")
    )
    look(town, "r")
    town.word("raw", "deny")
    home = town.at_home()
    secret = SECRETS[0]["p"]
    values = {v.id: home.store.digest(v) for v in home.values()}
    told = [values[town.p.id], sha256([bytes(secret.data)]).hex(), ids.digest(bytes(secret.data))]
    home.close()
    town.close()
    share = b"".join(town.share().values())
    assert not [digest for digest in told if digest.encode() in share or bytes.fromhex(digest) in share]


def test_a_mixed_question_leaves_as_a_whole(town):
    town.send(Put(id_("mine"), "t0"), run(DOUBLE, town.open, to="o"), run(MEAN, town.p, to="r"), t0=f32(7))
    town.send(get("all", "mine", "o", "r", town.open))
    assert town.came("all") is None
    town.word("all", "approve")
    assert town.came("all") == {
        id_("mine"): [7.0], id_("o"): [2.0, 4.0, 6.0], id_("r"): [2.0], town.open.id: SECRET
    }  # fmt: skip


def test_a_denied_mixed_question_gives_what_is_open_and_says_so_of_the_rest(town):
    town.send(run(DOUBLE, town.open, to="o"), run(MEAN, town.p, to="r"), get("all", "o", "r", town.p))
    town.word("all", "deny")
    assert town.came("all") == {id_("o"): [2.0, 4.0, 6.0], id_("r"): "denied", town.p.id: "denied"}


def test_an_own_value_may_be_given_as_an_owners_only_by_its_owner(town):
    """A reference to an owner's value that is none: of the enemy's own, of nobody's, of a plan's."""
    town.send(Put(id_("mine"), "t0"), t0=f32(7))
    town.send(run(IDENT, OwnerRef(id_("mine")), to="r"), get("r", "r"), get("raw", OwnerRef(id_("mine"))))
    assert (town.only("r"), town.only("raw")) == ("unknown_value", "unknown_value")
