"""Norm layers that update running statistics, written so that the updates are seen.

torch's ops of these layers write to the statistics without saying so; while recording, the new
statistics are computed by an op that returns them, and copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.modules import batchnorm

_norm = torch.ops.aten._native_batch_norm_legit_functional


def _batch_norm(
    input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if not training or running_mean is None or running_var is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    F._verify_batch_size(input.size())  # type: ignore[attr-defined]
    out, _, _, new_mean, new_var = _norm(input, weight, bias, running_mean, running_var, True, momentum, eps)
    running_mean.copy_(new_mean)
    running_var.copy_(new_var)
    return out


def _instance_norm(
    input: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    """As torch has it: BatchNorm with one channel per example and channel, then means over examples."""
    if not use_input_stats or running_mean is None or running_var is None:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    F._verify_spatial_size(input.size())  # type: ignore[attr-defined]
    n, c, *rest = input.shape
    given = (t if t is None else t.to(input.dtype).repeat(n) for t in (weight, bias, running_mean, running_var))
    out, _, _, means, variances = _norm(input.reshape(1, n * c, *rest), *given, True, momentum, eps)
    running_mean.copy_(means.view(n, c).mean(0))
    running_var.copy_(variances.view(n, c).mean(0))
    return out.view(input.shape)


SEEN: Mapping[Any, Callable[..., Any]] = {F.batch_norm: _batch_norm, F.instance_norm: _instance_norm}
"""Called instead of these functions of torch while a function is recorded; not where it takes a gradient."""


@contextmanager
def float_of_tensors() -> Iterator[None]:
    """Let BatchNorm(momentum=None) go on with the count that it takes by ``float``, which Python wants to know."""
    names = vars(batchnorm)
    names["float"] = lambda value: value.item() if isinstance(value, torch.Tensor) else float(value)
    try:
        yield
    finally:
        names.pop("float", None)
