import ast
import json
import math
import operator
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedq import spelling
from fedq.errors import BadFile, BadVersion
from fedq.plan.codec import MAX_HEADER_BYTES, parse_json
from fedq.plan.graph import (
    About,
    Action,
    Dtype,
    Graph,
    Type,
    Var,
    about_from_json,
    about_to_json,
    arg_from_json,
    arg_to_json,
    canonical,
    flatten,
    graph_from_json,
    graph_to_json,
    parse_size,
    show,
    show_guard,
    tree_from_json,
    tree_to_json,
    unflatten,
)
from fedq.plan.graphjson import MAX_ACTIONS
from fedq.plan.types import is_size
from tests.strategies import abouts, args, graphs, guards, size_texts, trees, types

DOUBLE = Graph(
    inputs=(Type("f32", ("n",)),),
    actions=(
        Action("aten.add.Tensor", (Var(0), Var(0)), {}, (Type("f32", ("n",)),)),
        Action("aten.abs", (Var(1),), {}, (Type("f32", ("n",)),)),
    ),
    outputs=Var(2),
    sizes={"n": 2},
)


def through_bytes(value):
    return parse_json(canonical(value))


@given(types)
def test_a_type_reads_back_as_it_was_written(type_):
    assert Type.parse(str(type_)) == type_


@given(st.text(max_size=30))
def test_any_text_is_a_type_in_one_spelling_or_refused(text):
    try:
        assert str(Type.parse(text)) == text
    except BadFile:
        pass


@pytest.mark.parametrize(
    "text",
    [
        None, 3, [], {}, "", "f32", "f33[2]", "f32[", "f32[]x", "f32[2,]", "f32[,2]", "f32[ 2]", "f32[02]", "f32[-1]",
        "f32[٣]", "f32[1e3]", "f32[n m]", "f32[N]", "f32[n+]", "f32[(n]", "f32[n)]", "f32[n**2]", "f32[Mod(n,2)]",
        "f32[9999999999999999999]", "f32[2]\n", "int[2]", "int=", "int=01", "int=3.0", "int=true", "int= 3", "int=1e2",
        "int=18446744073709551616", "float=1", "float=NaN", "float=1e999", "float=1.50", "bool=1", "bool=True",
        'str="\u00e9"', "str='a'", "f32=2", "F32[2]", "f32[" + "1," * 600 + "1]", "int=" + "9" * 900,
        "f32[" + "(" * 9 + "n" + ")" * 9 + "]", "f32[" + "n+" * 150 + "n]",
        "f32[n/2]", "f32[0.5*n]", "f32[floor(n)", "f32[floor(n,m)]", "f32[min(n)]", "f32[(n/2)]", "f32[min(n,m/2)]",
        "f32[n(2)]", "f32[floor(1.)]", "f32[floor(01.5)]", "f32[floor(#)]", "f32[sqrt(n)]", "f32[2floor(n)]",
        'str="' + "a" * 1000 + '"',
    ],
)  # fmt: skip
def test_what_is_no_type_is_refused(text):
    with pytest.raises(BadFile):
        Type.parse(text)


@pytest.mark.parametrize("text", ["float=nan", "float=inf", "float=-inf", "float=-0.0", "float=1e-05", 'str="a\\nb"'])
def test_unusual_fixed_numbers_have_a_spelling(text):
    assert str(Type.parse(text)) == text


LETTERS = st.fixed_dictionaries({k: st.integers(1, 50) for k in ("n", "m", "b", "h2", "t", "u0")})
CALLS = {"min": min, "max": max, "floor": math.floor, "ceil": math.ceil, "round": round, "trunc": math.trunc}
OPS = CALLS | {
    "/": operator.truediv,
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
}  # fmt: skip


def value_of(size, letters):
    if isinstance(size, tuple):
        return OPS[size[0]](*(value_of(part, letters) for part in size[1:]))
    return letters.get(size, size)


@given(size_texts, LETTERS)
def test_a_size_means_what_python_means_by_it(text, letters):
    try:
        expected = eval(text, CALLS, dict(letters))
    except ZeroDivisionError:
        return
    assert value_of(parse_size(text), letters) == expected


