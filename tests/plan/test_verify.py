import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedq.errors import NotAllowed
from fedq.plan import optable
from fedq.plan.graph import Action, Dtype, Format, Graph, Subgraph, Type, Var
from fedq.plan.verify import MAX_ACTIONS, MAX_STATE, verify

T = Type.parse
F32, INT = T("f32[n]"), T("int")


def act(op, *args, types=(F32,), **kwargs):
    return Action(op, args, kwargs, tuple(types))


def graph(*actions, inputs=(F32, F32), outputs=None, **kwargs):
    kwargs.setdefault("sizes", {"n": 0})
    return Graph(tuple(inputs), actions, Var(0) if outputs is None else outputs, **kwargs)


X, Y = Var(0), Var(1)

ALLOWED = {
    "a plain op": act("aten.add.Tensor", X, Y),
    "a number for a tensor": act("aten.add.Tensor", X, 2, alpha=0.5),
    "a list of tensors": act("aten.cat", [X, Y], 0),
    "an index with gaps": act("aten.index.Tensor", X, [None, Y]),
    "one number for a list": act("aten.sum.dim_IntList", X, 0),
    "what torch would say of devices": act("aten.zeros", [2], device=None, pin_memory=False),
    "an infinite bound": act("aten.clamp", X, float("-inf"), 1),
    "the end of a slice": act("aten.slice.Tensor", X, 0, 0, 2**63 - 1),
    "a dtype and a format": act("aten.clone", X, memory_format=Format("contiguous")),
    "arguments by name": act("aten.sum.dim_IntList", X, dim=[0], keepdim=True, dtype=Dtype("f64")),
    "several results": act("aten.max.dim", X, 0, types=(F32, F32)),
    "a list of results": act("aten.split.Tensor", X, 2, types=(F32, F32, F32)),
    "a size": act("sym.size", X, 0, types=(INT,)),
    "a text of its range": act("aten.div.Tensor_mode", X, Y, rounding_mode="floor"),
    "an equation": act("aten.einsum", "i,i->", [X, Y]),
}


@pytest.mark.parametrize("action", ALLOWED.values(), ids=ALLOWED)
def test_an_ordinary_action_is_allowed(action):
    assert verify(graph(action)).reaches == (frozenset({0}),)


