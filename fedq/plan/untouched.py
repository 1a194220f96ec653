"""What a Python function can keep from one call to the next, put back after each call that records it.

Recording runs the user's function many times on values that are none. What it leaves in attributes
of modules, in lists, dicts and sets, in closures, defaults, globals and `functools.lru_cache` must
not stay there: neither for the user, nor for the next recording.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CellType, CodeType, FrameType, FunctionType, MethodType, SimpleNamespace
from typing import Any, Protocol

import torch
from torch import nn

from fedq.errors import CannotRecord
from fedq.plan.blame import Line, is_users, shown

Function = Callable[..., Any]
_MOST = 50_000
"""Values that are looked at, at most."""
_LARGE = 10_000
"""Lists and dicts with more items are put back, but their items are not looked into."""
_LIBRARIES = {"torch", "fedq", "numpy", *sys.stdlib_module_names}
_CACHE = type(functools.lru_cache(lambda: None))
_MISSING = object()


class Place(Protocol):
    """Something that holds values: it can be noted how it is, and made so again."""

    @property
    def what(self) -> str: ...

    def note(self) -> None: ...
    def changed(self) -> bool: ...
    def restore(self) -> None: ...

    def swap(self, old: Any, new: Any) -> None:
        """Hold this where that is held."""


@dataclass(slots=True)
class _Items:
    """A list or deque."""

    name: str
    of: Any
    was: list[Any] = field(default_factory=list)

    @property
    def what(self) -> str:
        return self.name

    def note(self) -> None:
        self.was = list(self.of)

    def changed(self) -> bool:
        return not _identical(self.of, self.was)

    def restore(self) -> None:
        self.of.clear()
        self.of.extend(self.was)

    def swap(self, old: Any, new: Any) -> None:
        for i, value in enumerate(self.of):
            if value is old:
                self.of[i] = new


@dataclass(slots=True)
class _Members:
    """A set."""

    name: str
    of: set[Any]
    was: set[Any] = field(default_factory=set)

    @property
    def what(self) -> str:
        return self.name

    def note(self) -> None:
        self.was = set(self.of)

    def changed(self) -> bool:
        return self.of != self.was

    def restore(self) -> None:
        self.of.clear()
        self.of.update(self.was)

    def swap(self, old: Any, new: Any) -> None:
        pass  # it is asked whether something is in it, by equality


@dataclass(slots=True)
class _Pairs:
    """A dict; the attributes of an instance are one."""

    name: str
    of: dict[Any, Any]
    was: dict[Any, Any] = field(default_factory=dict)

    @property
    def what(self) -> str:
        """With the attribute that changed, of an instance."""
        keys = (k for k in (*self.of, *self.was) if self.of.get(k, _MISSING) is not self.was.get(k, _MISSING))
        return f"{self.name}{next(keys, '')}" if self.name.endswith(".") else self.name

    def note(self) -> None:
        self.was = dict(self.of)

    def changed(self) -> bool:
        return not (_identical(self.of, self.was) and _identical(self.of.values(), self.was.values()))

    def restore(self) -> None:
        self.of.clear()
        self.of.update(self.was)

    def swap(self, old: Any, new: Any) -> None:
        self.of.update({k: new for k, v in self.of.items() if v is old})


@dataclass(slots=True)
class _Names:
    """Some names somewhere: slots, attributes of a class, globals, the one variable of a cell."""

    name: str
    names: tuple[str, ...]
    get: Callable[[str], Any]
    put: Callable[[str, Any], None]
    drop: Callable[[str], None]
    was: dict[str, Any] = field(default_factory=dict)

    @property
    def what(self) -> str:
        changed = next((n for n, was in self.was.items() if self.get(n) is not was), "")
        return f"{self.name}{changed}"

    def note(self) -> None:
        self.was = {n: self.get(n) for n in self.names}

    def changed(self) -> bool:
        return any(self.get(n) is not was for n, was in self.was.items())

    def restore(self) -> None:
        for name, was in self.was.items():
            if self.get(name) is was:
                continue
            if was is _MISSING:
                self.drop(name)
            else:
                self.put(name, was)

    def swap(self, old: Any, new: Any) -> None:
        """Also within a tuple: defaults are in one."""
        for name in self.names:
            value = self.get(name)
            if value is old:
                self.put(name, new)
            elif type(value) is tuple and any(v is old for v in value):
                self.put(name, tuple(new if v is old else v for v in value))


@dataclass(slots=True)
class Globals(_Names):
    """Those of a module that a function of it names.

    Attributes:
        of: all of them.
    """

    of: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Cache:
    """What ``functools.lru_cache`` made: it is emptied, since it can only be computed again."""

    name: str
    of: Any

    @property
    def what(self) -> str:
        return self.name

    def note(self) -> None:
        if self.of.cache_info().currsize:
            self.of.cache_clear()

    def changed(self) -> bool:
        return bool(self.of.cache_info().currsize)

    def restore(self) -> None:
        self.of.cache_clear()

    def swap(self, old: Any, new: Any) -> None:
        pass  # it is empty


def _identical(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


class Kept:
    """All that a function can keep between calls.

    Args:
        root: the function, or a structure of arguments.
    """

    def __init__(self, root: Any) -> None:
        self.places = list(_places(root))
        self.touched: dict[str, Place] = {}

    def note(self) -> None:
        for place in self.places:
            place.note()

    def restore(self) -> None:
        for place in self.places:
            if place.changed():
                self.touched.setdefault(place.what, place)
                place.restore()

    def changed(self) -> Place | None:
        return next((place for place in self.places if place.changed()), None)

    def around(self, function: Function) -> Function:
        """The function, each call of which leaves everything as it was."""

        def called(*args: Any, **kwargs: Any) -> Any:
            self.note()
            try:
                return copied(function(*args, **kwargs))
            finally:
                self.restore()

        return called


def copied(tree: Any) -> Any:
    """The same values in lists, tuples and dicts of their own: those that were returned may be put back."""
    match tree:
        case list():
            return [copied(v) for v in tree]
        case tuple():
            return tuple(copied(v) for v in tree)
        case dict():
            return {k: copied(v) for k, v in tree.items()}
    return tree


def call_and_compare(function: Function, held: list[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a function that is being recorded.

    Raises:
        CannotRecord: it changes a list or dict that it was given.
    """
    given = Kept(args)
    given.places += Kept(list(kwargs.values())).places
    given.note()
    out = copied(function(held, *args, **kwargs))
    place = given.changed()
    if place is None:
        return out
    given.restore()
    line = line_of_change(place, function, held, *args, **kwargs)
    raise CannotRecord(
        f"it changes a list or dict that it was given, which whoever calls it would see{shown(line)}",
        hint="make a copy first: batch = dict(batch), or rows = list(rows)",
        line=line,
    )