@pytest.mark.parametrize(
    "text", ["min(n,m)", "trunc(n*1.5)", "2*ceil((n-1)/3)+max(0,min(m,n-2))", "floor((n+0.5)*2)//m"]
)
def test_sizes_may_be_the_least_the_most_or_rounded(text):
    assert is_size(text) and str(Type.parse(f"f32[{text},n]")) == f"f32[{text},n]"
    assert value_of(parse_size(text), {"n": 7, "m": 3}) == eval(text, CALLS, {"n": 7, "m": 3})


@given(st.text("n1m0()+-*/%@", max_size=12))
def test_a_text_is_a_size_exactly_if_python_can_read_it_as_one(text):
    ours = is_size(text)
    try:
        theirs = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        assert not ours
        return
    allowed = (ast.BinOp, ast.Name, ast.Constant, ast.Load, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod)
    assert ours == (all(isinstance(n, allowed) for n in ast.walk(theirs)) and not re.search(r"\b00", text))
    if ours:
        assert _tree(theirs) == parse_size(text)


def _tree(node):
    names = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%"}
    match node:
        case ast.BinOp(left, op, right):
            return (names[type(op)], _tree(left), _tree(right))
        case ast.Name(name):
            return name
        case ast.Constant(value):
            return value


@given(guards, LETTERS)
def test_a_printed_guard_means_what_the_guard_means(guard, letters):
    try:
        expected = value_of(guard, letters)
    except ZeroDivisionError:
        return
    assert eval(show_guard(guard), CALLS, dict(letters)) == expected


@given(args(3, 2))
def test_an_argument_reads_back_as_it_was_written(arg):
    assert arg_from_json(through_bytes(arg_to_json(arg))) == arg


def test_a_nan_argument_reads_back_as_nan():
    assert math.isnan(arg_from_json(through_bytes(arg_to_json(float("nan")))))
    assert math.isnan(arg_from_json(through_bytes(arg_to_json(complex(1, float("nan"))))).imag)


@pytest.mark.parametrize(
    "value",
    [
        "x", "%", "%-1", "%01", "%1.0", "%٣", "%99999999", " %1", "%1\n", {}, {"s": 1}, {"s": "a", "d": "f32"},
        {"d": "f33"}, {"d": ["f32"]}, {"m": "sparse"}, {"g": True}, {"g": -1}, {"g": 1 << 20}, {"f": "NaN"}, {"f": []},
        {"f": 1.0},
        {"c": [1, 2]}, {"c": [1.0]}, {"c": [[1.0], 2.0]}, {"x": 1}, 1 << 64, -(1 << 63) - 1, [["%1", {"s": None}]],
    ],
)  # fmt: skip
def test_what_is_no_argument_is_refused(value):
    with pytest.raises(BadFile):
        arg_from_json(value)


def test_what_can_not_be_an_argument_is_not_written():
    for arg in (object(), {1}, b"x", {"a": 1}):
        with pytest.raises(TypeError):
            arg_to_json(arg)


@given(trees(st.integers(0, 9).map(Var)))
def test_a_tree_of_outputs_reads_back_and_unflattens(tree):
    assert tree_from_json(through_bytes(tree_to_json(tree, str)), arg_from_json) == tree
    assert unflatten(tree, iter(flatten(tree))) == tree


@given(graphs())
def test_a_graph_reads_back_with_the_same_id(graph):
    again = graph_from_json(through_bytes(graph_to_json(graph)))
    assert again == graph
    assert again.id == graph.id
    assert len(graph.types) == len(graph.inputs) + len(graph.state) + sum(len(a.types) for a in graph.actions)


@given(graphs(), abouts)
def test_every_graph_has_a_printed_form_of_one_line_per_action(graph, about):
    text = show(graph, about)
    assert text.startswith(f"plan {spelling.name(about.name)}(")
    assert text.count("\n") >= len(graph.actions) + len(graph.state)
    assert all(char.isprintable() or char == "\n" for char in text)


def test_the_id_is_that_of_the_canonical_form_whatever_the_order_of_keys():
    body = graph_to_json(DOUBLE)
    turned = dict(reversed(body.items())) | {"guards": [], "state": []}
    assert graph_from_json(turned).id == DOUBLE.id