REFUSED = {
    "uninitialised memory": (act("aten.empty.memory_format", [9]), "memory that was not written to"),
    "files": (act("aten.from_file", "/etc/passwd", types=(F32,)), "op 'aten.from_file' is not allowed: opens files"),
    "in place": (act("aten.add_.Tensor", X, Y), "writes to its argument"),
    "a given result": (act("aten.add.out", X, Y, out=X), "writes to a given result"),
    "another namespace": (act("prims.add", X, Y), "a plan holds ops of aten"),
    "a dunder": (act("__import__", "os"), "a plan holds ops of aten"),
    "an attribute": (act("aten.add.__class__", X), "not among the ops"),
    "too many arguments": (act("aten.abs", X, Y), "takes 1 arguments, 2 given"),
    "too few": (act("aten.add.Tensor", X), "lacks argument 'other'"),
    "an unknown keyword": (act("aten.abs", X, out=Y), "no argument 'out'"),
    "an argument twice": (act("aten.abs", X, self=Y), "no argument 'self'"),
    "a keyword by position": (act("aten.add.Tensor", X, Y, 2), "takes 2 arguments"),
    "a later value": (act("aten.abs", Var(3)), "%3 is not defined"),
    "a negative value": (act("aten.abs", Var(-1)), "not defined"),
    "a text for a tensor": (act("aten.abs", "x"), "'self' is not a tensor"),
    "a number where only a tensor goes": (act("aten.matmul", X, 2), "'other' is not a tensor"),
    "a tensor for a number": (act("aten.full", [X], 1), "'size' is not a list of integers"),
    "a tensor for a flag": (act("aten.std.dim", X, [0], Y), "'unbiased' is not true or false"),
    "a float for an integer": (act("aten.select.int", X, 0, 1.5), "'index' is not an integer"),
    "a flag for an integer": (act("aten.select.int", X, 0, True), "'index' is not an integer"),
    "a number for a dtype": (act("aten._to_copy", X, dtype=6), "'dtype' is not a dtype"),
    "an unknown dtype": (act("aten._to_copy", X, dtype=Dtype("q8")), "out of bounds"),
    "an unknown format": (act("aten.clone", X, memory_format=Format("strided")), "out of bounds"),
    "a format for a dtype": (act("aten._to_copy", X, dtype=Format("contiguous")), "not a dtype"),
    "a device": (act("aten.zeros", [1], device="cuda:0"), "'device' is not left out"),
    "a generator": (act("aten.rand", [1], generator=X), "no argument 'generator'"),
    "a dictionary": (act("aten.full", {"a": 1}, 1), "'size' is not"),
    "a subgraph": (act("aten.abs", Subgraph(0)), "'self' is not a tensor"),
    "an enormous integer": (act("aten.repeat", X, [2**41]), "'repeats' is out of bounds"),
    "more than 64 bits": (act("aten.add.Tensor", X, 2**64), "'other' is out of bounds"),
    "an enormous product": (act("aten.zeros", [2**20, 2**20]), "'size' is out of bounds"),
    "a long list": (act("aten.zeros", [1] * 5000), "'size' is not"),
    "a list in a list": (act("aten.zeros", [[1]]), "'size' is not"),
    "a long text": (act("aten.einsum", "i" * 500, [X]), "'equation' is out of bounds"),
    "control characters": (act("aten.einsum", "i\x1b[2J", [X]), "'equation' is out of bounds"),
    "an enum out of range": (act("aten.grid_sampler", X, Y, 99, 0, False), "'interpolation_mode' is one of 0, 1, 2"),
    "an enum that is computed": (act("aten.grid_sampler", X, Y, Var(2), 0, False), "interpolation_mode"),
    "a text out of its range": (act("aten.div.Tensor_mode", X, Y, rounding_mode="up"), "'rounding_mode' is one of"),
    "no sections": (act("aten.tensor_split.sections", X, 0), "'sections' is out of bounds"),
    "statistics that are not there": (
        act("aten._native_batch_norm_legit.no_stats", X, None, None, False, 0.1, 1e-5, types=(F32,) * 3), "'training'"),
    "too few results": (act("aten.max.dim", X, 0), "gives Tensor, Tensor, not"),
    "too many results": (act("aten.abs", X, types=(F32, F32)), "gives Tensor, not"),
    "no result": (act("aten.abs", X, types=()), "not nothing"),
    "a number for a result": (act("aten.abs", X, types=(INT,)), "gives Tensor, not int"),
    "a tensor for a size": (act("sym.size", X, 0), "gives Scalar, not"),
    "arithmetic on tensors": (act("sym.add", X, 1, types=(INT,)), "'a' is not"),
}  # fmt: skip


@pytest.mark.parametrize(("action", "message"), REFUSED.values(), ids=REFUSED)
def test_a_hostile_action_is_refused_by_number_and_name(action, message):
    with pytest.raises(NotAllowed, match=message) as caught:
        verify(graph(act("sym.size", X, 0, types=(INT,)), action))
    assert caught.value.fields == {"action": 1, "op": action.op}
    assert str(caught.value).endswith("(action 1)")


