import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedq.errors import BadFile, BadVersion
from fedq.plan.codec import RawTensor, canonical, decode, parse_json
from fedq.queue.message import (
    MAX_ACTIONS,
    Address,
    Failure,
    Get,
    Inline,
    Message,
    Number,
    Put,
    Reply,
    Run,
    decode_message,
    decode_reply,
    encode_message,
    encode_reply,
    message_from_json,
    message_tensors,
    message_to_json,
    reply_from_json,
    reply_tensors,
    reply_to_json,
)
from fedq.trust.keys import Key, signer_of
from tests.strategies import messages, replies

KEY = Key.from_seed(bytes(32))
A, B, C = "a" * 32, "b" * 32, "c" * 32
PLAN = "0" * 64
DEVICE = Address("device_1", "d" * 64, "e" * 32)
TO = Address("alice-3f9a1c2e", "3f9a1c2e" * 8, "e" * 32)
TENSOR = RawTensor("u8", (1,), b"\7")
RUN = Message(C, "alice-3f9a1c2e", DEVICE, 1.0, 2.0, 7, (Run(PLAN, (Inline("t0"), 3), {}, (A,)), Get(A, (A,))))


@given(messages)
def test_a_message_reads_back_as_it_was_written(message):
    tensors = dict.fromkeys(message_tensors(message), TENSOR)
    raw = b"".join(encode_message(message, tensors, KEY))
    assert signer_of("message", raw) == KEY.public
    again = decode_message(decode(raw))
    assert again == message
    assert canonical(message_to_json(again)) == canonical(message_to_json(message))


@given(replies)
def test_a_reply_reads_back_as_it_was_written(reply):
    raw = b"".join(encode_reply(reply, dict.fromkeys(reply_tensors(reply), TENSOR), KEY))
    assert decode_reply(decode(raw)) == reply


def test_numbers_that_are_not_finite_travel():
    for number in (math.nan, math.inf, -math.inf):
        value = reply_from_json(parse_json(canonical(reply_to_json(Reply(A, "d", TO, B, {A: Number(number)}))))).values[
            A
        ]
        assert repr(value) == repr(Number(number))
        run = Message(A, "a", DEVICE, 0, 1, 0, (Run(PLAN, (number,), {}, (B,)),))
        assert repr(message_from_json(parse_json(canonical(message_to_json(run)))).actions) == repr(run.actions)


def message(**changes):
    return message_to_json(RUN) | changes


def actions(*rows):
    return message(actions=list(rows))


def run(at, value):
    return actions([value if i == at else x for i, x in enumerate(["run", PLAN, [], {}, [A]])])