def test_graphs_that_differ_in_anything_have_different_ids():
    others = [
        Graph(DOUBLE.inputs, DOUBLE.actions, Var(1), DOUBLE.sizes),
        Graph(DOUBLE.inputs, DOUBLE.actions, [Var(2)], DOUBLE.sizes),
        Graph(DOUBLE.inputs, DOUBLE.actions, (Var(2),), DOUBLE.sizes),
        Graph(DOUBLE.inputs, DOUBLE.actions, Var(2), {"n": 1}),
        Graph(DOUBLE.inputs, DOUBLE.actions[:1], Var(1), DOUBLE.sizes),
        Graph(DOUBLE.inputs, DOUBLE.actions, Var(2), DOUBLE.sizes, guards=(("<", "n", 9),)),
        Graph(DOUBLE.inputs, DOUBLE.actions, Var(2), DOUBLE.sizes, dtypes=(("f64", "f64"),)),
    ]
    assert len({g.id for g in [DOUBLE, *others]}) == len(others) + 1


def changed(**keys):
    return graph_to_json(DOUBLE) | keys


BAD_GRAPHS = {
    "not a dict": [],
    "none": None,
    "unknown key": changed(evil=1),
    "no actions": {"inputs": [], "outputs": None},
    "inputs not a list": changed(inputs={}),
    "input not a text": changed(inputs=[["f32[2]"]]),
    "sizes a list": changed(sizes=["n"]),
    "size of no letter": changed(sizes={"N": 2}),
    "size true": changed(sizes={"n": True}),
    "size negative": changed(sizes={"n": -1}),
    "size huge": changed(sizes={"n": 1 << 60}),
    "size a list": changed(sizes={"n": [2]}),
    "guard a letter": changed(guards=["n"]),
    "guard a number": changed(guards=[1]),
    "guard computes": changed(guards=[["+", "n", 1]]),
    "guard compares twice": changed(guards=[["<", ["<", "n", 1], 1]]),
    "guard of an unhashable op": changed(guards=[[["<"], "n", 1]]),
    "guard of a dict": changed(guards=[[{}, "n", 1]]),
    "guard of true": changed(guards=[["<", "n", True]]),
    "guard of a float": changed(guards=[["<", "n", 1.0]]),
    "guard too short": changed(guards=[["<", "n"]]),
    "guards not a list": changed(guards={"<": 1}),
    "dtypes row too short": changed(dtypes=[["f64"]]),
    "dtypes row too long": changed(dtypes=[["f64"] * 3]),
    "dtypes row unknown": changed(dtypes=[["f64", "f65"]]),
    "dtypes row of lists": changed(dtypes=[["f64", ["f64"]]]),
    "state odd row": changed(state=[["w"]]),
    "state not rows": changed(state=["ww"]),
    "state null": changed(state=[None]),
    "state name a number": changed(state=[[1, "f32[]"]]),
    "state name twice": changed(state=[["w", "f32[]"], ["w", "f32[]"]]),
    "state name turns the text": changed(state=[["a\u202eb", "f32[]"]]),
    "graphs null": changed(graphs=None),
    "graphs of null": changed(graphs=[None]),
    "action null": changed(actions=[None]),
    "action short": changed(actions=[["aten.abs", [], {}]]),
    "action op a list": changed(actions=[[["aten.abs"], [], {}, []]]),
    "action op with a space": changed(actions=[["aten.abs x", [], {}, []]]),
    "action op dunder path": changed(actions=[["os.system.x.y", [], {}, []]]),
    "action args a dict": changed(actions=[["aten.abs", {}, {}, []]]),
    "action kwargs a list": changed(actions=[["aten.abs", [], [], []]]),
    "action keyword not a word": changed(actions=[["aten.abs", [], {"a b": 1}, []]]),
    "action types of numbers": changed(actions=[["aten.abs", [], {}, [1]]]),
    "too many actions": changed(actions=[["a", [], {}, []]] * (MAX_ACTIONS + 1)),
    "outputs a number": changed(outputs=3),
    "outputs text": changed(outputs="x"),
    "outputs tuple and more": changed(outputs={"tuple": [], "dict": []}),
    "outputs dict of odd rows": changed(outputs={"dict": [["a"]]}),
    "outputs dict of null": changed(outputs={"dict": [None]}),
    "outputs dict key twice": changed(outputs={"dict": [["a", "%1"], ["a", "%2"]]}),
    "outputs dict key true": changed(outputs={"dict": [[True, "%1"]]}),
    "outputs dict key a list": changed(outputs={"dict": [[[], "%1"]]}),
}


