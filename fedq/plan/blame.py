"""Why a function cannot be recorded: the user's line, the reason, and what to write instead."""

from __future__ import annotations

import linecache
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from fedq.errors import CannotRecord, FedqError

_NOT_USERS = tuple(
    str(Path(p))
    for p in (Path(torch.__file__).parent, Path(__file__).parent, Path(traceback.__file__).parent / "contextlib.py")
)


ENTRY = "call_users_function"
"""The function of `plan.capture` below which a user's lines are looked for."""


class Unrecordable(Exception):
    """Raised where the recorder notices something; `cannot` adds the user's line."""

    def __init__(self, message: str | tuple[str, str], hint: str = "") -> None:
        self.message, self.hint = (message, hint) if isinstance(message, str) else message
        super().__init__(self.message)


@cache
def _is_users(filename: str) -> bool:
    return not filename.startswith((*_NOT_USERS, "<frozen", "<eval_with_key", "<string"))


def user_line() -> str:
    """``tour.py:9``: the innermost line outside torch and fedq that led here, or ``""``."""
    return user_line_of(sys._getframe(1))


def user_line_of(frame: FrameType | None) -> str:
    while frame is not None and not _is_users(frame.f_code.co_filename):
        frame = None if frame.f_code.co_name == ENTRY else frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame is not None else ""


@contextmanager
def cannot() -> Iterator[None]:
    """Turns what recording raises into CannotRecord with file, line, source text and cure."""
    try:
        yield
    except FedqError:
        raise
    except Exception as error:
        message, hint = _cure(error)
        file, number = _where(error)
        line = f"{Path(file).name}:{number}" if file else ""
        if file:
            message = f"{message}\n  {linecache.getline(file, number).strip()}        {line}"
        raise CannotRecord(message, hint=hint or None, line=line) from error


def _where(error: BaseException) -> tuple[str, int]:
    frames = [(f.f_code.co_filename, n) for f, n in traceback.walk_tb(error.__traceback__)]
    return next(((f, n) for f, n in reversed(frames) if _is_users(f)), ("", 0))


def _cure(error: Exception) -> tuple[str, str]:
    text = str(error)
    if isinstance(error, Unrecordable):
        return error.message, error.hint
    if isinstance(error, (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException)):
        return (
            "what happens next depends on the values of a tensor, which a plan does not see",
            "choose with torch.where(condition, a, b), or keep the value a tensor",
        )
    if "allow_non_fake_inputs" in text or "Please convert all Tensors to FakeTensors" in text:
        return (
            "it uses a tensor from outside the function",
            "pass it as an argument, or give func2plan state=(tensor,) and read it with state.read()",
        )
    if "not linked with support" in text or "CUDA" in text:
        return f"it asks for another device: {text.splitlines()[0]}", DEVICES
    return f"it failed while being recorded: {type(error).__name__}: {text.splitlines()[0] if text else ''}", ""


DEVICES = "leave devices out: a plan runs where the data is"
_VALUES = "keep it a tensor: a plan is recorded without data"


WATCHED: dict[Callable[..., Any], tuple[str, str]] = {
    torch.Tensor.numpy: ("it turns a tensor into a NumPy array", _VALUES),
    torch.Tensor.__array__: ("it turns a tensor into a NumPy array", _VALUES),
    torch.Tensor.tolist: ("it turns a tensor into a list", _VALUES),
    torch.Tensor.data_ptr: ("it asks for a tensor's address", _VALUES),
    torch.Tensor.__repr__: ("it prints a tensor, which has no values yet", "print the result instead"),
    torch.Tensor.__format__: ("it prints a tensor, which has no values yet", "print the result instead"),
}
"""Calls that take a tensor's values out of the recording -> the reason and the cure."""


def line_of_call(again: Callable[[], Any], source: str) -> str:
    """Run it once more to find the user's line that calls torch.manual_seed, random or numpy.random."""
    found: list[str] = []

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        called = (
            frame.f_code.co_filename
            if event == "call"
            else str(getattr(arg, "__self__", ""))
            if event == "c_call"
            else ""
        )
        if not found and _is_source(called, source):
            found.append(user_line_of(frame if event == "c_call" else frame.f_back))

    sys.setprofile(watch)
    try:
        again()
    except Exception:
        pass
    finally:
        sys.setprofile(None)
    return next((line for line in found if line), "")


def _is_source(called: str, source: str) -> bool:
    match source:
        case "torch":
            return called.endswith("torch/random.py") or "torch._C.Generator" in called
        case "random":
            return called == random.__file__ or "random.Random" in called
    return "numpy" in called and "random" in called