BAD = {
    "a key more": message(x=1),
    "a key less": {k: v for k, v in message().items() if k != "token"},
    "other kind": message(kind="reply"),
    "kind a list": message(kind=["message"]),
    "id short": message(id="a" * 31),
    "id upper case": message(id="A" * 32),
    "id of other digits": message(id="٣" * 32),
    "id and a line": message(id="a" * 32 + "\n"),
    "id a list": message(id=[A]),
    "id a path": message(id="../../../../../../../../../../aaa"),
    "from a path": message(**{"from": "../alice"}),
    "from hidden": message(**{"from": ".alice"}),
    "from empty": message(**{"from": ""}),
    "from long": message(**{"from": "a" * 65}),
    "to null": message(to=None),
    "to a name alone": message(to="device_1"),
    "to a name of other letters": message(to=["é", "d" * 64, "e" * 32]),
    "to a short key": message(to=["device_1", "d" * 8, "e" * 32]),
    "to a key of capitals": message(to=["device_1", "D" * 64, "e" * 32]),
    "to no root": message(to=["device_1", "d" * 64]),
    "to a root that is no id": message(to=["device_1", "d" * 64, "e" * 64]),
    "to a root that is null": message(to=["device_1", "d" * 64, None]),
    "to more": message(to=["device_1", "d" * 64, "e" * 32, "x"]),
    "created true": message(created=True),
    "created negative": message(created=-1.0),
    "created far": message(created=1e12),
    "created text": message(created="1"),
    "expires null": message(expires=None),
    "expires huge": message(expires=10**400),
    "seed negative": message(seed=-1),
    "seed true": message(seed=True),
    "seed a float": message(seed=1.0),
    "seed of 64 bits": message(seed=1 << 63),
    "token empty": message(token=""),
    "token a number": message(token=1),
    "token long": message(token="a" * 301),
    "token steers the terminal": message(token="\x1b[2J"),
    "actions a dict": message(actions={}),
    "actions null": message(actions=None),
    "actions too many": message(actions=[["ack", []]] * (MAX_ACTIONS + 1)),
    "action null": actions(None),
    "action empty": actions([]),
    "action unknown": actions(["fold", PLAN]),
    "action a list": actions([["run"]]),
    "put long": actions(["put", A, {"t": "t0"}, {}, 1]),
    "put no tensor": actions(["put", A, {}, {}]),
    "put two tensors": actions(["put", A, {"t": "t0", "v": B}, {}]),
    "put tensor a path": actions(["put", A, {"t": "../t0"}, {}]),
    "put the signature": actions(["put", A, {"t": "~fedq.sig"}, {}]),
    "put tag empty": actions(["put", A, {"t": "t0"}, {"tag": ""}]),
    "put tag null": actions(["put", A, {"t": "t0"}, {"tag": None}]),
    "put tag a list": actions(["put", A, {"t": "t0"}, {"tag": ["a"]}]),
    "put tag with a line": actions(["put", A, {"t": "t0"}, {"tag": "a\nb"}]),
    "put an option more": actions(["put", A, {"t": "t0"}, {"x": 1}]),
    "plan id short": actions(["plan", A, {"inputs": [], "actions": [], "outputs": None}, [], {}]),
    "plan graph null": actions(["plan", PLAN, None, [], {}]),
    "plan tensors of numbers": actions(["plan", PLAN, {"inputs": [], "actions": [], "outputs": None}, [1], {}]),
    "plan tensors a path": actions(["plan", PLAN, {"inputs": [], "actions": [], "outputs": None}, ["/etc"], {}]),
    "plan about null": actions(["plan", PLAN, {"inputs": [], "actions": [], "outputs": None}, [], None]),
    "run plan short": run(1, A),
    "run plan null": run(1, None),
    "run args a dict": run(2, {}),
    "run arg a list": run(2, [[1]]),
    "run arg of two kinds": run(2, [{"v": A, "t": "t0"}]),
    "run arg id short": run(2, [{"v": "a"}]),
    "run arg id a list": run(2, [{"v": [A]}]),
    "run arg huge": run(2, [1 << 64]),
    "run arg unknown": run(2, [{"x": 1}]),
    "run arg not a number": run(2, [{"f": "infinity"}]),
    "run kwargs a list": run(3, []),
    "run keyword not a word": run(3, {"a b": 1}),
    "run keyword empty": run(3, {"": 1}),
    "run results a text": run(4, A),
    "run results twice": run(4, [A, A]),
    "run results unhashable": run(4, [[A]]),
    "run results null": run(4, [None]),
    "two runs promise one value": actions(["run", PLAN, [], {}, [A]], ["run", PLAN, [], {}, [A]]),
    "put and run promise one value": actions(["put", A, {"t": "t0"}, {}], ["run", PLAN, [], {}, [A]]),
    "two gets promise one reply": actions(["get", A, [B], {}], ["get", A, [C], {}]),
    "get nothing": actions(["get", A, [], {}]),
    "get twice the same": actions(["get", A, [B, B], {}]),
    "get more than a file holds": actions(["get", A, [f"{n:032x}" for n in range(4097)], {}]),
    "get with an option": actions(["get", A, [B], {"x": 1}]),
    "drop with an option": actions(["drop", [A], {"x": 1}]),
    "drop after a text": actions(["drop", [A], {"after": A}]),
    "drop a dict": actions(["drop", {}, {}]),
    "cancel null": actions(["cancel", None]),
    "cancel more": actions(["cancel", [A], {}]),
    "ack a number": actions(["ack", [1]]),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_malformed_message_is_refused(reason):
    with pytest.raises(BadFile) as caught:
        message_from_json(BAD[reason])
    assert not isinstance(caught.value, BadVersion)


def reply(**changes):
    return reply_to_json(Reply(A, "device_1", TO, B, {A: Number(1)})) | changes


BAD_REPLIES = {
    "a key more": reply(x=1),
    "other kind": reply(kind="message"),
    "id short": reply(id="a"),
    "message null": reply(message=None),
    "from a path": reply(**{"from": "a/b"}),
    "values a dict": reply(values={}),
    "values odd": reply(values=[[A]]),
    "values of texts": reply(values=["ab"]),
    "value id unhashable": reply(values=[[[A], {"n": 1}]]),
    "value id twice": reply(values=[[A, {"n": 1}], [A, {"n": 2}]]),
    "value null": reply(values=[[A, None]]),
    "value a number": reply(values=[[A, 1]]),
    "value of two kinds": reply(values=[[A, {"n": 1, "t": "a"}]]),
    "number null": reply(values=[[A, {"n": None}]]),
    "number a text": reply(values=[[A, {"n": "1"}]]),
    "number huge": reply(values=[[A, {"n": 10**30}]]),
    "tensor a path": reply(values=[[A, {"t": "../x"}]]),
    "error short": reply(values=[[A, {"e": ["failed", "x"]}]]),
    "error code a number": reply(values=[[A, {"e": [1, "x", {}]}]]),
    "error of lines": reply(values=[[A, {"e": ["failed", "a\nb", {}]}]]),
    "error fields a list": reply(values=[[A, {"e": ["failed", "x", []]}]]),
    "error field of lists": reply(values=[[A, {"e": ["failed", "x", {"a": [1]}]}]]),
    "error field not a word": reply(values=[[A, {"e": ["failed", "x", {"a b": 1}]}]]),
}


@pytest.mark.parametrize("reason", BAD_REPLIES)
def test_a_malformed_reply_is_refused(reason):
    with pytest.raises(BadFile) as caught:
        reply_from_json(BAD_REPLIES[reason])
    assert not isinstance(caught.value, BadVersion)


@pytest.mark.parametrize("version", [0, 2, "1", True, 1.0, None, [], {}])
def test_another_version_is_refused_as_such(version):
    for read, body in ((message_from_json, message(v=version)), (reply_from_json, reply(v=version))):
        with pytest.raises(BadVersion):
            read(body)


def test_tensors_and_their_names_go_together():
    for tensors in ({}, {"t1": TENSOR}, {"t0": TENSOR, "t1": TENSOR}):
        with pytest.raises(BadFile, match="named"):
            encode_message(RUN, tensors, KEY)
    with pytest.raises(BadFile, match="named"):
        encode_reply(Reply(A, "d", TO, B, {A: "x"}), {}, KEY)


def test_a_message_of_the_most_actions_fits_one_file():
    results = [f"{i:032x}" for i in range(MAX_ACTIONS // 2)]
    verbs = tuple(v for id_ in results for v in (Run(PLAN, (Inline("t0"),), {}, (id_,)), Get(id_, (id_,))))
    big = Message(A, "alice", DEVICE, 1.0, 2.0, 0, verbs)
    raw = b"".join(encode_message(big, {"t0": TENSOR}, KEY))
    assert decode_message(decode(raw)) == big


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([A, PLAN, "run", "put", "t0"]),
    lambda v: (
        st.lists(v, max_size=5)
        | st.dictionaries(st.sampled_from(["t", "v", "n", "e", "f", "tag", "after"]), v, max_size=2)
    ),
    max_leaves=10,
)


@given(
    anything,
    st.sampled_from(sorted(message())),
    st.sampled_from(["run", "put", "plan", "get", "drop", "cancel", "ack"]),
)
def test_any_json_in_place_of_a_part_gives_a_message_or_a_bad_file(value, key, verb):
    rows = value if isinstance(value, list) else [value]
    for body in (message(**{key: value}), actions([verb, *rows])):
        try:
            read = message_from_json(body)
        except BadFile:
            continue
        assert message_from_json(parse_json(canonical(message_to_json(read)))) == read


@given(anything, st.sampled_from(sorted(reply())))
def test_any_json_in_place_of_a_part_gives_a_reply_or_a_bad_file(value, key):
    for body in (reply(**{key: value}), reply(values=[[A, value]]), reply(values=[[A, {"e": value}]])):
        try:
            read = reply_from_json(body)
        except BadFile:
            continue
        assert canonical(reply_to_json(reply_from_json(parse_json(canonical(reply_to_json(read)))))) == canonical(
            reply_to_json(read)
        )


def test_failures_carry_facts_only():
    failure = Failure("failed", "action 3 failed", {"action": 3, "op": "aten.abs", "line": "a.py:1", "id": None})
    assert (
        reply_from_json(parse_json(canonical(reply_to_json(Reply(A, "d", TO, B, {A: failure}))))).values[A] == failure
    )


def test_a_put_keeps_its_tag():
    put = Message(A, "a", DEVICE, 0.0, 1.0, 0, (Put(B, "t0", "#input_data"),))
    assert decode_message(decode(b"".join(encode_message(put, {"t0": TENSOR}, KEY)))) == put


def test_an_error_of_odd_text_is_written_so_that_it_can_be_read():
    failure = Failure("failed", "line one\nline two " + "x" * 2000, {"line": "\x1b[2J" + "y" * 400, "action": 3})
    read = reply_from_json(parse_json(canonical(reply_to_json(Reply(A, "d", TO, B, {A: failure}))))).values[A]
    assert read.text.startswith("line one?line two xxx")
    assert read.fields["line"].startswith("?[2Jyyy")


def test_a_tag_that_could_not_be_read_is_not_written():
    for tag in ("", "a\nb", "x" * 301):
        with pytest.raises(BadFile, match="tag"):
            message_to_json(Message(A, "a", DEVICE, 0.0, 1.0, 0, (Put(B, "t0", tag),)))
