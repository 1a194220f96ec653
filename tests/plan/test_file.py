import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedq.errors import BadFile, BadVersion
from fedq.plan.codec import File, RawTensor, decode, encode
from fedq.plan.file import PlanFile, checked, decode_plan, encode_plan
from fedq.plan.graph import ITEMSIZE, About, Action, Graph, Type, Var, graph_to_json
from fedq.trust.keys import Key, signer_of
from tests.strategies import abouts, graphs

KEY = Key.from_seed(bytes(32))
GRAPH = Graph(
    inputs=(Type("f32", ("n", 2)),),
    actions=(Action("aten.mul.Tensor", (Var(0), Var(1)), {}, (Type("f32", ("n", 2)),)),),
    outputs=Var(2),
    state=(("w", Type("f32", (2,))),),
)
STATE = {"w": RawTensor("f32", (2,), b"\0\0\x80?\0\0\0@")}
PLAN = PlanFile(GRAPH, STATE, About("scale", ("a.py:3",), ("x",)))


def body(**changes):
    return {"v": 1, "kind": "plan", "plan": ["plan", PLAN.id, graph_to_json(GRAPH), ["w"], {}]} | changes


def row(at, value):
    return body(plan=[value if i == at else x for i, x in enumerate(body()["plan"])])


@given(graphs(), abouts, st.integers(0, 255))
def test_a_plan_reads_back_with_the_same_id(graph, about, byte):
    raw_state = {
        name: RawTensor(t.dtype, t.shape, bytes([byte % 2]) * (ITEMSIZE[t.dtype] * _count(t.shape)))
        for name, t in graph.state
    }
    plan = PlanFile(graph, raw_state, about)
    raw = b"".join(encode_plan(plan, KEY))
    assert signer_of("plan", raw) == KEY.public
    again = decode_plan(decode(raw))
    assert (again.graph, again.about, again.id) == (graph, about, plan.id)
    assert {n: bytes(t.data) for n, t in again.state.items()} == {n: t.data for n, t in raw_state.items()}
    assert b"".join(encode_plan(again, KEY)) == raw


def _count(shape):
    count = 1
    for n in shape:
        count *= n
    return count


def test_a_plan_moved_or_renamed_is_the_same_plan():
    assert PlanFile(GRAPH, STATE, About("other", ("b.py:9",))).id == PLAN.id


def test_a_plan_with_other_state_is_another_plan_with_the_same_graph():
    other = PlanFile(GRAPH, {"w": RawTensor("f32", (2,), bytes(8))})
    assert other.id != PLAN.id
    assert other.graph.id == PLAN.graph.id


BAD = {
    "no plan": {"v": 1, "kind": "plan"},
    "a key more": body(x=1),
    "other kind": body(kind="message"),
    "kind null": body(kind=None),
    "plan null": body(plan=None),
    "plan short": body(plan=body()["plan"][:4]),
    "id of another plan": row(1, "0" * 64),
    "id a number": row(1, 3),
    "graph null": row(2, None),
    "no state named": row(3, []),
    "state not there": row(3, ["v"]),
    "state unhashable": row(3, [["w"]]),
    "state null": row(3, [None]),
    "state twice": row(3, ["w", "w"]),
    "about null": row(4, None),
    "about unknown": row(4, {"x": 1}),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_malformed_plan_file_is_refused(reason):
    with pytest.raises(BadFile) as caught:
        decode_plan(decode(b"".join(encode("plan", BAD[reason], STATE, KEY))))
    assert not isinstance(caught.value, BadVersion)


@pytest.mark.parametrize("version", [0, 2, "1", True, 1.0, None, [1], {}, 10**30])
def test_another_version_is_refused_as_such(version):
    with pytest.raises(BadVersion, match="version"):
        decode_plan(File(body(v=version), STATE))


def test_state_of_another_shape_or_dtype_is_refused():
    for tensor in (
        RawTensor("f32", (1, 2), bytes(8)),
        RawTensor("i32", (2,), bytes(8)),
        RawTensor("f32", (1,), bytes(4)),
    ):
        with pytest.raises(BadFile, match=r"state 'w' is not f32\[2\]"):
            checked(PLAN.id, GRAPH, ["w"], About(), {"w": tensor})


def test_tensors_that_are_no_state_are_refused():
    with pytest.raises(BadFile, match="not its state"):
        decode_plan(decode(b"".join(encode("plan", body(), STATE | {"extra": STATE["w"]}, KEY))))
