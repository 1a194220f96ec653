"""Ops that recording treats in a way of its own: what they give on fakes, or why they are refused.

Where torch's rule for fakes looks at values, takes an op apart or is missing, `RUN_AS` says what the
op gives; the op is recorded as one, and eager's own code runs when it is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from fedq.plan.blame import Unrecordable


def _rnn(given: Any, hx: Any, params: Any, *rest: Any, **named: Any) -> Any:
    """What a recurrent layer gives; torch's own rule would run over every time step."""
    states = list(hx) if isinstance(hx, (list, tuple)) else [hx]
    layers = rest[1] if len(rest) > 1 else named["num_layers"]
    out = given.new_empty((*given.shape[:-1], states[0].shape[-1] * (states[0].shape[0] // layers)))
    return (out, *(given.new_empty(s.shape) for s in states))


def _detached(func: Any) -> Any:
    """The op on arguments without gradients: its rule for fakes picks a kernel that refuses masks with one."""

    def run(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs))
        return func(*args, **kwargs)

    return run


def _like(*shapes: Callable[..., Any]) -> Callable[..., Any]:
    """What an op gives, of shapes told by its arguments; torch's own rule looks at values, or there is none."""

    def run(given: Any, *args: Any, **named: Any) -> Any:
        made = tuple(given.new_empty(shape(given, *args, **named)) for shape in shapes)
        return made if len(made) > 1 else made[0]

    return run


def _narrow(given: Any, dim: Any, start: Any, length: Any) -> Any:
    return given.new_empty((*given.narrow(dim, 0, length).shape,))


def _cov(given: Any, **named: Any) -> Any:
    """Of a matrix's rows; integers give floats."""
    weights = [named[k] for k in ("fweights", "aweights") if named.get(k) is not None]
    _alike(given.shape[-1] if given.dim() else 1, *(w.shape[0] for w in weights))
    dtype = given.dtype if given.is_floating_point() or given.is_complex() else torch.get_default_dtype()
    return given.new_empty((given.shape[0],) * 2 if given.dim() == 2 else (), dtype=dtype)


def _lstsq(a: Any, b: Any, rcond: Any = None, *, driver: Any = None) -> Any:
    """Least squares: solution, residuals, rank, singular values. The last are there for some drivers only."""
    driver = driver or "gelsy"
    if driver in ("gelsd", "gelss"):
        raise Unrecordable(
            f"whether linalg.lstsq gives residuals with driver {driver!r} depends on the values of a tensor",
            "use driver='gels', or 'gelsy', which gives none",
        )
    rows, columns = a.shape[-2:]
    vector = b.dim() == 1 or (a.dim() - 1 == b.dim() and tuple(a.shape[:-1]) == tuple(b.shape))
    shapes = a.shape[:-2], b.shape[:-1] if vector else b.shape[:-2]
    batch = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    wide = () if vector else (b.shape[-1],)
    _alike(rows, b.shape[-1 if vector else -2])
    there = rows > columns and driver == "gels"
    rank = (*a.shape[:-2],) if driver == "gelsy" else (0,)
    solution, residuals = a.new_empty((*batch, columns, *wide)), a.new_empty((*batch, *wide) if there else (0,))
    return solution, residuals, a.new_empty(rank, dtype=torch.int64), a.new_empty((0,))


def _ctc(probs: Any, targets: Any, ins: Any, outs: Any, blank: int = 0, reduction: int = 1, zero: bool = False) -> Any:
    batch = (probs.shape[1],) if probs.dim() == 3 else ()
    rows = [t for t, dims in ((ins, 1), (outs, 1), (targets, 2)) if isinstance(t, torch.Tensor) and t.dim() == dims]
    _alike(*batch, *(t.shape[0] for t in rows if batch))
    return probs.new_empty(() if reduction else batch)


def _alike(*sizes: Any) -> None:
    """Sizes are equal: a guard of the recording where they are free."""
    for size in sizes[1:]:
        torch._check(size == sizes[0], lambda: "sizes differ")  # type: ignore[no-untyped-call]


_ATEN = torch.ops.aten
_ATTENTION = (_ATEN.scaled_dot_product_attention.default, _ATEN._scaled_dot_product_flash_attention_for_cpu.default)
RUN_AS: dict[Any, Callable[..., Any]] = {
    **{getattr(_ATEN, name).input: _rnn for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    **{op: _detached(op) for op in _ATTENTION},
    _ATEN.narrow.Tensor: _narrow,
    _ATEN.cov.default: _cov,
    _ATEN.corrcoef.default: _cov,
    _ATEN.linalg_lstsq.default: _lstsq,
    _ATEN.ctc_loss.IntList: _ctc,
    _ATEN.ctc_loss.Tensor: _ctc,
    _ATEN.geqrf.default: _like(lambda a: a.shape, lambda a: (*a.shape[:-2], min(a.shape[-2:]))),
    _ATEN.histogram.bin_ct: _like(lambda a, bins=100, **_: (bins,), lambda a, bins=100, **_: (bins + 1,)),
    _ATEN.histogram.bins_tensor: _like(lambda a, bins, **_: (bins.shape[0] - 1,), lambda a, bins, **_: bins.shape),
}


def _fill_diagonal_(given: Any, value: Any, wrap: bool = False) -> Any:
    """Of a matrix; torch's own takes it by offset."""
    if given.dim() != 2 or wrap:
        return given.fill_diagonal_(value, wrap)
    given.diagonal().fill_(value)
    return given


def _polygamma_(given: Any, n: int) -> Any:
    return given.copy_(torch.polygamma(n, given))


REWRITTEN: dict[Any, Callable[..., Any]] = {
    torch.Tensor.fill_diagonal_: _fill_diagonal_,
    torch.Tensor.polygamma_: _polygamma_,
}
"""Functions whose writes torch can not turn into values, in words that it can."""

_COUNTS = "for integers below a fixed n, torch.nn.functional.one_hot(x, n).sum(0) counts them, or torch.histc"
_REFUSED: dict[str, tuple[str, str]] = {
    "bincount": ("the result of torch.bincount is as long as the largest value in the data", _COUNTS),
    "tensor_split.tensor_indices_or_sections": (
        "torch.tensor_split splits by the values of a tensor",
        "give it a number, or a tuple of places",
    ),
    "_to_sparse": ("sparse tensors have no place in a plan", "keep it dense"),
    "to_sparse": ("sparse tensors have no place in a plan", "keep it dense"),
    "sparse_sampled_addmm": ("sparse tensors have no place in a plan", "keep them dense"),
    "_sparse_mm_reduce_impl": ("sparse tensors have no place in a plan", "keep them dense"),
    "histogramdd": ("torch.histogramdd gives a list beside a tensor", "use torch.histogram or torch.histc"),
    "_histogramdd_bin_edges": ("torch.histogramdd gives a list beside a tensor", "use torch.histogram or torch.histc"),
    "as_strided": ("torch.as_strided reads memory by offset", "use slicing, unfold, diagonal or reshape"),
    "as_strided_copy": ("torch.as_strided reads memory by offset", "use slicing, unfold, diagonal or reshape"),
    "as_strided_scatter": (
        "torch.as_strided_scatter writes to memory by offset",
        "use slice_scatter, select_scatter or diagonal_scatter",
    ),
    "resize": ("a tensor is resized, to memory that nobody wrote to", "use reshape, or torch.nn.functional.pad"),
    "resize_": ("a tensor is resized, to memory that nobody wrote to", "use reshape, or torch.nn.functional.pad"),
    "resize_as": ("a tensor is resized, to memory that nobody wrote to", "use reshape, or torch.nn.functional.pad"),
    "resize_as_": ("a tensor is resized, to memory that nobody wrote to", "use reshape, or torch.nn.functional.pad"),
    "linalg_ldl_solve": ("torch.linalg.ldl_solve trusts its pivots", "use torch.linalg.solve"),
    "native_batch_norm": (
        "torch.native_batch_norm trusts the length of its statistics",
        "use torch.nn.functional.batch_norm",
    ),
    "_batch_norm_with_update": (
        "aten._batch_norm_with_update writes to its statistics",
        "use torch.nn.functional.batch_norm",
    ),
    "_chunk_cat": ("torch._chunk_cat crashes on some sizes", "use torch.chunk and torch.cat"),
}
"""Ops that are refused before they run on fakes, by name or base name: the reason and the cure."""


_FULL: dict[Any, tuple[int, ...]] = {
    **{getattr(_ATEN, name).input: (0,) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    **dict.fromkeys((_ATEN.multi_margin_loss.default, _ATEN.multilabel_margin_loss.default), (0, 1)),
    **dict.fromkeys((_ATEN.embedding_bag.default, _ATEN.embedding_bag.padding_idx), (0, 2)),
    **dict.fromkeys((_ATEN.fractional_max_pool2d.default, _ATEN.fractional_max_pool3d.default), (0,)),
    _ATEN._native_batch_norm_legit_functional.default: (0,),
}
"""Ops that a device does not run on no elements, which their rules for fakes let pass -> the arguments meant."""


def refuse_empty(func: Any, args: Sequence[Any]) -> None:
    """Leave sizes out of a plan at which eager gives something, and the op that it records fails."""
    given = [args[i] for i in _FULL.get(func, ()) if i < len(args)]
    if any(isinstance(d, int) and d == 0 for tensor in given for d in tensor.shape):
        raise Unrecordable(
            f"torch.{func.overloadpacket.__name__} is given a tensor without elements", "give it at least one row"
        )


def refuse_outright(func: Any) -> None:
    """Unrecordable for an op that no plan holds, before it runs."""
    name = func.name().removeprefix("aten::")
    found = _REFUSED.get(name) or _REFUSED.get(name.partition(".")[0])
    if found:
        raise Unrecordable(*found)
    if func.namespace not in ("aten", "prim", "prims", "profiler"):
        raise Unrecordable(
            f"op {func.name()} is none of torch's own", "write it with ops of torch: 'fedq ops' lists them"
        )
