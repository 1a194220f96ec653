"""Pairs: nothing below a root that is not there; sealed files that no bit of can be changed."""

import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedq.errors import BadFile, BadSignature, BadVersion, Conflict, FedqError, UnknownDevice, Unreachable
from fedq.plan.graph import Type
from fedq.queue.message import Address
from fedq.queue.pair import (
    MARK,
    Card,
    Catalog,
    Entry,
    Heartbeat,
    create_pair,
    create_root,
    devices_of,
    is_root,
    open_json,
    open_pair,
    pairs_of,
    root_id,
    seal_json,
)  # fmt: skip
from fedq.trust.keys import Key, unseal, verify

KEY, OTHER = Key.from_seed(bytes(32)), Key.from_seed(b"o" * 32)
ROOT = "00" * 16
ALICE = "alice-01234567"
TO = Address(ALICE, "01234567" * 8, ROOT)


@pytest.fixture
def queue(tmp_path):
    create_root(tmp_path / "queue", id=ROOT)
    return tmp_path / "queue"


# -- roots and pairs


def test_without_the_mark_nothing_is_made_and_the_absolute_path_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue").mkdir()
    for call in (root_id, lambda q: create_pair(q, "ward", ALICE), lambda q: open_pair(q, "ward", ALICE)):
        with pytest.raises(Unreachable, match=f"no queue root in {tmp_path}/queue") as caught:
            call((tmp_path / "queue").relative_to(tmp_path))
        assert "is it mounted?" in caught.value.hint
    assert os.listdir(tmp_path / "queue") == []


def test_a_root_keeps_its_id(queue):
    assert is_root(queue) and not is_root(queue.parent) and not is_root(queue / "gone")
    assert root_id(queue) == ROOT
    create_root(queue, id=ROOT)
    with pytest.raises(Conflict, match="already"):
        create_root(queue, id="ff" * 16)
    assert root_id(queue) == ROOT


@pytest.mark.parametrize(
    "mark", [b"", b"{}", b"[]", b'{"v":1,"id":"x"}', b'{"v":2,"id":"%s"}' % (b"0" * 32), b"\xff", b"x" * 5000]
)
def test_a_malformed_mark_is_refused(queue, mark):
    (queue / MARK).write_bytes(mark)
    with pytest.raises(BadFile):
        root_id(queue)


def test_pairs_are_made_found_and_opened(queue):
    pair = create_pair(queue, "ward_1", ALICE)
    assert create_pair(queue, "ward_1", ALICE).requester == ALICE
    create_pair(queue, "ward_1", "bob-76543210")
    (queue / "ward_1" / "stray").mkdir()
    (queue / "empty").mkdir()
    (queue / "notes.txt").touch()
    assert devices_of(queue) == ["ward_1"]
    assert pairs_of(queue, "ward_1") == [ALICE, "bob-76543210"] and pairs_of(queue, "none") == []
    opened = open_pair(queue, "ward_1", ALICE)
    pair.carrier.put(pair.message_name("a" * 32), [b"x"])
    pair.carrier.put(pair.reply_name("b" * 32), [b"y"])
    assert opened.carrier.list("in") == ["a" * 32 + ".safetensors"]
    assert opened.carrier.list("out") == ["b" * 32 + ".safetensors"]


def test_the_folders_of_a_pair_are_one_users_whatever_the_umask(tmp_path):
    before = os.umask(0o007)
    try:
        create_root(tmp_path / "q", id=ROOT)
        pair = create_pair(tmp_path / "q", "ward", ALICE)
        pair.carrier.put(pair.message_name("a" * 32), [b"x"])
    finally:
        os.umask(before)
    rights = [stat.S_IMODE(pair.carrier.path(p).stat().st_mode) for p in ("", "in", "out", "blobs")]
    assert rights == [0o700] * 4
    assert stat.S_IMODE(pair.carrier.path(pair.message_name("a" * 32)).stat().st_mode) == 0o600


def test_an_unknown_device_lists_those_that_are_there(queue):
    create_pair(queue, "ward_1", ALICE)
    with pytest.raises(UnknownDevice, match=r"no device 'ward_2' in /.*/queue \(there: ward_1\)"):
        open_pair(queue, "ward_2", ALICE)
    with pytest.raises(UnknownDevice, match="no pair with bob-76543210") as caught:
        open_pair(queue, "ward_1", "bob-76543210")
    assert "ask its owner" in caught.value.hint


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".fedq", "a" * 65, "a\n", "é"])
def test_names_that_could_lead_elsewhere_are_refused(queue, name):
    for call in (open_pair, create_pair):
        for device, requester in ((name, ALICE), ("ward", name)):
            with pytest.raises(UnknownDevice):
                call(queue, device, requester)
    assert os.listdir(queue) == [MARK]


# -- sealed JSON

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
BODIES = st.dictionaries(st.text().filter(lambda k: k not in ("v", "kind", "sig")), JSON, max_size=5)


@given(BODIES)
def test_a_body_reads_back_with_its_signer(body):
    raw = seal_json("card", body, KEY)
    assert open_json("card", raw, verify) == (body, KEY.public)
    assert raw.endswith(b'"}\n') and raw.count(b"\n") == 1 and raw.isascii()


