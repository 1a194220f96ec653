"""What some ops must be given beyond their schema, checked on the tensors before the call.

torch trusts the arguments of its inner kernels: statistics of the wrong length, indices beyond a
plane or a gradient of another shape are read (or written) out of bounds. Conditions are words
of the op table; the first names the check, the others its arguments. Each costs about a
microsecond, and `values` one pass over integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Given = Mapping[str, Any]
"""An op's arguments by name; those left out are missing."""


class Broken(ValueError):
    """Arguments that would make an op crash, or read beyond them."""


def need(condition: object, what: str) -> None:
    """Broken unless the condition holds."""
    if not condition:
        raise Broken(what)


def _same(given: Given, *names: str) -> None:
    """``same a b``: tensors of one shape; what is None is left out."""
    shapes = {given[n].shape for n in names if given.get(n) is not None}
    need(len(shapes) <= 1, f"{', '.join(names)} differ in shape")


def _kin(given: Given, *names: str) -> None:
    """``kin a b``: tensors of one dtype."""
    need(len({given[n].dtype for n in names if given.get(n) is not None}) <= 1, f"{', '.join(names)} differ in dtype")


def _floats(given: Given, *names: str) -> None:
    """``floats a b``: tensors of floating point."""
    need(all(given[n].is_floating_point() for n in names if given.get(n) is not None), f"{names} are not floats")


def _length(given: Given, name: str, other: str, dim: str) -> None:
    """``length weight input 1``: one-dimensional, as long as a dimension of another; or None."""
    shape = given[other].shape
    need(int(dim) < len(shape), f"{other} has too few dimensions")
    if given.get(name) is not None:
        need(tuple(given[name].shape) == (shape[int(dim)],), f"{name} is not as long as dimension {dim} of {other}")


def _values(given: Given, name: str, low: str, high: str, *but: str) -> None:
    """``values indices 0 num_weights``: integers within [low, high), or equal to one argument.

    ``high`` is an argument, ``plane`` (the last two sizes of self), or ``self.1`` (a size).
    """
    tensor = given[name]
    need(not tensor.is_floating_point() and not tensor.is_complex(), f"{name} is not of integers")
    if but and but[0] in given:
        tensor = tensor[tensor != given[but[0]]]
    if tensor.numel():
        least, most = (int(v) for v in tensor.aminmax())
        need(least >= int(low) and most < _bound(given, high), f"{name} is out of bounds")


def _bound(given: Given, word: str) -> int:
    if word == "plane":
        return math.prod(given["self"].shape[-2:])
    if word == "space":
        return math.prod(given["self"].shape[-3:])
    name, _, dim = word.partition(".")
    return int(given[name].shape[int(dim)] if dim else given[name])


def _leading(given: Given, a: str, b: str, free: str) -> None:
    """``leading grad_output self 2``: as many dimensions, equal but for the last two."""
    left, right, n = given[a].shape, given[b].shape, int(free)
    need(len(left) == len(right) > n and left[:-n] == right[:-n], f"{a} and {b} differ in shape")


def _planes(given: Given, name: str, dims: str) -> None:
    """``planes self 2``: the last two sizes are above 0; a batch may be empty."""
    need(all(given[name].shape[-int(dims) :]), f"the planes of {name} have no elements")


def _padded(given: Given, result: str, *rest: str) -> None:
    """``padded grad_output 2``: self with the sizes that ``padding`` gives its last dimensions."""
    n, self, padding = int(rest[0]), given["self"].shape, given["padding"]
    grad = given[result].shape
    need(len(padding) == 2 * n and min(padding) >= 0, "padding")
    need(n < len(self) <= n + 2 and len(grad) == len(self) and grad[:-n] == self[:-n], "shapes differ")
    for i in range(n):
        low, high = padding[2 * i], padding[2 * i + 1]
        need(grad[-1 - i] == self[-1 - i] + low + high, "the gradient is not as large as what was padded")
        need(max(low, high) < self[-1 - i], "padding is larger than its dimension")


