import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedq as fq
from fedq.errors import SpecMismatch
from fedq.plan import spec
from fedq.plan.graph import About, Action, Graph, Type, Var, parse_size
from fedq.plan.tensors import type_of

T = Type.parse


def graph(*inputs, out="f32[n]", **kwargs):
    made = Action("aten.abs", (Var(0),), {}, (T(out),))
    return Graph(tuple(map(T, inputs)), (made,), Var(len(inputs)), **kwargs)


ROWS = graph("f32[n,3]", "f32[n,m]", out="f32[n,3+m]", sizes={"n": 2, "m": 1}, guards=(("<=", "n", ("*", "m", 4)),),
             dtypes=(("f64", "f64", "f64"), ("f32", "i64", "f32")))  # fmt: skip


def types(*texts):
    return [T(t) for t in texts]


def test_letters_take_the_sizes_they_meet():
    assert spec.match(ROWS, types("f32[5,3]", "f32[5,7]")) == {"n": 5, "m": 7}


def test_result_types_follow_letters_and_the_row_of_dtypes():
    assert spec.output_types(ROWS, types("f32[5,3]", "f32[5,7]")) == (T("f32[5,10]"),)
    assert spec.output_types(ROWS, types("f64[5,3]", "f64[5,7]")) == (T("f64[5,10]"),)


@pytest.mark.parametrize(
    ("given_types", "message"),
    [
        (["f32[5,3]"], "requires 2 arguments, received 1"),
        (["f32[5,4]", "f32[5,2]"], r"input 0: f32\[n,3\] expected, f32\[5,4\] given"),
        (["f32[5,3]", "f32[4,2]"], r"input 1: f32\[n,m\] expected, f32\[4,2\] given with n = 5"),
        (["f32[5]", "f32[4,2]"], r"input 0: f32\[n,3\] expected, f32\[5\] given"),
        (["int", "f32[4,2]"], r"input 0: f32\[n,3\] expected, int given"),
        (["f32[1,3]", "f32[1,2]"], r"n >= 2 expected, n = 1 given \(tour.py:9\)"),
        (["f32[9,3]", "f32[9,1]"], r"the plan holds for n <= m \* 4 only; given n = 9, m = 1"),
        (["i64[5,3]", "f32[5,2]"], r"input 0: f32\|f64 expected, i64\[5,3\] given \(tour.py:7\)"),
        (["f64[5,3]", "f32[5,2]"], "inputs of f64, f32 do not go together"),
    ],
)
def test_a_mismatch_says_what_was_expected_and_what_was_given(given_types, message):
    with pytest.raises(SpecMismatch, match=message):
        spec.match(ROWS, types(*given_types), about=About(refused={"n=1": "tour.py:9", "i64": "tour.py:7"}))


def test_a_wrong_shape_hints_at_the_shape_to_rebuild_with():
    with pytest.raises(SpecMismatch, match=r"^input 0: f32\[2\] expected, f32\[100,2\] given$") as caught:
        spec.match(graph("f32[2]"), types("f32[100,2]"))
    assert caught.value.hint == "rebuild with args_shape=[(100,2)]"


def scaled(x, k):
    return x * k


def chosen(x, *, at):
    return x[at]


def total(x, y):
    return x.sum() + y.reshape(-1)[: x.shape[0]]


def wide(x):
    return x.reshape(6)


I64 = torch.int64
PASTED = {
    "a number beside it": (scaled, {"x": torch.ones(3), "k": 2}, {"x": torch.ones(3, 1), "k": 7}),
    "another dtype, by name": (
        chosen, {"x": torch.ones(3), "at": torch.ones(1, dtype=I64)},
        {"x": torch.ones(3), "at": torch.ones(2, 2, dtype=I64)},
    ),
    "tensors of f32 alone": (
        total, {"x": torch.ones(3), "y": torch.ones(3, 2)}, {"x": torch.ones(3), "y": torch.ones(3, 2, 5)}
    ),
    "a size that the function fixes": (wide, {"x": torch.ones(6)}, {"x": torch.ones(3, 2)}),
}  # fmt: skip


@pytest.mark.parametrize("case", PASTED)
def test_a_hint_can_be_pasted_and_the_plan_then_takes_what_it_refused(case):
    function, built_on, given_now = PASTED[case]
    plan = fq.func2plan()(function)
    plan.build(**built_on)
    now = [type_of(value) for value in given_now.values()]
    with pytest.raises(SpecMismatch) as caught:
        spec.match(plan.graph, now, about=plan.about)
    hint = caught.value.hint.removeprefix("rebuild with ")
    if shapes := re.fullmatch(r"args_shape=(\[.*\])", hint):
        plan.build_shapes(eval(shapes[1]))
    else:
        eval(hint, {"plan": plan, "torch": torch})
    spec.match(plan.graph, now, about=plan.about)


def test_sizes_under_one_letter_that_differ_are_no_matter_of_another_plan():
    both = graph("f32[n]", "f32[n]", sizes={"n": 0})
    with pytest.raises(SpecMismatch) as caught:
        spec.match(both, types("f32[4]", "f32[3]"))
    assert caught.value.hint == "n is one size in all arguments: give it with n = 4"


def test_a_number_for_a_tensor_is_told_to_be_one():
    with pytest.raises(SpecMismatch) as caught:
        spec.match(graph("f32[n]", sizes={"n": 0}), [Type("float", None, 4711.0)])
    assert caught.value.hint == "give a tensor there, such as torch.tensor(...), of f32[n]"


def test_numbers_match_by_kind_and_by_value_where_it_is_fixed():
    scaled = graph("f32[n]", "int", "float=0.5", sizes={"n": 0})
    assert spec.match(scaled, [T("f32[4]"), Type("int", None, 7), Type("float", None, 0.5)]) == {"n": 4}
    with pytest.raises(SpecMismatch, match=r"input 2: float=0.5 expected, float=2.0 given"):
        spec.match(scaled, [T("f32[4]"), Type("int", None, 7), Type("float", None, 2.0)])
    with pytest.raises(SpecMismatch, match=r"input 1: int expected, float=7.0 given"):
        spec.match(scaled, [T("f32[4]"), Type("float", None, 7.0), Type("float", None, 0.5)])


@pytest.mark.parametrize("size", ["n//m", "n%m", "9-n", "n*n*n*n*n*n*n*n*n*n*n*n*n*n*n*n*n*n*n*n*n"])
def test_a_result_size_that_can_not_be_is_a_mismatch(size):
    one = graph("f32[n,m]", out=f"f32[{size}]", sizes={"n": 0, "m": 0})
    with pytest.raises(SpecMismatch):
        spec.output_types(one, types("f32[10,0]"))


@given(st.integers(0, 99), st.integers(1, 99), st.sampled_from(("2*n+1", "(n+m)//m", "n%m*3-n%m", "m*(n+1)-m")))
def test_sizes_are_computed_as_python_does(n, m, text):
    assert spec.evaluate(parse_size(text), {"n": n, "m": m}) == eval(text, {"n": n, "m": m})