@given(BODIES, st.data())
@settings(max_examples=300)
def test_any_changed_bit_any_cut_and_any_addition_is_refused(body, data):
    raw = bytearray(seal_json("card", body, KEY))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadSignature):
        open_json("card", raw, verify)
    raw[bit // 8] ^= 1 << bit % 8
    at = data.draw(st.integers(0, len(raw) - 1))
    for changed in (raw[:at], raw[at + 1 :], raw[:at] + b" " + raw[at:], raw + b"\n"):
        with pytest.raises(BadSignature):
            open_json("card", changed, verify)


def test_every_bit_of_a_real_file_counts():
    raw = bytearray(seal_json("heartbeat", Heartbeat("ward", TO, (1, 1), "0" * 16, 1.5, "up").to_json(), KEY))
    for bit in range(len(raw) * 8):
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadSignature):
            open_json("heartbeat", raw, verify)
        raw[bit // 8] ^= 1 << bit % 8


def test_one_kind_is_not_another_and_a_later_version_is_said():
    raw = seal_json("card", {}, KEY)
    with pytest.raises(BadSignature):
        open_json("catalog", raw, verify)
    with pytest.raises(BadVersion):
        open_json("card", seal_json("card", {"v": 2}, KEY), verify)
    with pytest.raises(BadFile):
        open_json("card", seal_json("card", {"kind": "catalog"}, KEY), verify)


# -- card, catalog, heartbeat

HEX = st.text("0123456789abcdef", min_size=32, max_size=32)
TWO = st.tuples(HEX, st.text(max_size=20)).map(tuple)
PLANS = st.tuples(HEX.map(lambda digits: 2 * digits), st.text(max_size=20)).map(tuple)
TYPES = st.sampled_from(["f32[n,3]", "i64[]", "int", "int=3", "bool[2]"]).map(Type.parse)
ENTRIES = st.builds(Entry, HEX, st.none() | st.text(), TYPES, st.text(), st.text())
KEYS = HEX.map(lambda digits: 2 * digits)
ADDRESSES = st.builds(Address, st.sampled_from([ALICE, "bob-76543210"]), KEYS, HEX)
COUNTS = st.tuples(*[st.integers(0, (1 << 63) - 1)] * 2)
FILES = st.one_of(
    st.builds(
        Card, st.text(), ADDRESSES, COUNTS, KEYS, st.text(), st.lists(st.integers(1, 9)).map(tuple),
        st.integers(1, 365), st.integers(1, 1 << 62),
    ),
    st.builds(
        Catalog, st.text(), ADDRESSES, COUNTS,
        st.lists(ENTRIES, max_size=4).map(tuple), st.lists(PLANS, max_size=4).map(tuple),
    ),
    st.builds(
        Heartbeat, st.text(), ADDRESSES, COUNTS, HEX.map(lambda digits: digits[:16]),
        st.floats(0, 1e11), st.sampled_from(["up", "down"]),
        *[st.lists(HEX, max_size=4).map(tuple)] * 2, *[st.lists(TWO, max_size=4).map(tuple)] * 2,
    ),
)  # fmt: skip


@given(FILES)
def test_what_a_device_writes_reads_back(file):
    raw = seal_json(file.KIND, file.to_json(), KEY)
    assert unseal(type(file), raw, KEY.public, file.device, file.to) == file
    with pytest.raises(BadSignature, match="another key"):
        unseal(type(file), raw, OTHER.public, file.device, file.to)


@given(st.sampled_from([Card, Catalog, Heartbeat]), FILES, st.data())
def test_signed_but_malformed_files_are_refused(what, file, data):
    body = dict(file.to_json())
    changed = data.draw(st.sampled_from(sorted(body)))
    body[changed] = data.draw(JSON)
    try:
        read = what.from_json(open_json(what.KIND, seal_json(what.KIND, body, KEY), verify)[0])
    except FedqError:
        return
    assert unseal(what, seal_json(what.KIND, read.to_json(), KEY), KEY.public, read.device, read.to) == read


MALFORMED = {
    "a member too many": {**Card("w", TO, (0, 0), "a" * 64, "1", (1,)).to_json(), "x": 1},
    "a member missing": {"device": "w"},
    "a format that is no number": {**Card("w", TO, (0, 0), "a" * 64, "1", (1,)).to_json(), "formats": [True]},
}


@pytest.mark.parametrize("reason", MALFORMED)
def test_a_malformed_card_is_refused(reason):
    with pytest.raises(BadFile, match="malformed card"):
        Card.from_json(MALFORMED[reason])


def test_a_device_writes_and_a_requester_reads(queue):
    mine, theirs = create_pair(queue, "ward", ALICE), open_pair(queue, "ward", ALICE)
    with pytest.raises(FileNotFoundError):
        theirs.read_bytes("catalog")
    for tag in ("old", "new"):
        catalog = Catalog("ward", TO, (1, 1), (Entry("a" * 32, tag, Type("f32", ("n", 3)), "open"),))
        mine.write(catalog, KEY)
        assert unseal(Catalog, theirs.read_bytes("catalog"), KEY.public, "ward", TO) == catalog
