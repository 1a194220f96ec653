"""Why a function cannot be recorded: the user's line, the reason, and what to write instead."""

from __future__ import annotations

import linecache
import random
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from fedq.errors import CannotRecord, FedqError
from fedq.plan import dtypes

_NOT_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_STDLIB = str(Path(traceback.__file__).parent)


_HERE = str(Path(__file__).parent)
ENTRY = "call_users_function"
"""The function of `plan.capture` below which a user's lines are looked for."""


class Unrecordable(Exception):
    """Raised where the recorder notices something; `cannot` adds the user's line."""

    def __init__(self, message: str | tuple[str, str], hint: str = "") -> None:
        self.message, self.hint = (message, hint) if isinstance(message, str) else message
        super().__init__(self.message)


@cache
def is_users(filename: str) -> bool:
    if filename.startswith(_STDLIB) and "site-packages" not in filename:
        return False
    return not filename.startswith((*_NOT_USERS, "<frozen", "<eval_with_key", "<string"))


class Line(str):
    """``tour.py:9``, or ``""``; knows where its file is."""

    path: str = ""

    @classmethod
    def of(cls, path: str, number: int) -> Line:
        line = cls(f"{Path(path).name}:{number}" if path else "")
        line.path = path
        return line

    @property
    def source(self) -> str:
        """What stands there, if the file can be read."""
        return linecache.getline(self.path, int(self.rpartition(":")[2])).strip() if self.path else ""


def shown(line: str) -> str:
    """The source line as it stands below a message, with its place; the place alone, where nothing can be read."""
    source = line.source if isinstance(line, Line) else ""
    return f"\n  {source}        {line}" if source else f": {line}" if line else ""


def user_line() -> Line:
    """``tour.py:9``: the innermost line outside torch and fedq that led here, or ``""``."""
    return user_line_of(sys._getframe(1))


def user_line_of(frame: FrameType | None) -> Line:
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = None if frame.f_code.co_name == ENTRY else frame.f_back
    return Line.of(frame.f_code.co_filename, frame.f_lineno) if frame is not None else Line()