def _unfolded(given: Given, grad: str) -> None:
    """``unfolded grad_in``: windows of ``size`` every ``step`` along ``dim`` of ``input_sizes``."""
    sizes, dim, size, step = (given[k] for k in ("input_sizes", "dim", "size", "step"))
    need(-len(sizes) <= dim < len(sizes) and step > 0 and 0 < size <= sizes[dim], "sizes")
    shape = [*sizes, size]
    shape[dim % len(sizes)] = (sizes[dim] - size) // step + 1
    need(list(given[grad].shape) == shape, f"{grad} is not of the unfolded shape")


def _outer(given: Given, *names: str) -> None:
    """``outer mean rstd``: as many elements as ``input`` has rows of ``normalized_shape``."""
    shape, inner = tuple(given["input"].shape), tuple(given["normalized_shape"])
    need(inner and shape[len(shape) - len(inner) :] == inner, "normalized_shape is not the end of the input's")
    rows = math.prod(shape[: len(shape) - len(inner)])
    need(all(given[n].numel() == rows for n in names), f"{names} are not one per row")
    for n in ("weight", "bias"):
        need(given.get(n) is None or tuple(given[n].shape) == inner, f"{n} is not of the shape normalized")


def _groups(given: Given, *names: str) -> None:
    """``groups mean rstd``: N x C x HxW as the input has them, statistics one per row and group."""
    n, c, hxw, group = (given[k] for k in ("N", "C", "HxW", "group"))
    need(min(n, c, hxw) >= 0 and group > 0 and c % group == 0, "sizes")
    need(given["input"].numel() == n * c * hxw and given["input"].dim() >= 2, "N, C and HxW are not the input's")
    need(tuple(given["input"].shape[:2]) == (n, c), "N, C and HxW are not the input's")
    need(all(tuple(given[k].shape) == (n, group) for k in names), f"{names} are not one per row and group")
    for k in ("weight", "bias", "gamma"):
        need(given.get(k) is None or tuple(given[k].shape) == (c,), f"{k} is not one per channel")


def _statistics(given: Given, train: str) -> None:
    """``statistics train``: those that this mode reads are there, one per channel."""
    pair = ("save_mean", "save_invstd") if given[train] else ("running_mean", "running_var")
    for name in pair:
        need(given.get(name) is not None, f"{name} is missing")
        _length(given, name, "input", "1")
    need(given["input"].numel() > 0 and len(given["output_mask"]) == 3, "an empty input, or a wrong mask")


def _unwritten(given: Given, flag: str) -> None:
    """``unwritten training``: no running statistics where this flag would have them updated."""
    need(not given[flag] or (given.get("running_mean") is None and given.get("running_var") is None), "would write")


