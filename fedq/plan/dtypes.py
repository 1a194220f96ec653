"""Dtypes that an op is not made for: found when a plan is built, by running the op itself once.

What torch says of an op without data (its meta kernel) lets dtypes pass that the op refuses: a product of
f32 and f64, a target of i32. So each op is run on zeros of the recorded shapes, once for each row of dtypes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_iter, tree_map_only

from fedq.plan.tensors import NAMES

SAID = re.compile(
    r"not implemented for|same (data ?|d)type|expected (scalar |target d)type|found dtype|type .+ should be the same",
    re.IGNORECASE,
)
"""What torch says of dtypes that an op does not take."""
HINT = "convert one of them: a.to(b.dtype), target.long(), or a model by .float() and its input, too"
_MOST = 1 << 22
"""Elements of an op's arguments; where it has more, it is not tried."""


class Unfit(Exception):
    """An op is not made for the dtypes that it is given."""

    def __init__(self, op: str, dtypes: tuple[torch.dtype, ...]) -> None:
        names = list(dict.fromkeys(NAMES[d] for d in dtypes))
        together = f"{', '.join(names[:-1])} and {names[-1]} together" if len(names) > 1 else names[0]
        super().__init__(f"{op} does not take {together}")


class Tried:
    """Kernels for a dry run that also run for real, where they are given other dtypes than f32 alone."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, tuple[torch.dtype, ...]]] = set()

    def kernel(self, name: str, dry: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
        """``dry``, and ``real`` on zeros, once for each row of dtypes."""

        def run(*args: Any, **kwargs: Any) -> Any:
            made = dry(*args, **kwargs)
            self._try(name, real, args, kwargs)
            return made

        return run

    def _try(self, name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> None:
        given = [v for v in tree_iter((args, kwargs)) if isinstance(v, (torch.Tensor, torch.SymInt))]
        tensors = [t for t in given if isinstance(t, torch.Tensor)]
        dtypes = tuple(t.dtype for t in tensors)
        if {*dtypes} <= {torch.float32} or (name, dtypes) in self._seen or len(tensors) < len(given):
            return
        if not all(isinstance(d, int) for t in tensors for d in t.shape) or sum(t.numel() for t in tensors) > _MOST:
            return
        self._seen.add((name, dtypes))
        with unset_fake_temporarily(), torch.random.fork_rng(devices=[]):
            args, kwargs = tree_map_only(torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), (args, kwargs))
            try:
                real(*args, **kwargs)
            except Exception as error:  # of values, too: zeros may be none that it takes
                said = (str(error).splitlines() or [""])[0]
                if SAID.search(said):
                    raise Unfit(name, dtypes) from None
