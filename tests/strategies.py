"""Hypothesis strategies for what travels: types, graphs, plans, messages, replies, raw tensors.

Graphs are well-formed (they parse and print), not sound: their ops need not exist.
"""

from __future__ import annotations

import math
import string
from dataclasses import replace

from hypothesis import strategies as st

from fedq.plan.codec import RawTensor, is_tensor_name
from fedq.plan.fold import METRICS, NONFINITE, Batches
from fedq.plan.graph import ITEMSIZE, NUMBERS, About, Action, Dtype, Format, Graph, Param, Subgraph, Type, Var
from fedq.plan.types import FORMATS
from fedq.queue.message import (
    Ack,
    Address,
    Cancel,
    Drop,
    Failure,
    Fold,
    Get,
    Inline,
    Message,
    Number,
    Put,
    Ref,
    Reply,
    Run,
    SendPlan,
)

dtypes = st.sampled_from(sorted(ITEMSIZE))
letters = st.sampled_from(["n", "m", "b", "h2", "t", "u0"])
ids = st.text("0123456789abcdef", min_size=32, max_size=32)
plan_ids = st.text("0123456789abcdef", min_size=64, max_size=64)
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
words = st.text(string.ascii_lowercase, min_size=1, max_size=8)
texts = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Cf", "Zl", "Zp")), min_size=1, max_size=20)
tensor_names = texts.filter(is_tensor_name)
ints = st.integers(-(1 << 63), (1 << 64) - 1)
numbers = st.booleans() | ints | st.floats(allow_nan=False)
"""NaN is left out: it is not equal to itself. Tests of their own have it."""


def _sizes(inner):
    bracketed = st.builds("({}{}{})".format, inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner)
    least = st.builds("{}({},{})".format, st.sampled_from(["min", "max"]), inner, inner)
    reals = st.builds("{}({}{})".format, st.sampled_from(["floor", "ceil", "round", "trunc"]), inner, st.sampled_from(
        ["*0.5", "/3", "*1.25+0.1", "/0.3"]
    ))  # fmt: skip
    return bracketed | least | reals | st.builds("{}{}{}".format, inner, st.sampled_from(["+", "*", "//"]), inner)


size_texts = st.recursive(letters | st.integers(0, 99).map(str), _sizes, max_leaves=4)
sizes = st.integers(0, 1 << 20) | letters | size_texts.map(lambda t: int(t) if t.isdecimal() else t)
fixed = st.one_of(
    st.builds(Type, st.just("int"), st.none(), ints),
    st.builds(Type, st.just("float"), st.none(), st.floats(allow_nan=False)),
    st.builds(Type, st.just("bool"), st.none(), st.booleans()),
    st.builds(Type, st.just("str"), st.none(), st.text(max_size=20)),
)
tensor_types = st.builds(Type, dtypes, st.lists(sizes, max_size=4).map(tuple))
types = st.one_of(tensor_types, st.builds(Type, st.sampled_from(NUMBERS)), fixed)


@st.composite
def raw_tensors(draw, *, max_side=4):
    dtype = draw(dtypes)
    shape = tuple(draw(st.lists(st.integers(0, max_side), max_size=3)))
    size = ITEMSIZE[dtype] * math.prod(shape)
    byte = st.integers(0, 1) if dtype == "bool" else st.integers(0, 255)
    data = (
        bytes(draw(st.lists(byte, min_size=size, max_size=size)))
        if size < 64
        else draw(byte.map(lambda b: bytes([b]) * size))
    )
    return RawTensor(dtype, shape, data)