def _fourier(given: Given, *_: str) -> None:
    """``fourier``: distinct dimensions within the tensor's, and a last size that fits."""
    shape, dims = given["self"].shape, given["dim"]
    need(dims and len(set(dims)) == len(dims) and all(0 <= d < len(shape) for d in dims), "dimensions")
    need(math.prod(shape) > 0, "an empty tensor")
    last = given.get("last_dim_size")
    need(last is None or (last > 0 and shape[dims[-1]] == last // 2 + 1), "last_dim_size")


def _distances(given: Given, result: str, *others: str) -> None:
    """``distances cdist grad``: of the rows of x1 and x2, and all of that shape."""
    a, b = given["x1"].shape, given["x2"].shape
    need(len(a) == len(b) >= 2 and a[:-2] == b[:-2] and a[-1] == b[-1], "x1 and x2")
    shape = (*a[:-1], b[-2])
    need(all(tuple(given[n].shape) == shape for n in (result, *others)), "distances are not one per pair of rows")


def _attention(given: Given, *others: str) -> None:
    """``attention out grad_out``: batches, heads, lengths and widths of query, key and value agree."""
    q, k, v = (tuple(given[n].shape) for n in ("query", "key", "value"))
    need(len(q) == len(k) == len(v) == 4 and math.prod((*q, *k, *v)) > 0, "query, key and value have four sizes")
    need(q[:2] == k[:2] == v[:2] and q[3] == k[3] == v[3] and k[2] == v[2], "query, key and value differ")
    need(all(tuple(given[n].shape) == q for n in others), f"{others} are not of the query's shape")
    if "logsumexp" in given:
        need(tuple(given["logsumexp"].shape) == q[:3] and given["logsumexp"].is_floating_point(), "logsumexp")
    mask = given.get("attn_mask")
    if mask is not None:
        wide = (*q[:3], k[2])
        fits = all(m in (1, w) for m, w in zip(reversed(mask.shape), reversed(wide), strict=False))
        need(mask.dim() in (2, 4) and fits, "attn_mask")


def _keys(given: Given, *_: str) -> None:
    """``keys``: as many values as keys."""
    k, v = given["key"].shape, given["value"].shape
    need(len(k) >= 2 and len(v) >= 2 and k[-2] == v[-2], "there are not as many values as keys")


def _recurrent(given: Given, gates: str) -> None:
    """``recurrent 4``: weights, biases and states of the sizes that input and layers ask for."""
    gate, layers, ways = int(gates), given["num_layers"], 2 if given["bidirectional"] else 1
    states: Sequence[Any] = given["hx"] if gate == 4 else [given["hx"]]
    need(given["input"].dim() in (2, 3) and 0 < layers <= 1024 and len(states) == (2 if gate == 4 else 1), "states")
    batched = given["input"].dim() == 3
    batch = (given["input"].shape[0 if given["batch_first"] else 1],) if batched else ()
    hidden = states[0].shape[-1] if states[0].dim() else 0
    per = 4 if given["has_biases"] else 2
    need(len(given["params"]) == layers * ways * per and given["input"].numel() > 0 and hidden > 0, "weights")
    need(all(tuple(s.shape) == (layers * ways, *batch, hidden) for s in states), "states")
    width = given["input"].shape[-1]
    for i in range(layers * ways):
        wide = width if i < ways else hidden * ways
        shapes = [(gate * hidden, wide), (gate * hidden, hidden), (gate * hidden,), (gate * hidden,)][:per]
        own = given["params"][i * per : (i + 1) * per]
        need([tuple(p.shape) for p in own] == shapes, f"weights of layer {i}")
    need(len({t.dtype for t in (given["input"], *states, *given["params"])}) == 1, "dtypes")
    need(given["input"].is_floating_point(), "dtypes")


def _i64(given: Given, *names: str) -> None:
    """``i64 indices``: tensors of this dtype: others would be read as if they were."""
    need(all(given[n].dtype == torch.int64 for n in names), f"{', '.join(names)} are not i64")


def _filled(given: Given, *names: str) -> None:
    """``filled self``: tensors with elements."""
    need(all(given[n].numel() for n in names), f"{', '.join(names)} have no elements")


def _degrees(given: Given, name: str, high: str) -> None:
    """``degrees n 4096``: numbers below a bound; negative ones are fine."""
    n = given[name]
    if not isinstance(n, torch.Tensor):
        need(n <= int(high), f"{name} is out of bounds")
    elif n.numel():
        need(n.max() <= int(high), f"{name} is out of bounds")


def _pivots(given: Given, matrix: str, name: str) -> None:
    """``pivots LU pivots``: of each matrix, for each of its rows or columns, a row counted from 1."""
    shape, pivots = given[matrix].shape, given[name]
    need(len(shape) >= 2 and pivots.dtype == torch.int32, f"{matrix} is no matrix, or {name} not i32")
    need(tuple(pivots.shape) == (*shape[:-2], min(shape[-2:])), f"{name} are not one per row of {matrix}")
    _within(pivots, name, 1, shape[-2])


def _within(tensor: torch.Tensor, name: str, low: float, high: float) -> None:
    """Values from low to high, both included, none of them NaN."""
    if tensor.numel():
        least, most = (v.item() for v in tensor.aminmax())
        need(low <= least and most <= high, f"{name} is out of bounds")


def _normed(given: Given, v: str, g: str, *others: str) -> None:
    """``normed v g``: floats, and of ``g`` (and others) one for each place along ``dim``, the first or last of v."""
    tensor, dim = given[v], given.get("dim", 0)
    last = tensor.dim() - 1
    need(tensor.is_floating_point() and tensor.numel() > 0 and dim in (0, last), f"{v}, or dim")
    shape = tuple(n if d == dim else 1 for d, n in enumerate(tensor.shape))
    need(all(tuple(given[n].shape) == shape for n in (g, *others)), f"{g} is not one per place along dim of {v}")
    need(given[g].dtype == tensor.dtype and all(given[n].is_floating_point() for n in others), f"{v} and {g}")


def _segments(given: Given, *_: str) -> None:
    """``segments``: lengths that add up to the data's, or offsets that rise within it; one of them."""
    data, axis, lengths, offsets = (given.get(k) for k in ("data", "axis", "lengths", "offsets"))
    assert data is not None and axis is not None
    need(data.is_floating_point() and 0 <= axis < data.dim() and data.numel() > 0, "data, or axis")
    need((lengths is None) != (offsets is None) and given.get("indices") is None, "lengths or offsets")
    parts = offsets if lengths is None else lengths
    assert parts is not None
    need(parts.dtype in (torch.int64, torch.int32) and parts.dim() == axis + 1 and parts.numel() > 0, "integers")
    need(parts.shape[:-1] == data.shape[:axis], "lengths or offsets are not one row per row of the data")
    whole = data.shape[axis]
    _within(parts, "lengths or offsets", 0, whole)
    if lengths is not None:
        need((lengths.sum(-1) == whole).all(), "lengths do not add up to the data's")
    else:
        rising = parts.shape[-1] < 2 or (parts.diff() >= 0).all()
        need(rising and (parts[..., 0] == 0).all() and (parts[..., -1] == whole).all(), "offsets do not rise")


def _bags(given: Given, *_: str) -> None:
    """``bags``: indices within the weights, offsets that rise from 0 within the indices; weights for each, or none."""
    weight, indices, offsets = given["weight"], given["indices"], given["offsets"]
    ints = (torch.int64, torch.int32)
    need(weight.is_floating_point() and weight.dim() == 2 and weight.numel() > 0, "weight")
    need(indices.dtype in ints and offsets.dtype == indices.dtype, "indices and offsets")
    need(indices.dim() == offsets.dim() == 1 and offsets.numel() > 0 and not given.get("sparse"), "one dimension")
    _within(indices, "indices", 0, weight.shape[0] - 1)
    _within(offsets, "offsets", 0, len(indices))
    need(offsets[0] == 0 and (offsets.diff() >= 0).all(), "offsets do not rise from 0")
    need(not given.get("include_last_offset") or offsets[-1] == len(indices), "the last offset")
    each = given.get("per_sample_weights")
    need(each is None or (each.shape == indices.shape and each.dtype == weight.dtype), "per_sample_weights")
    padding = given.get("padding_idx")
    need(padding is None or -weight.shape[0] <= padding < weight.shape[0], "padding_idx")


def _aligned(given: Given, *_: str) -> None:
    """``aligned``: log_probs [T, N, C] or [T, C], targets within C, lengths within T and the targets'."""
    probs, targets, blank = given["log_probs"], given["targets"], given.get("blank", 0)
    need(probs.is_floating_point() and probs.dim() in (2, 3) and probs.numel() > 0, "log_probs")
    need(targets.dtype in (torch.int64, torch.int32) and targets.dim() in (1, 2), "targets")
    steps, classes, count = probs.shape[0], probs.shape[-1], probs.shape[1] if probs.dim() == 3 else 1
    _within(targets, "targets", 0, classes - 1)
    need(0 <= blank < classes and (targets.dim() == 1 or targets.shape[0] == count), "blank, or rows of targets")
    ins, outs = (_lengths(given[k], count, k) for k in ("input_lengths", "target_lengths"))
    whole = targets.shape[-1]
    fits = max(outs) <= whole if targets.dim() == 2 else sum(outs) <= whole
    need(fits and max(ins) <= steps and min(*ins, *outs) >= 0, "lengths are out of bounds")


def _lengths(given: Any, count: int, name: str) -> list[int]:
    whole = not isinstance(given, torch.Tensor) or (
        not given.is_floating_point() and not given.is_complex() and given.dtype != torch.bool and given.dim() <= 1
    )
    need(whole, f"{name} are not integers")
    lengths = given.reshape(-1).tolist() if isinstance(given, torch.Tensor) else list(given)
    need(len(lengths) == count, f"{name} are not one per row")
    return lengths


def _drawn(given: Given, name: str, dims: str) -> None:
    """``drawn random_samples 2``: numbers from 0 to 1, as many as ``dims`` for each plane of ``self``."""
    n, self, drawn = int(dims), given["self"], given[name]
    need(self.dim() in (n + 1, n + 2) and self.numel() > 0 and self.is_floating_point(), "self")
    planes = self.shape[:2] if self.dim() == n + 2 else (1, self.shape[0])
    need(tuple(drawn.shape) == (*planes, n) and drawn.dtype == self.dtype, f"{name} are not {n} per plane")
    _within(drawn, name, 0, 1)


def _resized(given: Given, grad: str, dims: str) -> None:
    """``resized grad_output 2``: a gradient of floats of the output's size, both sizes of an image."""
    n, sizes, output, shape = int(dims), given["input_size"], given["output_size"], tuple(given[grad].shape)
    need(len(sizes) == n + 2 and len(output) == n and min(*sizes, *output) > 0, "sizes")
    need(given[grad].is_floating_point() and shape == (*sizes[:2], *output), f"{grad} is not of the output's size")


def _sampled(given: Given, grad: str, dims: str) -> None:
    """``sampled grad_output 2``: planes of the input's, each as large as the grid."""
    n, shape, grid = int(dims), given["input"].shape, given["grid"].shape
    need(len(shape) == len(grid) == n + 2 and given["input"].numel() > 0 and shape[0] == grid[0], "input and grid")
    need(grid[-1] == n and tuple(given[grad].shape) == (*shape[:2], *grid[1:-1]), f"{grad} is not of the grid's size")
    kinds = {given[k].dtype for k in ("input", "grid", grad)}
    need(len(kinds) == 1 and given[grad].is_floating_point(), "dtypes differ")


CHECKS: Mapping[str, Callable[..., None]] = {
    "same": _same, "kin": _kin, "floats": _floats, "length": _length, "values": _values, "leading": _leading,
    "planes": _planes, "padded": _padded,
    "unfolded": _unfolded, "outer": _outer, "groups": _groups, "statistics": _statistics,
    "unwritten": _unwritten, "fourier": _fourier, "distances": _distances, "attention": _attention, "keys": _keys,
    "recurrent": _recurrent, "i64": _i64, "filled": _filled, "degrees": _degrees, "pivots": _pivots, "normed": _normed,
    "segments": _segments, "bags": _bags, "aligned": _aligned, "drawn": _drawn, "resized": _resized,
    "sampled": _sampled,
}  # fmt: skip

ON_VALUES = frozenset(("values", "degrees", "pivots", "segments", "bags", "aligned", "drawn"))
"""Those of the checks that look at values, which fakes have none of."""
