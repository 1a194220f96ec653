import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedq import ids

parts = st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=8) | st.integers(), max_size=4)


def test_fresh_ids_are_ids_and_differ():
    made = {ids.new_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(map(ids.is_id, made))


@given(st.text(max_size=5), parts, st.text(max_size=5), parts)
def test_derived_ids_differ_when_any_part_differs(domain, some, other_domain, others):
    same = (domain, *map(str, some)) == (other_domain, *map(str, others))
    assert (ids.derive(domain, *some) == ids.derive(other_domain, *others)) == same
    assert ids.is_id(ids.derive(domain, *some))


def test_parts_can_not_flow_into_each_other():
    assert ids.derive("d", "ab", "c") != ids.derive("d", "a", "bc") != ids.derive("d", "abc")


def test_a_digest_is_sha256_of_length_prefixed_parts():
    blob = b"\1\0\0\0\0\0\0\0a" + b"\2\0\0\0\0\0\0\0bc"
    assert ids.digest(b"a", b"bc") == hashlib.sha256(blob).hexdigest()


@given(st.integers(0, (1 << 63) - 1), st.integers(0, 10_000))
def test_the_seed_of_a_part_fits_torch_and_is_always_the_same(seed, part):
    assert 0 <= ids.derive_seed(seed, part) < 1 << 63
    assert ids.derive_seed(seed, part) == ids.derive_seed(seed, str(part)) != ids.derive_seed(seed, part + 1)


@pytest.mark.parametrize(
    "text", ["", "a" * 31, "a" * 33, "A" * 32, "g" * 32, "a" * 32 + "\n", "٣" * 32, None, 1, ["a" * 32]]
)
def test_what_is_no_id(text):
    assert not ids.is_id(text)
    assert not ids.is_plan_id(text)


@pytest.mark.parametrize("text", ["device_1", "alice-3f9a1c2e", "_", "a.b", "A" * 64])
def test_what_can_name_a_directory(text):
    assert ids.is_name(text)


@pytest.mark.parametrize(
    "text", ["", ".", "..", ".a", "-rf", "a/b", "a\\b", "a b", "é", "a\n", "A" * 65, "a\0", None, 3]
)
def test_what_can_not_name_a_directory(text):
    assert not ids.is_name(text)


@pytest.mark.parametrize(
    "text", ["", "a\nb", "\x1b[2J", "\x7f", "\x9b", "\u202e", "\u2066", "\u2028", "\ud800", "a" * 301, None, 3]
)
def test_what_is_no_text_for_people(text):
    assert not ids.is_text(text)


@pytest.mark.parametrize("text", ["a", "#input_data", "größe 😀", "tour.py:9", "a" * 300])
def test_what_is_text_for_people(text):
    assert ids.is_text(text)
