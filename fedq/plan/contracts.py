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

Given = Mapping[str, Any]
"""An op's arguments by name; those left out are missing."""


class Broken(ValueError):
    """Arguments that would make an op crash, or read beyond them."""


def _need(condition: object, what: str) -> None:
    if not condition:
        raise Broken(what)


def _same(given: Given, *names: str) -> None:
    """``same a b``: tensors of one shape; what is None is left out."""
    shapes = {given[n].shape for n in names if given.get(n) is not None}
    _need(len(shapes) <= 1, f"{', '.join(names)} differ in shape")


def _kin(given: Given, *names: str) -> None:
    """``kin a b``: tensors of one dtype."""
    _need(len({given[n].dtype for n in names if given.get(n) is not None}) <= 1, f"{', '.join(names)} differ in dtype")


def _floats(given: Given, *names: str) -> None:
    """``floats a b``: tensors of floating point."""
    _need(all(given[n].is_floating_point() for n in names if given.get(n) is not None), f"{names} are not floats")


def _length(given: Given, name: str, other: str, dim: str) -> None:
    """``length weight input 1``: one-dimensional, as long as a dimension of another; or None."""
    shape = given[other].shape
    _need(int(dim) < len(shape), f"{other} has too few dimensions")
    if given.get(name) is not None:
        _need(tuple(given[name].shape) == (shape[int(dim)],), f"{name} is not as long as dimension {dim} of {other}")


def _values(given: Given, name: str, low: str, high: str, *but: str) -> None:
    """``values indices 0 num_weights``: integers within [low, high), or equal to one argument.

    ``high`` is an argument, ``plane`` (the last two sizes of self), or ``self.1`` (a size).
    """
    tensor = given[name]
    _need(not tensor.is_floating_point() and not tensor.is_complex(), f"{name} is not of integers")
    if but and but[0] in given:
        tensor = tensor[tensor != given[but[0]]]
    if tensor.numel():
        least, most = (int(v) for v in tensor.aminmax())
        _need(least >= int(low) and most < _bound(given, high), f"{name} is out of bounds")


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
    _need(len(left) == len(right) > n and left[:-n] == right[:-n], f"{a} and {b} differ in shape")


def _padded(given: Given, result: str, *rest: str) -> None:
    """``padded grad_output 2``: self with the sizes that ``padding`` gives its last dimensions."""
    n, self, padding = int(rest[0]), given["self"].shape, given["padding"]
    grad = given[result].shape
    _need(len(padding) == 2 * n and min(padding) >= 0, "padding")
    _need(n < len(self) <= n + 2 and len(grad) == len(self) and grad[:-n] == self[:-n], "shapes differ")
    for i in range(n):
        low, high = padding[2 * i], padding[2 * i + 1]
        _need(grad[-1 - i] == self[-1 - i] + low + high, "the gradient is not as large as what was padded")
        _need(max(low, high) < self[-1 - i], "padding is larger than its dimension")


def _unfolded(given: Given, grad: str) -> None:
    """``unfolded grad_in``: windows of ``size`` every ``step`` along ``dim`` of ``input_sizes``."""
    sizes, dim, size, step = (given[k] for k in ("input_sizes", "dim", "size", "step"))
    _need(-len(sizes) <= dim < len(sizes) and step > 0 and 0 < size <= sizes[dim], "sizes")
    shape = [*sizes, size]
    shape[dim % len(sizes)] = (sizes[dim] - size) // step + 1
    _need(list(given[grad].shape) == shape, f"{grad} is not of the unfolded shape")


def _outer(given: Given, *names: str) -> None:
    """``outer mean rstd``: as many elements as ``input`` has rows of ``normalized_shape``."""
    shape, inner = tuple(given["input"].shape), tuple(given["normalized_shape"])
    _need(inner and shape[len(shape) - len(inner) :] == inner, "normalized_shape is not the end of the input's")
    rows = math.prod(shape[: len(shape) - len(inner)])
    _need(all(given[n].numel() == rows for n in names), f"{names} are not one per row")
    for n in ("weight", "bias"):
        _need(given.get(n) is None or tuple(given[n].shape) == inner, f"{n} is not of the shape normalized")


def _groups(given: Given, *names: str) -> None:
    """``groups mean rstd``: N x C x HxW as the input has them, statistics one per row and group."""
    n, c, hxw, group = (given[k] for k in ("N", "C", "HxW", "group"))
    _need(min(n, c, hxw) >= 0 and group > 0 and c % group == 0, "sizes")
    _need(given["input"].numel() == n * c * hxw and given["input"].dim() >= 2, "N, C and HxW are not the input's")
    _need(tuple(given["input"].shape[:2]) == (n, c), "N, C and HxW are not the input's")
    _need(all(tuple(given[k].shape) == (n, group) for k in names), f"{names} are not one per row and group")
    for k in ("weight", "bias", "gamma"):
        _need(given.get(k) is None or tuple(given[k].shape) == (c,), f"{k} is not one per channel")


