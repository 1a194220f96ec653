"""What users write is read as meant, or refused with a word that would do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedq.cli import words
from fedq.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("90", 90), ("2h", 7200), ("1.5m", 90), ("5min", 300), ("20ms", 0.02), ("1d", 86400)],
)
def test_durations_are_read_in_seconds(text, seconds):
    assert words.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "10 s", "1w", "nan", "1h30m"])
def test_other_durations_are_refused(text):
    with pytest.raises(UsageError, match="not a duration"):
        words.duration(text)


def test_a_hash_before_a_tag_is_optional():
    assert (
        words.reference("device_1:#input_data") == words.reference("device_1:input_data") == ("device_1", "input_data")
    )


@pytest.mark.parametrize("text", ["device_1", "device_1:", ":tag", "a/b:tag", "", "../x:y", "device_1:#"])
def test_other_references_are_refused(text):
    with pytest.raises(UsageError, match="not a reference"):
        words.reference(text)


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("(-1,1)", [(-1, 1)]),
        ("-1,1", [(-1, 1)]),
        ("(-1,1),(3,)", [(-1, 1), (3,)]),
        ("[(2,3)]", [(2, 3)]),
        ("(5,)", [(5,)]),
    ],
)
def test_shapes_are_one_per_input(text, shapes):
    assert words.shapes(text) == shapes


@pytest.mark.parametrize("text", ["", "x", "(-2,1)", "(1.5,)", "((1,),(x,))", "__import__('os')", "5"])
def test_other_shapes_are_refused(text):
    with pytest.raises(UsageError, match="not a shape"):
        words.shapes(text)


@given(st.one_of(st.integers(-(10**12), 10**12), st.floats(allow_nan=False), st.booleans()))
def test_a_number_is_read_back_with_its_kind(value):
    read = words.number(str(value))
    assert read == value
    assert type(read) is type(value)


def test_a_tensor_file_may_name_one_of_its_tensors():
    assert words.tensor_file("a/b.npz:weights") == (words.Path("a/b.npz"), "weights")
    assert words.tensor_file("b.csv") == (words.Path("b.csv"), None)
    assert words.is_tensor_file("b.npz:x")
    assert not words.is_tensor_file("device_1:b")


@given(st.text(max_size=30))
def test_no_word_raises_anything_but_a_usage_error(text):
    for read in (words.duration, words.reference, words.shapes, words.file_and_name, words.number, words.tensor_file):
        try:
            read(text)
        except UsageError as error:
            assert error.hint


def test_an_argument_has_a_name_and_a_value():
    assert words.named("rate=0.1") == ("rate", "0.1")
    assert words.named("batch['x'] = device_1:a") == ("batch['x']", "device_1:a")
    for text in ("rate", "=1", "rate="):
        with pytest.raises(UsageError, match="names no argument"):
            words.named(text)
