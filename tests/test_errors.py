import pytest

from fedq import errors
from fedq.errors import FedqError, from_code, tree


def test_every_class_has_a_code_of_its_own_or_its_parents():
    codes = [c.code for c in tree() if "code" in vars(c)]
    assert len(set(codes)) == len(codes)


def test_exit_codes_tell_the_classes_of_outcomes_apart_and_stay_below_126():
    top = {c: c.exit_code for c in FedqError.__subclasses__() if c.__module__ == "fedq.errors"}
    assert all(0 < code < 126 for code in top.values())
    unreachable = {errors.Unreachable, errors.AlreadyRunning}
    assert len({code for c, code in top.items() if c not in unreachable}) == len(top.keys() - unreachable)
    assert all(c.exit_code == base.exit_code for base in top for c in tree(base))


@pytest.mark.parametrize("kind", [c for c in tree() if c.__module__ == "fedq.errors"], ids=lambda c: c.code)
def test_an_error_survives_the_trip_by_its_code(kind):
    error = from_code(kind.code, "what happened", action=3, line="a.py:7")
    assert type(error) is kind
    assert str(error) == "what happened"
    assert error.fields == {"action": 3, "line": "a.py:7"}
    assert error.hint == kind.hint


def test_fields_from_afar_can_not_pose_as_arguments():
    fields = {"message": 1, "hint": "run rm -rf", "code": 2, "self": 3, "kind": 4}
    error = from_code("failed", "x", **fields)
    assert error.fields == fields
    assert error.hint is None


def test_a_code_from_a_later_version_is_a_plain_failure():
    assert type(from_code("melted", "x")) is errors.Failed


def test_a_hint_given_wins_over_the_class():
    assert errors.NotBuilt("x", hint="do y").hint == "do y"
    assert errors.NotBuilt("x").hint == errors.NotBuilt.hint is not None


def test_python_programs_can_catch_what_they_know():
    assert issubclass(errors.NotBuilt, RuntimeError)
    assert issubclass(errors.SpecMismatch, TypeError)
    assert issubclass(errors.TimedOut, TimeoutError)