FRAMES = {
    "an undefined output": (graph(outputs=Var(7)), "output %7 is not defined"),
    "an output that is no value": (graph(outputs=[3]), "output 3 is not defined"),
    "an undeclared letter": (graph(inputs=(T("f32[n,m]"),)), "size 'm' is not declared"),
    "an expression as an input's size": (graph(inputs=(T("f32[n+1]"),)), "not a type of an input"),
    "a guard on no input's letter": (graph(guards=(("==", "m", 1),)), "names a size of no input"),
    "a guard that compares nothing": (graph(guards=(("+", "n", 1),)), "guard is malformed"),
    "a guard with code": (graph(guards=(("==", "n", ("__import__", 1, 2)),)), "guard is malformed"),
    "a short row of dtypes": (graph(dtypes=(("f64",),)), "one per input and output"),
    "an unknown dtype in a row": (graph(dtypes=(("f64", "f65", "f64"),)), "does not fit"),
    "a number's dtype for a tensor": (graph(dtypes=(("int", "f64", "f64"),)), "does not fit"),
    "free sizes in state": (graph(state=(("w", F32),)), "state tensor has a free size"),
    "a number as state": (graph(state=(("w", INT),)), "state tensor has a free size"),
    "two states of one name": (graph(state=(("w", T("f32[1]")), ("w", T("f32[1]")))), "one name"),
    "too much state": (graph(state=tuple((f"w{i}", T("f32[1]")) for i in range(MAX_STATE + 1))), "state tensors"),
    "too many actions": (graph(*[act("aten.abs", X)] * (MAX_ACTIONS + 1)), "10001 actions"),
    "too many results": (graph(act("aten.unbind.int", X, types=(F32,) * 70_000)), "values, at most"),
    "a result's size from nowhere": (
        graph(act("aten.abs", X, types=(T("f32[m]"),)), outputs=Var(2)), "names a size of no input"),
    "a result's size that is none": (
        graph(act("aten.abs", X, types=(Type("f32", ("n; import os",)),)), outputs=Var(2)), "is not a size"),
}  # fmt: skip


@pytest.mark.parametrize(("hostile", "message"), FRAMES.values(), ids=FRAMES)
def test_a_hostile_frame_is_refused(hostile, message):
    with pytest.raises(NotAllowed, match=message):
        verify(hostile)


def test_deep_outputs_are_refused():
    deep = Var(0)
    for _ in range(40):
        deep = [deep]
    with pytest.raises(NotAllowed, match="deeper than 32"):
        verify(graph(outputs=deep))


def test_deep_guards_are_refused():
    deep = "n"
    for _ in range(5000):
        deep = ("+", deep, 1)
    with pytest.raises(NotAllowed, match="deeper than 32"):
        verify(graph(guards=(("==", deep, 1),)))


def test_reaches_follows_the_data_and_sizes_and_state():
    made = graph(
        act("aten.abs", Y),
        act("sym.size", X, 0, types=(INT,)),
        act("aten.mul.Tensor", Var(3), Var(4)),
        act("aten.zeros", [2]),
        inputs=(F32, F32),
        state=(("w", T("f32[3]")),),
        outputs=[Var(3), Var(5), Var(6), Var(2), Var(0)],
    )
    assert verify(made).reaches == tuple(map(frozenset, ({1}, {0, 1}, set(), {2}, {0})))


def test_a_graph_is_random_if_one_op_draws():
    assert verify(graph(act("aten.rand", [2]))).random
    assert not verify(graph(act("aten.abs", X))).random


def test_ten_thousand_actions_are_verified():
    chain = [act("aten.add.Tensor", Var(max(0, i + 1)), 1.5, alpha=2) for i in range(MAX_ACTIONS)]
    assert verify(graph(*chain, outputs=Var(MAX_ACTIONS + 1))).reaches


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6) | st.complex_numbers()
    | st.sampled_from([Var(0), Var(1), Var(9), Var(-1), Dtype("f32"), Dtype("x"), Format("x"), Subgraph(0)]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    op=st.sampled_from(optable.names()) | st.text(max_size=12),
    args=st.lists(LITERALS, max_size=5),
    kwargs=st.dictionaries(st.sampled_from(("dim", "dtype", "self", "x")), LITERALS, max_size=2),
    types=st.lists(st.sampled_from((F32, INT)), max_size=3),
)
def test_whatever_the_action_verify_allows_or_says_not_allowed(op, args, kwargs, types):
    try:
        verify(graph(Action(op, tuple(args), kwargs, tuple(types))))
    except NotAllowed:
        pass