def _statistics(given: Given, train: str) -> None:
    """``statistics train``: those that this mode reads are there, one per channel."""
    pair = ("save_mean", "save_invstd") if given[train] else ("running_mean", "running_var")
    for name in pair:
        _need(given.get(name) is not None, f"{name} is missing")
        _length(given, name, "input", "1")
    _need(given["input"].numel() > 0 and len(given["output_mask"]) == 3, "an empty input, or a wrong mask")


def _unwritten(given: Given, flag: str) -> None:
    """``unwritten training``: no running statistics where this flag would have them updated."""
    _need(not given[flag] or (given.get("running_mean") is None and given.get("running_var") is None), "would write")


def _fourier(given: Given, *_: str) -> None:
    """``fourier``: distinct dimensions within the tensor's, and a last size that fits."""
    shape, dims = given["self"].shape, given["dim"]
    _need(dims and len(set(dims)) == len(dims) and all(0 <= d < len(shape) for d in dims), "dimensions")
    _need(math.prod(shape) > 0, "an empty tensor")
    last = given.get("last_dim_size")
    _need(last is None or (last > 0 and shape[dims[-1]] == last // 2 + 1), "last_dim_size")


def _distances(given: Given, result: str, *others: str) -> None:
    """``distances cdist grad``: of the rows of x1 and x2, and all of that shape."""
    a, b = given["x1"].shape, given["x2"].shape
    _need(len(a) == len(b) >= 2 and a[:-2] == b[:-2] and a[-1] == b[-1], "x1 and x2")
    shape = (*a[:-1], b[-2])
    _need(all(tuple(given[n].shape) == shape for n in (result, *others)), "distances are not one per pair of rows")


def _attention(given: Given, *others: str) -> None:
    """``attention out grad_out``: batches, heads, lengths and widths of query, key and value agree."""
    q, k, v = (tuple(given[n].shape) for n in ("query", "key", "value"))
    _need(len(q) == len(k) == len(v) == 4 and math.prod((*q, *k, *v)) > 0, "query, key and value have four sizes")
    _need(q[:2] == k[:2] == v[:2] and q[3] == k[3] == v[3] and k[2] == v[2], "query, key and value differ")
    _need(all(tuple(given[n].shape) == q for n in others), f"{others} are not of the query's shape")
    if "logsumexp" in given:
        _need(tuple(given["logsumexp"].shape) == q[:3] and given["logsumexp"].is_floating_point(), "logsumexp")
    mask = given.get("attn_mask")
    if mask is not None:
        wide = (*q[:3], k[2])
        fits = all(m in (1, w) for m, w in zip(reversed(mask.shape), reversed(wide), strict=False))
        _need(mask.dim() in (2, 4) and fits, "attn_mask")


def _keys(given: Given, *_: str) -> None:
    """``keys``: as many values as keys."""
    k, v = given["key"].shape, given["value"].shape
    _need(len(k) >= 2 and len(v) >= 2 and k[-2] == v[-2], "there are not as many values as keys")


def _recurrent(given: Given, gates: str) -> None:
    """``recurrent 4``: weights, biases and states of the sizes that input and layers ask for."""
    gate, layers, ways = int(gates), given["num_layers"], 2 if given["bidirectional"] else 1
    states: Sequence[Any] = given["hx"] if gate == 4 else [given["hx"]]
    _need(given["input"].dim() in (2, 3) and 0 < layers <= 1024 and len(states) == (2 if gate == 4 else 1), "states")
    batched = given["input"].dim() == 3
    batch = (given["input"].shape[0 if given["batch_first"] else 1],) if batched else ()
    hidden = states[0].shape[-1] if states[0].dim() else 0
    per = 4 if given["has_biases"] else 2
    _need(len(given["params"]) == layers * ways * per and given["input"].numel() > 0 and hidden > 0, "weights")
    _need(all(tuple(s.shape) == (layers * ways, *batch, hidden) for s in states), "states")
    width = given["input"].shape[-1]
    for i in range(layers * ways):
        wide = width if i < ways else hidden * ways
        shapes = [(gate * hidden, wide), (gate * hidden, hidden), (gate * hidden,), (gate * hidden,)][:per]
        own = given["params"][i * per : (i + 1) * per]
        _need([tuple(p.shape) for p in own] == shapes, f"weights of layer {i}")
    _need(len({t.dtype for t in (given["input"], *states, *given["params"])}) == 1, "dtypes")
    _need(given["input"].is_floating_point(), "dtypes")


CHECKS: Mapping[str, Callable[..., None]] = {
    "same": _same, "kin": _kin, "floats": _floats, "length": _length, "values": _values, "leading": _leading,
    "padded": _padded, "unfolded": _unfolded, "outer": _outer, "groups": _groups, "statistics": _statistics,
    "unwritten": _unwritten, "fourier": _fourier, "distances": _distances, "attention": _attention, "keys": _keys,
    "recurrent": _recurrent,
}  # fmt: skip
