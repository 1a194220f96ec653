"""What a fold begins with, at the terminal: the carry of a training plan is many tensors in one file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedq.errors import UsageError
from fedq.plan import spec
from fedq.plan.codec import RawTensor
from fedq.plan.graph import About

HOW = (
    "a training plan begins with a carry; in Python plan.save_carry('carry.safetensors') writes it, then: "
    "fedq fold PLAN --carry carry.safetensors --data DEVICE:x,DEVICE:y --batch-size 32"
)


@dataclass(frozen=True, slots=True)
class CarryFile:
    """A file with many tensors, named by their paths: ``params.0.weight``."""

    path: str
    tensors: Mapping[str, RawTensor]


def how(about: About, missing: str) -> str | None:
    """What to write where arguments of a training plan are missing, as a message names them."""
    if not is_of_training(about):
        return None
    given = re.search(r"given\['(.*?)'\]", missing)
    if "carry[" in missing or given is None:
        return HOW
    return f"what the plan is given comes with each fold: --arg given.{given[1]}=0.1"


def is_of_training(about: About) -> bool:
    return about.params[:1] != () and about.params[0].startswith("carry['params']")


def flat(about: About, given: Sequence[Any]) -> list[Any]:
    """Each part as it is, and a file's tensors in the plan's order.

    Raises:
        UsageError: a file lacks a tensor of the plan's first argument, has one more, or the plan takes no structure.
    """
    return [leaf for part in given for leaf in (_tensors(about, part) if isinstance(part, CarryFile) else [part])]


def _tensors(about: About, file: CarryFile) -> list[RawTensor]:
    names = _names(about)
    if not names:
        what = f"{file.path}: {len(file.tensors)} tensors, one is needed"
        raise UsageError(what, hint=f"write {file.path}:NAME; it holds: {', '.join(list(file.tensors)[:8])}")
    odd = next((name for name in (*names, *file.tensors) if (name in names) is not (name in file.tensors)), None)
    if odd is not None:
        what = "lacks" if odd in names else "has a tensor that the plan's carry has not:"
        raise UsageError(f"{file.path} {what} {odd!r}", hint=HOW if is_of_training(about) else ", ".join(names))
    return [file.tensors[name] for name in names]


def _names(about: About) -> list[str]:
    """The paths within the plan's first argument, if that is a structure."""
    first, bracket, _ = (about.params[:1] or ("",))[0].partition("[")
    if not bracket:
        return []
    inputs = [i for i, path in enumerate(about.params) if path.startswith(f"{first}[")]
    return [spec.argument(about, i).removeprefix(first).lstrip(".") for i in inputs]
