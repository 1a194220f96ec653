"""Sizes as expressions: torch's symbols to letters, to actions, to text and to guards."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import sympy
from torch.utils._sympy.functions import (
    CeilToInt,
    CleanDiv,
    FloatTrueDiv,
    FloorDiv,
    FloorToInt,
    IntTrueDiv,
    Max,
    Min,
    Mod,
    PythonMod,
    RoundToInt,
    ToFloat,
    TruncToInt,
)

from fedq.plan.blame import Unrecordable

LETTERS = [*"nmkjhpqrvw", *(f"n{i}" for i in range(1, 1000))]
_BINARY = {
    FloorDiv: "//", CleanDiv: "//", Mod: "%", PythonMod: "%", sympy.Mod: "%", IntTrueDiv: "/", FloatTrueDiv: "/",
}  # fmt: skip
_UNARY = {ToFloat: "float", FloorToInt: "floor", CeilToInt: "ceil", RoundToInt: "round", TruncToInt: "trunc"}
_RELATIONS = {sympy.Eq: "==", sympy.Ne: "!=", sympy.Lt: "<", sympy.Le: "<="}
_SWAPPED = {sympy.Gt: "<", sympy.Ge: "<="}
OPS = {
    "+": "add", "-": "sub", "*": "mul", "//": "floordiv", "%": "mod", "max": "max", "min": "min", "float": "float",
    "/": "truediv", "floor": "floor", "ceil": "ceil", "round": "round", "trunc": "int",
}  # fmt: skip
COMPARISONS = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le"}
COMPUTES = (
    "it computes with sizes in a way a plan cannot hold",
    "use + - * // % on sizes, and math.floor, math.ceil or round to make an integer of a float",
)
FLOAT_ORDER = (
    "it computes a size from floats whose order of arithmetic decides the result",
    "compute it with integers: n * 3 // 2 for n * 1.5",
)
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
    """An expression as a number, a letter, or ``(op, *operands)`` with op of `OPS`.

    Of floats only what no other order of arithmetic can change: two terms, two factors.

    Raises:
        Unrecordable: it is made of something else.
    """
    match expr:
        case int() | sympy.Integer():
            return int(expr)
        case sympy.Float():
            return float(expr)
        case sympy.Add() | sympy.Mul() if len(expr.args) > 2 and expr.atoms(sympy.Float, ToFloat):
            raise Unrecordable(*FLOAT_ORDER)
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
    if type(expr) in _UNARY:
        return (_UNARY[type(expr)], tree(expr.args[0]))
    raise Unrecordable(*COMPUTES)


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
    """A tree as it stands in a type: ``2*n+1``, ``min(n,m)``, ``floor(n*1.5)``."""
    match size:
        case int() | float():
            return _literal(size) if size >= 0 else f"(0-{_literal(-size)})"
        case str():
            return size
        case ("float", inner):
            return text(inner)
        case (("min" | "max" | "floor" | "ceil" | "round" | "trunc") as op, *operands):
            return f"{op}({','.join(map(text, operands))})"
        case (("+" | "-") as op, left, right):
            return f"{text(left)}{op}{_inner(right)}"
        case (op, left, right):
            left = left[1] if isinstance(left, tuple) and left[0] == "float" else left
            wrapped = f"({text(left)})" if isinstance(left, tuple) and left[0] in "+-" else text(left)
            return f"{wrapped}{op}{_inner(right)}"
    raise Unrecordable(*COMPUTES)


def _literal(value: int | float) -> str:
    made = repr(value)
    if not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", made):
        raise Unrecordable(f"it computes a size with {made}, which a plan cannot write down", FLOAT_ORDER[1])
    return made


def _inner(size: Any) -> str:
    """As a right operand."""
    if isinstance(size, tuple) and size[0] == "float":
        return _inner(size[1])
    return f"({text(size)})" if isinstance(size, tuple) and not size[0].isalpha() else text(size)


def is_real(size: Any) -> bool:
    """Whether a tree gives a float."""
    if not isinstance(size, tuple):
        return isinstance(size, float)
    return size[0] in ("float", "/") or (size[0] in "+-*%//" and any(map(is_real, size[1:])))


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
    raise Unrecordable("it depends on sizes in a way a plan cannot hold", COMPUTES[1])


def _plain(size: Any, *, real: bool = False) -> Any:
    """A size as a guard holds it: reals stand inside of what rounds them."""
    if not isinstance(size, tuple):
        return size
    op, *operands = size
    if op == "float" and real:
        return _plain(operands[0], real=True)
    if not real and is_real(size):
        raise Unrecordable("it depends on sizes in a way a plan cannot hold", COMPUTES[1])
    inner = len(operands) == 1 or (real and op not in ("min", "max"))
    return (op, *(_plain(operand, real=inner) for operand in operands))


def put(expr: Any, known: Mapping[Any, Any]) -> Any:
    """The expression with symbols replaced; a Python int where none is left, nan where it has no value."""
    try:
        made = expr.xreplace(known) if isinstance(expr, sympy.Basic) else expr
    except (ZeroDivisionError, AssertionError):  # torch's Mod asserts that nothing is negative
        return sympy.nan
    return int(made) if isinstance(made, sympy.Integer) else made