@pytest.mark.parametrize("reason", BAD_GRAPHS)
def test_a_malformed_graph_is_refused_as_a_bad_file(reason):
    with pytest.raises(BadFile) as caught:
        graph_from_json(BAD_GRAPHS[reason])
    assert not isinstance(caught.value, BadVersion)


def actions_of(args, types=()):
    return {"inputs": [], "actions": [["a", args, {}, list(types)]], "outputs": None}


COSTLY = {
    "texts": actions_of([{"s": "a"}] * 98_000),
    "vars": actions_of(["%1234567"] * 190_000),
    "complex": actions_of([{"c": [1.5, {"f": "nan"}]}] * 39_000),
    "types": actions_of([], [f"f32[{i}]" for i in range(95_000)]),
    "sizes": actions_of([], [f"f32[{i}+{'+'.join('n' * 95)}]" for i in range(19_500)]),
    "brackets": actions_of([], [f"f32[{i}+{'(' * 8}n+n{')' * 8}]" for i in range(18_000)]),
    "keywords": {"inputs": [], "actions": [["a", [], {f"a{i}": 1 for i in range(180_000)}, []]], "outputs": None},
}


@pytest.mark.parametrize("what", COSTLY)
def test_the_costliest_graphs_below_the_caps_stay_within_memory_bounds(what):
    text = canonical(COSTLY[what])
    assert len(text) <= MAX_HEADER_BYTES
    tracemalloc.start()
    graph_from_json(parse_json(text))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["%0", "f32[n]", "<", "+"]),
    lambda v: (
        st.lists(v, max_size=4)
        | st.dictionaries(st.sampled_from(["tuple", "dict", "s", "f", "c", "g", "name", "n"]), v)
    ),
    max_leaves=12,
)


@given(anything, st.sampled_from(["inputs", "sizes", "guards", "dtypes", "state", "graphs", "actions", "outputs"]))
def test_any_json_in_place_of_a_key_gives_a_graph_or_a_bad_file(value, key):
    try:
        graph = graph_from_json(changed(**{key: value}))
    except BadFile:
        return
    assert graph_from_json(through_bytes(graph_to_json(graph))).id == graph.id


@given(anything)
def test_any_json_is_an_about_or_a_bad_file(value):
    for body in (value, {"name": value}, {"lines": value}, {"refused": value}):
        try:
            about = about_from_json(body)
        except BadFile:
            continue
        assert about_from_json(through_bytes(about_to_json(about))) == about


@given(abouts)
def test_about_reads_back_as_it_was_written(about):
    assert about_from_json(through_bytes(about_to_json(about))) == about


def test_a_line_that_would_steer_the_terminal_is_refused():
    for text in ("\x1b[2J", "a\nb", "\u202eabc", "\ud800", "a" * 301):
        with pytest.raises(BadFile):
            about_from_json({"lines": [text]})


def test_the_printed_form_aligns_source_lines():
    about = About("double_abs", ("tour.py:9", "tour.py:10"))
    assert show(DOUBLE, about).splitlines() == [
        "plan double_abs(%0: f32[n]) -> %2",
        "  where n >= 2",
        "  %1: f32[n] = aten.add.Tensor(%0, %0)   tour.py:9",
        "  %2: f32[n] = aten.abs(%1)              tour.py:10",
    ]


def test_the_printed_form_says_which_dtypes_go_together():
    two = (Type("f32", ("n",)), Type("f32", ("n",)))
    same = Graph(two, (), (Var(0),), dtypes=(("f64", "f64", "f64"),))
    assert "where inputs share one dtype" in show(same)
    mixed = Graph((two[0], Type("i64", ())), (), (Var(0),), dtypes=(("f64", "i64", "f64"),))
    assert "where dtypes (f32,i64) or (f64,i64)" in show(mixed)
    assert "-> (%0,)" in show(mixed)


def test_arguments_print_without_ambiguity():
    action = Action("aten.f", (Var(0), "a'b", None, [1, 2.5], True), {"dtype": Dtype("f64")}, (Type("f32", ()),))
    assert r"aten.f(%0, 'a\u{27}b', None, [1, 2.5], True, dtype=f64)" in show(
        Graph((Type("f32", ()),), (action,), Var(1))
    )


def test_canonical_json_is_ascii_without_spaces():
    assert canonical({"b": [1, 2.5, "é"], "a": None}) == b'{"b":[1,2.5,"\\u00e9"],"a":null}'
    assert json.loads(canonical({"x": 1e-05})) == {"x": 1e-05}
