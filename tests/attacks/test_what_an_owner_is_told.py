"""What a requester could hide from an owner, or know and the owner not: noise, how a value was made, what left."""

from __future__ import annotations

import pytest

from fedq import ids
from fedq.device import record, review
from fedq.device.evidence import Reader
from fedq.errors import Ambiguous
from fedq.plan.graph import Action, Var
from fedq.queue.message import Cancel, Inline
from tests.attacks.enemy import f32
from tests.attacks.stage import DAY_S, DOUBLE, IDENT, MEAN, PLANS, ROWS, Stage, get, id_, plan, run

NOISE = plan("noise", (ROWS,), Action("aten.rand_like", (Var(0),), {}, (ROWS,)))
WEIGHED = plan("weighed", (ROWS, ROWS), Action("aten.mul.Tensor", (Var(0), Var(1)), {}, (ROWS,)))
PLANS.extend([NOISE, WEIGHED])


@pytest.fixture
def town(tmp_path):
    made = Stage(tmp_path)
    yield made
    made.close()


def test_noise_on_private_data_comes_from_the_devices_own_secret(town, tmp_path):
    import torch

    town.send(run(NOISE, town.p, to="n"), get("n", "n"))
    town.word("n", "approve")
    town.go()
    seen = town.only("n")
    generator = torch.Generator().manual_seed(ids.derive_seed(7, id_("n")))  # what the message would tell
    assert seen != torch.rand(3, generator=generator).tolist()
    again = Stage(tmp_path / "again")
    again.send(run(NOISE, again.p, to="n"), get("n", "n"))
    again.word("n", "look")
    again.restart()
    again.word("n", "approve")
    again.go()
    assert again.only("n") == seen  # drawn once: the same device draws the same for the same call
    again.close()


def test_noise_on_open_data_is_told_by_the_message_as_before(town):
    import torch

    town.send(run(NOISE, town.open, to="n"), get("n", "n"))
    generator = torch.Generator().manual_seed(ids.derive_seed(7, id_("n")))
    assert town.only("n") == pytest.approx(torch.rand(3, generator=generator).tolist())


@pytest.mark.parametrize("restarts", [False, True])
def test_a_value_that_was_computed_for_an_earlier_question_shows_how_it_was_made(restarts, town):
    weighed = run(WEIGHED, town.p, Inline("t0"), to="x")
    town.send(weighed, t0=f32(0, 1, 0))
    town.send(run(DOUBLE, "x", to="z"), get("z", "z"))
    town.word("z", "approve")
    town.go()
    if restarts:
        town.restart()
    town.send(get("w", "x"))
    town.send(run(IDENT, "x", to="v"), get("v", "v"))
    for reply, chain in (("w", "weighed(#p, own)"), ("v", "ident(weighed(#p, own))")):
        card = town.card(reply)
        assert card.about["chain"] == [chain]
        owner = town.at_home()
        told = Reader(owner, None).of(card)
        owner.close()
        assert "weighed" in [s.plan.about.name for s in told.steps if s.plan]
        assert [list(own.raw.shape) for own in told.own] == [[3]]


def test_the_record_says_what_left_also_where_it_was_computed_at_that_very_time(town):
    town.send(run(MEAN, town.p, to="m"), get("m", "m"))
    town.word("m", "approve")
    town.go()
    owner = town.at_home()
    (left,) = [e for e in record.entries(owner) if e.what == "left"]
    owner.close()
    assert "f32[]" in left.text and "failure" not in left.text


def test_what_was_replaced_or_cancelled_is_in_the_record_when_it_happened(town):
    asked = town.send(run(DOUBLE, town.p, to="a"), get("a", "a"))
    town.send(Cancel((asked,)))
    town.send(run(IDENT, town.p, to="b"), get("b", "b"))
    town.add("p", f32(4, 5, 6))
    town.go()
    owner = town.at_home()
    ended = {e.what: e.time for e in record.entries(owner) if e.what in ("cancelled", "replaced")}
    owner.close()
    assert ended.keys() == {"cancelled", "replaced"}
    assert all(time < town.now + 28 * DAY_S for time in ended.values())  # not when they would have expired


def test_digits_of_a_question_that_ended_name_no_other(town):
    first, second = "ab" * 15 + "01", "ab" * 15 + "02"
    from fedq.queue.message import Get

    asked = town.send(run(DOUBLE, town.p, to="a"), Get(first, (id_("a"),)))
    town.send(Cancel((asked,)))
    town.send(run(IDENT, town.p, to="b"), Get(second, (id_("b"),)))
    owner = town.at_home()
    with pytest.raises(Ambiguous):
        review.find(owner, first[:31])
    assert review.find(owner, second).reply == second
    owner.close()
