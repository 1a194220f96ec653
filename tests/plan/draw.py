"""Random calls of allowed ops, typed by the table: plausible ones, and hostile ones.

Everything drawn is what `verify` lets through, so whatever kills the process is a hole in the
table. Tensors may lie against a page that may not be read, so reading beyond them kills too.
"""

import ctypes
import mmap
import random

import torch

from fedq.plan import optable
from fedq.plan.graph import Dtype, Format
from fedq.plan.tensors import DTYPES as TORCH
from fedq.plan.tensors import NAMES
from fedq.plan.verify import _check_contract, _sane, _Wrong

FLOATS = ("f32", "f32", "f64", "f16", "bf16")
INTS = ("i64", "i64", "i32", "i8", "u8")
DTYPES = (*FLOATS, *INTS, "bool", "c64")
SHAPES = ((), (0,), (1,), (4,), (8,), (4, 5), (4, 4), (1, 5), (0, 3), (2, 3, 4), (2, 3, 4, 4), (1, 2, 6, 6),
          (2, 4, 3, 3, 3), (3, 1), (2, 6, 8), (17,), (2, 2, 1, 1))  # fmt: skip
NUMBERS = (0, 1, 2, -1, 3, 0.5, -2.5, 1e30, float("nan"), float("inf"), True)
HUGE = (-1, 0, 99, -99, 2**31, -(2**31), 2**39, -(2**39), 2**63 - 1, -(2**63))
TEXTS = {
    "rounding_mode": ("trunc", "floor"), "approximate": ("none", "tanh"), "indexing": ("ij", "xy"),
    "side": ("left", "right"), "norm": ("ortho", "forward", "backward"), "UPLO": ("L", "U"),
    "reduce": ("sum", "prod", "mean", "amax", "amin", "add", "multiply"),
    "mode": ("constant", "reflect", "replicate", "circular"), "interpolation": ("linear", "lower", "nearest"),
    "driver": ("gels", "gesvd"), "equation": ("ij,jk->ik", "i,i->", "...", "bij,bjk->bik"),
    "ord": ("fro", "nuc"), "padding": ("same", "valid"),
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


class Draw:
    """Draws from a seed; ``wild`` is how often a value is hostile instead of plausible."""

    def __init__(self, seed, *, wild=0.0, fenced=False):
        self.random = random.Random(seed)
        self.wild = wild
        self.fenced = fenced
        self.like = None

    def call(self, op):
        """(args, kwargs) as an Action holds them, but with tensors for Vars."""
        self.like = None
        self.dtype = self.random.choice(DTYPES if self.random.random() < 0.7 else ("f32", "i64"))
        self.shape = self.random.choice(SHAPES)
        args, kwargs = [], {}
        for p in op.params:
            given = p.default is None or self.random.random() < 0.5
            if p.kind == "none" or (p.keyword and not given):
                continue
            if not p.keyword and p.default is not None and not given:
                break
            arg = self.arg(op, p)
            if p.keyword:
                kwargs[p.name] = arg
            else:
                args.append(arg)
        return args, kwargs

    def bend(self, op, args, kwargs):
        """A real call with one or two of its arguments made into something else of its kind."""
        r = self.random
        args, kwargs = list(args), dict(kwargs)
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        first = tensors[0] if tensors else torch.zeros(4)
        self.like, self.shape = first, tuple(first.shape)
        self.dtype = NAMES.get(first.dtype, "f32")
        places = [(args, i) for i in range(len(args))] + [(kwargs, k) for k in kwargs]
        params = {p.name: p for p in op.params}
        positional = [p for p in op.params if not p.keyword]
        chosen = {r.randrange(len(places)) for _ in range(r.choice((0, 1, 1, 2)))} if places else ()
        for n, (where, key) in enumerate(places):
            p = positional[key] if where is args else params[key]
            old = where[key]
            if n in chosen:
                where[key] = self.bent(old) if r.random() < 0.6 else old if p.kind == "none" else self.arg(op, p)
            where[key] = self.fenced_copy(where[key])
        return args, kwargs

    def bent(self, old):
        r = self.random
        match old:
            case torch.Tensor():
                return self.bent_tensor(old)
            case list() | tuple() if old:
                new, i = list(old), r.randrange(len(old))
                new[i] = self.bent(old[i])
                return new if r.random() < 0.8 else new[:i]
            case bool():
                return not old
            case int():
                return r.choice((old + 1, old - 1, -old, old * 2, 0, 1, 1 << 30))
        return old

    def bent_tensor(self, old):
        r = self.random
        choice = r.randrange(7)
        if choice == 0 and old.dim():
            d = r.randrange(old.dim())
            return old.narrow(d, 0, max(0, old.shape[d] - 1)).clone()
        if choice == 1 and old.dim():
            return torch.cat([old, old], r.randrange(old.dim()))
        if choice == 2:
            return old.to(torch_dtype(r.choice(DTYPES)))
        if choice == 3:
            return torch.full_like(old, r.choice((-1, 99, -(2**31), 2**31 - 1, 2**40) if not old.is_floating_point()
                                                 and old.element_size() > 4 else (0, 1, 7, 100)))  # fmt: skip
        if choice == 4:
            return old.flatten()[: r.randrange(old.numel() + 1)].clone()
        if choice == 5 and old.dim():
            return old[:1].expand(old.shape) if old.shape[0] else old
        return old.unsqueeze(0)

    def fenced_copy(self, value):
        if isinstance(value, (list, tuple)):
            return [self.fenced_copy(v) for v in value]
        front = self.random.random() < 0.3
        if not isinstance(value, torch.Tensor) or not self.fenced:
            return value
        expanded = value.numel() > 1 and 0 in value.stride()
        if expanded:
            rows = value.select(value.stride().index(0), 0)
            return fence(rows.contiguous(), front=front).unsqueeze(value.stride().index(0)).expand(value.shape)
        return fence(value.detach().resolve_conj().resolve_neg().contiguous(), front=front)

    def arg(self, op, p):
        kind, r = p.kind, self.random
        for words in op.contract:
            if words[:2] == (p.name, "in") and not (kind[-1] == "?" and r.random() < 0.3):
                value = r.choice(words[2:])
                return int(value) if kind.startswith("int") else value
        if kind[-1] == "?":
            if r.random() < 0.4:
                return None
            kind = kind[:-1]
        while True:
            arg = self.value(op, p, kind)
            if _sane(p, arg):
                return arg

    def value(self, op, p, kind):
        r = self.random
        if kind == "Tensor":
            return r.choice(NUMBERS) if op.numbers and r.random() < 0.1 else self.tensor()
        if kind == "Tensor[]":
            return [self.tensor() for _ in range(r.choice((0, 1, 2, 2, 2, 4, 8)))]
        if kind == "Tensor?[]":
            return [r.choice((None, self.index(), self.index())) for _ in range(r.choice((1, 1, 2, 3)))]
        if kind == "int":
            return self.int()
        if kind == "int[]":
            n = r.choice((0, 1, 1, 2, 2, 2, 3, 4, 6, len(self.shape), len(self.shape)))
            if r.random() < 0.3:
                return list(self.shape)
            return [self.int() for _ in range(n)]
        if kind == "bool[]":
            return [r.random() < 0.7 for _ in range(r.choice((2, 3, 3, 4)))]
        if kind in ("float[]", "Scalar[]"):
            return [float(r.choice((1, 2, 0.5, -1))) for _ in range(r.choice((0, 1, 2)))]
        return {
            "float": lambda: float(r.choice(NUMBERS)),
            "Scalar": lambda: r.choice(HUGE) if self.is_wild() else r.choice(NUMBERS),
            "bool": lambda: r.random() < 0.5,
            "dtype": lambda: Dtype(r.choice(DTYPES)),
            "format": lambda: Format(r.choice(("contiguous", "preserve", "channels_last"))),
            "str": lambda: r.choice(TEXTS.get(p.name, ("x", ""))),
        }[kind]()

    def is_wild(self):
        return self.random.random() < self.wild

    def int(self):
        if self.is_wild():
            return self.random.choice(HUGE)
        return self.random.choice((0, 0, 1, 1, 1, 2, 2, 3, -1, -2, 4, 5))

    def index(self):
        return self.make("i64" if self.random.random() < 0.8 else "bool", self.random.choice(((4,), (2,), (), (4, 5))))

    def tensor(self):
        r = self.random
        dtype = r.choice(DTYPES) if r.random() < 0.15 else self.dtype
        if self.like is not None and r.random() < 0.12:
            dtype = "i64"
        shape = self.shape if r.random() < 0.6 else r.choice(SHAPES)
        if r.random() < 0.15 and self.shape:
            shape = (r.choice(self.shape),)
        made = self.make(dtype, shape)
        self.like = made
        if r.random() < 0.1 and made.dim() > 1:
            made = made.transpose(0, -1)
        if r.random() < 0.03:
            made = made.expand(3, *made.shape)
        return made

    def make(self, dtype, shape):
        r = self.random
        g = torch.Generator().manual_seed(r.getrandbits(40))
        kind = torch_dtype(dtype)
        if self.is_wild():
            values = torch.tensor(r.choice(HUGE)).expand(shape)
            if dtype in FLOATS and r.random() < 0.5:
                values = torch.full(shape, r.choice((float("nan"), float("inf"), -1e30, 1e30)))
        elif dtype in FLOATS or dtype == "c64":
            values = torch.randn(shape, generator=g)
        else:
            values = torch.randint(0, r.choice((2, 3, 4, 9)), shape, generator=g)
        values = values.to(kind).contiguous()
        front = r.random() < 0.3
        return fence(values, front=front) if self.fenced else values


def torch_dtype(name):
    return TORCH[name]


def allowed(op, args, kwargs):
    """Whether `verify` would let the literals of a call through."""
    positional = [p for p in op.params if not p.keyword]
    given = {p.name: (p, a) for p, a in zip(positional, args, strict=False)}
    given |= {p.name: (p, kwargs[p.name]) for p in op.params if p.name in kwargs}
    try:
        for words in op.contract:
            _check_contract(op, words, given)
    except _Wrong:
        return False
    return all(_sane(p, a) for p, a in given.values())


def fence(tensor, *, front=False):
    """A copy whose memory ends (or starts) where a page that may not be touched begins (ends)."""
    size, page = tensor.numel() * tensor.element_size(), mmap.PAGESIZE
    body = -(-max(size, 1) // page) * page
    area = mmap.mmap(-1, body + 2 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for edge in (base, base + page + body):
        if _libc.mprotect(ctypes.c_void_p(edge), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    start = page if front else page + body - size
    if not size:
        return tensor
    copy = torch.frombuffer(area, dtype=tensor.dtype, count=tensor.numel(), offset=start).view(tensor.shape)
    copy.copy_(tensor)
    return copy


def concrete(arg):
    """An argument of an Action as torch takes it."""
    from fedq.plan.replay import FORMATS

    match arg:
        case Dtype():
            return torch_dtype(arg.name)
        case Format():
            return FORMATS[arg.name]
        case list():
            return [concrete(a) for a in arg]
    return arg


def aten():
    return [optable.find(n) for n in optable.names() if n.startswith("aten.")]
