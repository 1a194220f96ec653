"""Sizes as expressions: torch's symbols to letters, to actions, to text and to guards."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import sympy
from torch.utils._sympy.functions import CleanDiv, FloorDiv, Max, Min, Mod, PythonMod, ToFloat

from fedq.plan.blame import Unrecordable

LETTERS = [*"nmkjhpqrvw", *(f"n{i}" for i in range(1, 1000))]
_BINARY = {FloorDiv: "//", CleanDiv: "//", Mod: "%", PythonMod: "%", sympy.Mod: "%"}
_RELATIONS = {sympy.Eq: "==", sympy.Ne: "!=", sympy.Lt: "<", sympy.Le: "<="}
_SWAPPED = {sympy.Gt: "<", sympy.Ge: "<="}
OPS = {"+": "add", "-": "sub", "*": "mul", "//": "floordiv", "%": "mod", "max": "max", "min": "min", "float": "float"}
COMPARISONS = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le"}
FLOAT_OPS: dict[str, tuple[str, Callable[..., Any]]] = {
    "add": ("add", operator.add),
    "sub": ("sub", operator.sub),
    "mul": ("mul", operator.mul),
    "truediv": ("truediv", operator.truediv),
    "pow": ("pow", operator.pow),
    "neg": ("neg", operator.neg),
    "sym_float": ("float", float),
}
"""Python's operation on floats -> the op's name, and what it computes."""


def tree(expr: Any) -> Any:
    """An integer expression as an int, a letter, or ``(op, left, right)`` with op of `OPS`.

    Raises:
        Unrecordable: it is made of something else.
    """
    match expr:
        case int() | sympy.Integer():
            return int(expr)
        case sympy.Symbol():
            return expr.name
        case sympy.Add():
            return _sum(expr)
        case sympy.Mul():
            return _product(expr)
        case sympy.Pow() if expr.exp.is_Integer and 0 < int(expr.exp) <= 8:
            return _fold("*", [tree(expr.base)] * int(expr.exp))
        case Max() | Min():
            return _fold("max" if isinstance(expr, Max) else "min", sorted(map(tree, expr.args), key=repr))
    if type(expr) in _BINARY:
        return (_BINARY[type(expr)], tree(expr.args[0]), tree(expr.args[1]))
    if isinstance(expr, ToFloat):
        return ("float", tree(expr.args[0]))
    raise Unrecordable("it computes with sizes in a way a plan cannot hold", "use + - * // % on sizes")


def _sum(expr: Any) -> Any:
    terms = sorted(expr.args, key=lambda t: (_negative(t), t.is_Number, repr(tree(t))))
    made = tree(terms[0])
    for term in terms[1:]:
        made = ("-", made, tree(-term)) if _negative(term) else ("+", made, tree(term))
    return made


def _negative(term: Any) -> bool:
    return bool(term.as_coeff_Mul()[0] < 0)


def _product(expr: Any) -> Any:
    return _fold("*", sorted(map(tree, expr.args), key=lambda t: (not isinstance(t, int), repr(t))))


def _fold(op: str, items: list[Any]) -> Any:
    made = items[0]
    for item in items[1:]:
        made = (op, made, item)
    return made


def text(size: Any) -> str:
    """A tree as it stands in a type: ``2*n+1``."""
    match size:
        case int():
            return str(size) if size >= 0 else f"(0-{-size})"
        case str():
            return size
        case (("+" | "-") as op, left, right):
            return f"{text(left)}{op}{_inner(right)}"
        case (("*" | "//" | "%") as op, left, right):
            wrapped = f"({text(left)})" if isinstance(left, tuple) and left[0] in "+-" else text(left)
            return f"{wrapped}{op}{_inner(right)}"
    raise Unrecordable("a size has no text", "use + - * // % on sizes")


def _inner(size: Any) -> str:
    return f"({text(size)})" if isinstance(size, tuple) else text(size)


def guard(expr: Any) -> Any:
    """A relation as ``("<=", left, right)``; None where it always holds.

    Raises:
        Unrecordable: it is no relation of integer expressions.
    """
    if expr in (True, sympy.true):
        return None
    for kinds, swap in ((_RELATIONS, False), (_SWAPPED, True)):
        if type(expr) in kinds:
            sides = tuple(_plain(tree(side)) for side in (reversed(expr.args) if swap else expr.args))
            return (kinds[type(expr)], *sides)
    raise Unrecordable("it depends on sizes in a way a plan cannot hold")


def _plain(size: Any) -> Any:
    if isinstance(size, tuple):
        if size[0] not in ("+", "-", "*", "//", "%"):
            raise Unrecordable("it depends on sizes in a way a plan cannot hold")
        for side in size[1:]:
            _plain(side)
    return size


def put(expr: Any, known: Mapping[Any, Any]) -> Any:
    """The expression with symbols replaced; a Python int where none is left, nan where it has no value."""
    try:
        made = expr.xreplace(known) if isinstance(expr, sympy.Basic) else expr
    except (ZeroDivisionError, AssertionError):  # torch's Mod asserts that nothing is negative
        return sympy.nan
    return int(made) if isinstance(made, sympy.Integer) else made