def calling_line() -> Line:
    """The user's line that led here, outside all installed packages."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (not is_users(frame.f_code.co_filename) or _is_installed(frame.f_code.co_filename)):
        frame = frame.f_back
    return Line.of(frame.f_code.co_filename, frame.f_lineno) if frame is not None else Line()


def _is_installed(filename: str) -> bool:
    return "site-packages" in filename or filename.startswith(sys.prefix)


@contextmanager
def cannot() -> Iterator[None]:
    """Turns what recording raises into CannotRecord with file, line, source text and cure."""
    try:
        yield
    except FedqError:
        raise
    except Exception as error:
        line = Line.of(*_where(error))
        message, hint = _cure(error, line.source)
        raise CannotRecord(f"{message}{shown(line)}", hint=hint or None, line=line) from error


def _where(error: BaseException) -> tuple[str, int]:
    frames = [(f.f_code.co_filename, n) for f, n in traceback.walk_tb(error.__traceback__)]
    return next(((f, n) for f, n in reversed(frames) if is_users(f)), ("", 0))


def _cure(error: Exception, source: str) -> tuple[str, str]:
    text = str(error)
    if isinstance(error, Unrecordable):
        return error.message, error.hint
    if isinstance(error, UnsupportedOperatorException):
        return f"{error.func} has no place in a plan", "'fedq ops' lists what has"
    if isinstance(error, DynamicOutputShapeException) and str(error.func) in _NO_GRADIENT:
        name, cure = _NO_GRADIENT[str(error.func)]
        return f"a gradient goes through {name}, whose derivative has no place in a plan", cure
    if isinstance(error, DynamicOutputShapeException):
        return f"the size of what {error.func} gives depends on the values of a tensor", _SIZED
    if isinstance(error, (GuardOnDataDependentSymNode, DataDependentOutputException)):
        if any("distributions" in f.f_code.co_filename for f, _ in traceback.walk_tb(error.__traceback__)):
            return "torch.distributions looks at the values of its parameters", "give it validate_args=False"
        asker = _torchs_function(error)
        if asker:
            return reads_values(asker)
        return (
            "what happens next depends on the values of a tensor, which a plan does not see",
            _instead(source),
        )
    if "allow_non_fake_inputs" in text or "Please convert all Tensors to FakeTensors" in text:
        return (
            "it uses a tensor from outside the function",
            "pass it as an argument, or give func2plan state=(tensor,) and read it with state.read(); "
            "in a module: self.register_buffer(name, tensor)",
        )
    if "can only be of (<class" in text or "consists of tensor" in text:
        return (
            "a branch or loop is given something that is no tensor",
            "make it a tensor, as torch.tensor(0.5) for 0.5, or use it in the function without giving it",
        )
    if "'SymBool'" in text:
        return _ON_VALUES, _instead(source)
    if "Cannot swap" in text:
        return OTHER_MEMORY
    if "unhashable type: non-nested Sym" in text:
        return "it looks up a free size in a dict, set or cache", _LOOKED_UP
    known = next((why for word, why in _KNOWN.items() if word in text), None)
    if known:
        return known
    if _NO_INTEGERS.search(text):
        return "an op takes no integers or bools", "convert first: x.float()"
    if "not linked with support" in text or "CUDA" in text:
        return f"it asks for another device: {text.splitlines()[0]}", DEVICES
    return (
        f"{FAILED}: {type(error).__name__}: {text.splitlines()[0] if text else ''}",
        dtypes.HINT if dtypes.SAID.search(text) else _CALL_IT_FIRST,
    )


FAILED = "it failed while being recorded"
_CALL_IT_FIRST = "call the function on the example first; if that works, write this line with other functions of torch"


_KNOWN = {
    "The following operation failed in the TorchScript interpreter": (
        "a script of torch.jit looks at values, or fails",
        "leave out torch.jit.script, to see the line; torch.cond and while_loop choose by values",
    ),
    "The stateless API can't be used with Jitted modules": (
        "a module of torch.jit keeps its weights to itself",
        "build the module that was given to torch.jit.script or torch.jit.trace",
    ),
    "its data is not allocated yet": (
        "values of tensors are put into a tensor by Python",
        "torch.stack([a, b]) makes one tensor of several, x.clone() a copy",
    ),
}
"""Words of torch that tell a user nothing -> why, and the cure."""


_LOOKED_UP = "compare it instead (cached.shape[0] != x.shape[0]), or write the number in args_shape"
_SIZED = "use one whose result has a size that other sizes tell, such as torch.where(mask, x, 0) for x[mask]"
_NO_INTEGERS = re.compile(r"floating point or complex|not implemented for '(Long|Int|Short|Char|Byte|Bool)'")


def reads_values(name: str) -> tuple[str, str]:
    """Why a function of torch that looks at values itself is refused."""
    return (
        f"{name} reads values of its tensors and goes on from there, which a plan can not follow",
        _CURES.get(name.rpartition(".")[2], _COMPUTE_IT),
    )


_COMPUTE_IT = (
    "write what it computes with other functions of torch, or get the value and compute it here; "
    "'fedq ops' lists what a plan takes"
)
_COV = "for its derivative write y = x - x.mean(1, keepdim=True); c = y @ y.T / (x.shape[1] - 1)"
_CURES = {
    "cov": _COV,
    "corrcoef": f"{_COV}; s = c.diagonal().sqrt(); c / s[:, None] / s",
    "__getitem__": "pick by a tensor with one dimension: x[i.reshape(1)][0], or x.index_select(0, i.reshape(1))[0]",
    "one_hot": "give it num_classes",
    "gaussian_nll_loss": "write 0.5 * (var.log() + (target - mean) ** 2 / var).mean() for it",
}


_NO_GRADIENT = {
    "aten.linalg_lstsq.default": (
        "torch.linalg.lstsq",
        "write torch.linalg.pinv(a) @ b, or torch.linalg.solve(a.mT @ a, a.mT @ b)",
    ),
    "aten._ctc_loss.default": ("ctc_loss", "leave it out of what is derived: only its value can be computed there"),
    "aten._ctc_loss.Tensor": ("ctc_loss", "leave it out of what is derived: only its value can be computed there"),
}
"""Ops that a recording of a gradient comes to, of a size that values tell -> the function, and what to write for it."""


ASKS = frozenset(
    getattr(torch.Tensor, name)
    for name in ("item", "__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "is_nonzero")
) | {torch.equal, torch.allclose, torch.is_nonzero, torch.Tensor.equal, torch.Tensor.allclose}
"""Functions that give Python a value: it is the user who looks at it."""


def _torchs_function(error: BaseException) -> str:
    """The function of torch's own Python code that asked for a value, if the user's line called one."""
    codes = [f.f_code for f, _ in traceback.walk_tb(error.__traceback__)]
    last = max((i for i, code in enumerate(codes) if is_users(code.co_filename)), default=-1)
    names = [code.co_qualname for code in codes[last + 1 :] if code.co_filename.startswith(_LAYERS)]
    return next((n for n in reversed(names) if not n.startswith("Module._")), "")


_LAYERS = tuple(
    str(Path(torch.__file__).parent / name)
    for name in ("nn", "optim", "functional.py", "linalg", "special", "signal", "_lobpcg.py", "_lowrank.py")
)


_INSTEAD = (
    (r"(el)?if\b|.*\bif\b.*\belse\b|match\b", "write {cond}, or torch.where(condition, a, b)"),
    (r"while\b", "write while_loop(lambda x: condition, lambda x: (next x,), (x,)) of torch._higher_order_ops; "
        "for a fixed number of steps, torch.where(condition, a, b) in each"),
    (r"assert\b", "leave it out, or return the condition as a result; {cond} chooses, torch.where too"),
    (r"for\b", "go over a fixed number, or use while_loop or scan of torch._higher_order_ops"),
    (r".*\bequal\(", "write (a == b).all(), which is a tensor; {cond} chooses by it"),
    (r".*\ballclose\(", "write torch.isclose(a, b).all(), which is a tensor; {cond} chooses by it"),
    (r".*\b(int|float|bool|complex)\(|.*\.item\(",
        "keep it a tensor; to choose, {cond} or torch.where(condition, a, b)"),
)  # fmt: skip
_COND = "torch.cond(condition, lambda x: a, lambda x: b, (x,))"


def _instead(source: str) -> str:
    """What to write in place of Python that looks at values."""
    found = next((cure for pattern, cure in _INSTEAD if re.match(pattern, source)), "keep it a tensor; {cond} chooses")
    return found.format(cond=_COND)


def depends_on_values(line: str) -> CannotRecord:
    """Python looked at a value, not at a size."""
    source = line.source if isinstance(line, Line) else ""
    return CannotRecord(f"{_ON_VALUES}{shown(line)}", hint=_instead(source), line=line)


_ON_VALUES = "what happens next depends on the values of a tensor, which a plan does not see"
DEVICES = "leave devices out: a plan runs where the data is"
_VALUES = "keep it a tensor: a plan is recorded without data"
WRITES_TO_ARGUMENT = (
    "it writes to its argument, which whoever calls it would see, and a plan does not change",
    "make a copy first (x = x.clone()), or a new value (x = x + 1), and return it",
)
OTHER_MEMORY = (
    "it puts another memory behind a tensor, which a plan can not follow",
    "give the name another tensor (y = ..., and of a buffer self.mean = ...), or write y.copy_(...)",
)


WATCHED: dict[Callable[..., Any], tuple[str, str]] = {
    torch.Tensor.numpy: ("it turns a tensor into a NumPy array", _VALUES),
    torch.Tensor.__array__: ("it turns a tensor into a NumPy array", _VALUES),
    torch.Tensor.tolist: ("it turns a tensor into a list", _VALUES),
    torch.Tensor.data.__set__: OTHER_MEMORY,  # type: ignore[attr-defined]
    torch.Tensor.data_ptr: ("it asks for a tensor's address", _VALUES),
    torch.Tensor.__repr__: ("it prints a tensor, which has no values yet", "print the result instead"),
    torch.Tensor.__format__: ("it prints a tensor, which has no values yet", "print the result instead"),
}
"""Calls that a recording can not follow -> the reason and the cure."""


def names_it_in_an_error(func: Callable[..., Any]) -> bool:
    """Whether torch itself prints a tensor: it does so when it refuses one."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.endswith(("torch/_tensor.py", "torch/overrides.py")):
        frame = frame.f_back
    printed = func in (torch.Tensor.__repr__, torch.Tensor.__format__)
    return printed and frame is not None and not is_users(frame.f_code.co_filename)