def line_of_change(place: Place, function: Function, *args: Any, **kwargs: Any) -> Line:
    """Call it to find the user's line that changes this; what it gives or raises is lost."""
    found: list[Line] = []
    last: dict[FrameType, int] = {}

    def watch(frame: FrameType, event: str, arg: Any) -> Any:
        if not is_users(frame.f_code.co_filename):
            return None
        if not found and frame in last and place.changed():
            found.append(Line.of(frame.f_code.co_filename, last[frame]))
        last[frame] = frame.f_lineno
        return watch

    was = sys.gettrace()
    sys.settrace(watch)
    try:
        function(*args, **kwargs)
    except Exception:
        pass
    finally:
        sys.settrace(was)
    return found[0] if found else Line()


# -- finding them ---------------------------------------------------------------------------------


def _places(root: Any) -> Iterator[Place]:
    seen: set[int] = set()
    alive, todo = [], [("it", root)]
    while todo and len(seen) < _MOST:
        name, value = todo.pop()
        if id(value) in seen or isinstance(value, (str, int, float, bytes, torch.Tensor, type(None))):
            continue
        seen.add(id(value))
        alive.append(value)  # its id stays its own
        places, more = _of(name, value)
        yield from places
        todo += more


_Found = tuple[list[Any], list[tuple[str, Any]]]
"""The places of a value, and what else to look at, by name."""


