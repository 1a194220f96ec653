"""Files of a hostile holder of a good key, read by the code of both sides."""

import pytest

from fedq.errors import BadFile
from fedq.queue.pair import Card, Heartbeat
from tests.fuzz_files import fuzz
from tests.hostile_files import KINDS, hostile, said


def test_whatever_a_file_holds_it_is_read_or_refused_at_once_and_in_bounds():
    """2,000 of the million of `make fuzz`; of each kind some are taken, so more is shown than that they are refused."""
    found = fuzz(0, range(2000))
    assert found.wrong == {}
    assert all(found.counts[f"{kind} taken"] and found.counts[f"{kind} bad_file"] for kind in KINDS if kind != "reply")
    assert found.counts["reply taken"]


def test_the_same_seed_and_number_give_the_same_file():
    assert [hostile(3, n) for n in range(50)] == [hostile(3, n) for n in range(50)]


@pytest.mark.parametrize("time", [-1, 1e300, 10**400, 1e12, 253402300800, True])
def test_a_time_that_no_calendar_has_is_refused(time):
    with pytest.raises(BadFile):
        Heartbeat.from_json({**said("heartbeat"), "time": time})


@pytest.mark.parametrize("days", [0, -1, 1e9, 10**400, True])
def test_a_question_that_is_kept_for_longer_than_there_are_years_is_refused(days):
    with pytest.raises(BadFile):
        Card.from_json({**said("card"), "keep_days": days})