def asked_by_user() -> bool:
    """Whether the user's own code called what a torch function mode sees, and not torch's."""
    frame = sys._getframe(2)
    return is_users(frame.f_code.co_filename)


def line_of_call(again: Callable[[], Any], source: str) -> str:
    """Run it once more to find the user's line that calls torch.manual_seed, random or numpy.random."""
    found: list[str] = []

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        called = frame.f_code.co_filename if event == "call" else _owner(arg) if event == "c_call" else ""
        ours = frame.f_code.co_filename.startswith(_HERE)  # the recorder asks how the generator stands
        if not (found or ours) and _is_source(called, source):
            found.append(user_line_of(frame if event == "c_call" else frame.f_back))

    sys.setprofile(watch)
    try:
        again()
    except Exception:
        pass
    finally:
        sys.setprofile(None)
    return next((line for line in found if line), "") or (_line_by_state(again) if source == "numpy" else "")


def _line_by_state(again: Callable[[], Any]) -> str:
    """The user's line that changes NumPy's generator: its functions are compiled, and no profiler sees them called."""
    numpy = sys.modules["numpy"]
    found: list[Line] = []
    last, before = Line(), numpy.random.get_state()[1:3]

    def watch(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal last, before
        if not is_users(frame.f_code.co_filename):
            return None
        now = numpy.random.get_state()[1:3]
        if now[1] != before[1] or (now[0] != before[0]).any():
            found.append(last)
        last, before = Line.of(frame.f_code.co_filename, frame.f_lineno), now
        return watch

    was = sys.gettrace()
    sys.settrace(watch)
    try:
        again()
    except Exception:
        pass
    finally:
        sys.settrace(was)
    return next((line for line in found if line), "")


def _owner(builtin: Any) -> str:
    """Whose method it is: its module's name, or its class's."""
    own = getattr(builtin, "__self__", None)
    return own.__name__ if isinstance(own, ModuleType) else f"{type(own).__module__}.{type(own).__qualname__}"


def _is_source(called: str, source: str) -> bool:
    match source:
        case "torch":
            return called.endswith("torch/random.py") or "torch._C.Generator" in called
        case "random":
            return called == random.__file__ or "random.Random" in called
    return "numpy" in called and "random" in called
