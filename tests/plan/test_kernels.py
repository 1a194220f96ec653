import contextlib
import dataclasses
import warnings

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedq.plan import optable
from fedq.plan.kernels import kernel
from tests.marks import scaled, share
from tests.plan import programs
from tests.plan.draw import Draw, allowed, concrete


class Seen(TorchDispatchMode):
    """The ops that reach the dispatcher, with all but their tensors' values."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append((str(func), described(args), described(kwargs or {})))
        return func(*args, **(kwargs or {}))


def described(value):
    match value:
        case torch.Tensor():
            return str(value.dtype), tuple(value.shape)
        case list() | tuple():
            return [described(v) for v in value]
        case dict():
            return {k: described(v) for k, v in value.items() if k not in IMPLIED and v is not None}
    return str(value)


IMPLIED = ("device", "layout", "pin_memory")
"""What a short form says where the op itself leaves it out; it changes nothing on a CPU."""


def seen(call, args, kwargs):
    torch.default_generator.manual_seed(3)  # torch.manual_seed also tells CUDA and others, for half a ms
    with Seen() as mode, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = call(*args, **kwargs)
    return mode.ops, result


def equal(a, b):
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, 0, 0, equal_nan=True)
    return a == b or a != a


def fast_ops():
    return [op for name in optable.names() if (op := optable.find(name)).fast]


def calls(op):
    """What programs call of an op; for the others, random calls that it takes."""
    made = list(programs.calls().get(op.name, []))
    for seed in range(400 if len(made) < 2 else 0):
        args, kwargs = Draw(seed).call(op)
        args, kwargs = [concrete(a) for a in args], {k: concrete(v) for k, v in kwargs.items()}
        with contextlib.suppress(Exception):
            if allowed(op, args, kwargs):
                seen(replace_fast(op), args, kwargs)
                made.append((args, kwargs))
        if len(made) >= 3:
            break
    return made


def replace_fast(op):
    return kernel(dataclasses.replace(op, fast=""))


def wrong(op):
    """Why an op's fast callable is not the op; empty if it is, over real calls of it."""
    made = [c for c in calls(op) if not op.fast.startswith(".") or isinstance(c[0][0], torch.Tensor)]
    for args, kwargs in made:
        try:
            ops, result = seen(kernel(op), args, kwargs)
        except (TypeError, RuntimeError) as error:
            return str(error)[:90]
        truth, expected = seen(replace_fast(op), args, kwargs)
        if ops != truth or not equal(result, expected):
            return f"{ops} is not {truth}"[:300]
    return "" if made else "nothing calls it"


@scaled
def test_every_fast_callable_runs_exactly_its_op():
    failed = {op.name: why for op in share(fast_ops(), 6) if (why := wrong(op))}
    assert not failed