def _of(name: str, value: Any) -> _Found:
    match value:
        case dict():
            return [_Pairs(name, value)], _within(name, value.values())
        case list() | deque():
            return [_Items(name, value)], _within(name, value)
        case set():
            return [_Members(name, value)], []
        case tuple() | frozenset():
            return [], _within(name, value)
        case FunctionType():
            return _of_function(name, value)
        case MethodType():
            return [], [(name, value.__self__), (name, value.__func__)]
        case functools.partial():
            return [], [(name, value.func), (name, value.args), (name, value.keywords)]
        case staticmethod() | classmethod():
            return [], [(name, value.__func__)]
        case property():
            return [], [(name, f) for f in (value.fget, value.fset) if f is not None]
        case functools.cached_property():
            return [], [(name, value.func)]
        case type():
            return _of_class(value) if _is_users(value) else ([], [])
    if isinstance(value, _CACHE):
        return [_Cache(name, value)], [(name, value.__wrapped__)]
    if _is_users(type(value)) or isinstance(value, (nn.Module, torch.optim.Optimizer, SimpleNamespace)):
        return _of_instance(value)
    return [], []


def _within(name: str, values: Any) -> list[tuple[str, Any]]:
    return [(name, v) for v in values] if len(values) <= _LARGE else []


def _of_function(name: str, function: FunctionType) -> _Found:
    cells = list(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    places: list[Any] = [_cell(n, cell) for n, cell in cells]
    more = [(n, _contents(cell)) for n, cell in cells]
    more += [(name, function.__defaults__), (name, function.__kwdefaults__), (name, function.__dict__)]
    if function.__defaults__:
        places.append(_slot(name, function, "__defaults__"))
    if not is_library(function.__module__):
        names = tuple(dict.fromkeys(_names(function.__code__)))
        known = function.__globals__
        get = functools.partial(_item, known)
        places.append(Globals("", names, get, known.__setitem__, known.__delitem__, of=known))
        more += [(n, known[n]) for n in names if n in known]
    return places, more


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _item(of: dict[str, Any], name: str) -> Any:
    return of.get(name, _MISSING)


def _slot(name: str, of: Any, attribute: str) -> _Names:
    get, put = functools.partial(_attribute, of), functools.partial(setattr, of)
    return _Names(f"{name}.", (attribute,), get, put, functools.partial(delattr, of))


def _cell(name: str, cell: CellType) -> _Names:
    def put(_: str, value: Any) -> None:
        cell.cell_contents = value

    def drop(_: str) -> None:
        del cell.cell_contents

    return _Names("", (name,), lambda _: _contents(cell), put, drop)


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _of_class(kind: type) -> _Found:
    own: Mapping[str, Any] = vars(kind)
    names = tuple(n for n, v in own.items() if not (n.startswith("__") or isinstance(v, FunctionType)))

    def get(name: str) -> Any:
        return vars(kind).get(name, _MISSING)

    places = [
        _Names(f"{kind.__name__}.", names, get, functools.partial(setattr, kind), functools.partial(delattr, kind))
    ]
    return places, [(f"{kind.__name__}.{n}", v) for n, v in own.items() if not n.startswith("__") or n == "__call__"]


def _of_instance(value: Any) -> _Found:
    kind = type(value)
    slots = tuple(n for k in kind.__mro__ for n in _slots(k))
    get = functools.partial(_attribute, value)
    places: list[Any] = []
    if slots:
        put, drop = functools.partial(setattr, value), functools.partial(delattr, value)
        places.append(_Names(f"{kind.__name__}.", slots, get, put, drop))
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict):
        places.append(_Pairs(f"{kind.__name__}.", own))
    more = [(f"{kind.__name__}.{n}", v) for n, v in (own or {}).items()]
    more += [(f"{kind.__name__}.{n}", get(n)) for n in slots]
    return places, [*more, *((k.__name__, k) for k in kind.__mro__)]


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ()) if _is_users(kind) else ()
    return tuple(n for n in ((slots,) if isinstance(slots, str) else slots) if not n.startswith("__"))


def _attribute(value: Any, name: str) -> Any:
    return getattr(value, name, _MISSING)


def _is_users(kind: type) -> bool:
    return not is_library(kind.__module__)


def is_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _LIBRARIES