def args(last: int, graphs: int):
    leaf = st.one_of(
        st.integers(0, max(last, 0)).map(Var) if last >= 0 else st.none(),
        st.integers(0, graphs - 1).map(Subgraph) if graphs else st.none(),
        st.none(), numbers, st.text(max_size=10), dtypes.map(Dtype), st.sampled_from(FORMATS).map(Format),
        st.complex_numbers(allow_nan=False),
    )  # fmt: skip
    return st.recursive(leaf, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


def trees(leaf):
    keys = st.text(max_size=5) | st.integers(-5, 5)
    return st.recursive(
        leaf | st.none(),
        lambda t: st.lists(t, max_size=3) | st.lists(t, max_size=3).map(tuple) | st.dictionaries(keys, t, max_size=3),
        max_leaves=5,
    )


_side = st.recursive(
    letters | st.integers(0, 99),
    lambda s: (
        st.tuples(st.sampled_from(["+", "-", "*", "//", "%", "min", "max"]), s, s)
        | st.tuples(
            st.sampled_from(["floor", "ceil", "round", "trunc"]),
            st.tuples(st.sampled_from(["*", "/", "+"]), s, st.sampled_from([0.5, 1.25, 3])),
        )
    ),
    max_leaves=4,
)
guards = st.tuples(st.sampled_from(["==", "!=", "<", "<="]), _side, _side)


@st.composite
def graphs(draw, *, depth=1):
    inputs = tuple(draw(st.lists(types, max_size=3)))
    state = draw(
        st.dictionaries(
            tensor_names, st.builds(Type, dtypes, st.lists(st.integers(0, 3), max_size=2).map(tuple)), max_size=2
        )
    )
    inner = tuple(draw(st.lists(graphs(depth=depth - 1), max_size=1))) if depth else ()
    last, actions = len(inputs) + len(state) - 1, []
    for _ in range(draw(st.integers(0, 4))):
        made = tuple(draw(st.lists(types, min_size=1, max_size=2)))
        op = draw(st.sampled_from(["aten.add.Tensor", "aten.abs", "sym.mul", "cond"]))
        arg = args(last, len(inner))
        actions.append(
            Action(op, tuple(draw(st.lists(arg, max_size=3))), draw(st.dictionaries(words, arg, max_size=2)), made)
        )
        last += len(made)
    outputs = draw(trees(st.integers(0, last).map(Var))) if last >= 0 else None
    graph = Graph(
        inputs, tuple(actions), outputs,
        sizes=draw(st.dictionaries(letters, st.integers(0, 2), max_size=2)),
        guards=tuple(draw(st.lists(guards, max_size=2))), state=tuple(state.items()), graphs=inner,
    )  # fmt: skip
    width = len(inputs) + len(graph.output_vars)
    row = st.lists(dtypes | st.sampled_from(NUMBERS), min_size=width, max_size=width).map(tuple)
    rows = tuple(draw(st.lists(row, max_size=2)))
    leaf = st.integers(0, 9).map(Var) | st.text(max_size=5) | numbers
    defaults = st.none() | numbers
    params = tuple(draw(st.lists(st.builds(Param, texts, trees(leaf), defaults), max_size=2)))
    others = draw(st.lists(graphs(depth=depth - 1), max_size=1)) if depth else []
    variants = tuple(replace(g, state=graph.state, params=(), variants=()) for g in others)
    return replace(graph, dtypes=rows, params=params, variants=variants)


abouts = st.builds(
    About,
    texts,
    st.lists(texts | st.just(""), max_size=3).map(tuple),
    st.lists(words, max_size=3).map(tuple),
    st.dictionaries(texts, texts, max_size=2),
)
id_lists = st.lists(ids, max_size=3, unique=True).map(tuple)
run_args = st.one_of(ids.map(Ref), tensor_names.map(Inline), numbers, st.text(max_size=10), st.none())
runs = st.builds(
    Run, plan_ids, st.lists(run_args, max_size=3).map(tuple), st.dictionaries(words, run_args, max_size=2), id_lists
)
some_args = st.lists(run_args, max_size=2).map(tuple)
batches = st.builds(Batches, st.integers(1, 1 << 40), st.integers(1, 1 << 20), st.booleans(), st.booleans())
said = st.sampled_from(METRICS), st.sampled_from(NONFINITE)
folds = st.builds(Fold, plan_ids, some_args, some_args, batches, id_lists, some_args, *said)
verbs = st.one_of(
    st.builds(Put, ids, tensor_names, st.none() | texts, st.just("") | texts),
    st.builds(Get, ids, plan_ids.map(lambda id_: (id_,))),
    st.builds(SendPlan, plan_ids, graphs(), st.lists(tensor_names, max_size=2).map(tuple), abouts),
    runs,
    folds,
    st.builds(Get, ids, st.lists(ids, min_size=1, max_size=3, unique=True).map(tuple)),
    st.builds(Drop, id_lists, id_lists),
    st.builds(Cancel, id_lists),
    st.builds(Ack, id_lists),
)
addresses = st.builds(Address, names, plan_ids, ids)
times = st.floats(0, 1e11)


def _once(actions):
    """Whether no id is promised twice."""
    values = [i for a in actions if isinstance(a, Run | Fold) for i in a.results]
    values += [a.id for a in actions if isinstance(a, Put)]
    replies = [a.reply for a in actions if isinstance(a, Get)]
    return len(set(values)) == len(values) and len(set(replies)) == len(replies)


messages = st.builds(
    Message, ids, names, addresses, times, times, st.integers(0, (1 << 63) - 1),
    st.lists(verbs, max_size=4).map(tuple).filter(_once), st.none() | texts,
)  # fmt: skip
facts = st.none() | numbers | texts
failures = st.builds(Failure, words, texts, st.dictionaries(words, facts, max_size=3))
values = tensor_names | numbers.map(Number) | failures
replies = st.builds(Reply, ids, names, addresses, ids, st.dictionaries(ids, values, max_size=3))
