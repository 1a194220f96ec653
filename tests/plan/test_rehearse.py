"""Built means that a device takes it and runs it: sizes of results that no input has, and what the dry run finds."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

import fedq as fq
from fedq.errors import CannotRecord, SpecMismatch
from fedq.plan import rehearse, spec
from fedq.plan.graph import About, Action, Dtype, Graph, Type, Var, flatten
from fedq.plan.tensors import type_of
from tests.marks import scaled, share
from tests.rig import Rig

OWN_SIZES = {
    "the diagonal": lambda x: torch.diag(x),
    "a diagonal beside it": lambda x: torch.diag(x, 1),
    "a view of a diagonal": lambda x: x.diagonal(-2),
    "singular values": lambda x: torch.linalg.svdvals(x),
    "a thin qr": lambda x: torch.linalg.qr(x),
    "an image scaled by 1.5": lambda x: F.interpolate(x[None, None], scale_factor=1.5, mode="bilinear"),
    "an image scaled by two factors": lambda x: F.interpolate(x[None, None], scale_factor=(2.5, 1.3)),
    "an image scaled twice": lambda x: F.interpolate(F.interpolate(x[None, None], scale_factor=1.5), scale_factor=0.7),
    "a range that ends at a float": lambda x: torch.arange(0, x.shape[0] * 0.1, 0.1) * x.sum(),
    "a range in steps of a float": lambda x: torch.arange(0.0, x.shape[0], 0.3) * x.sum(),
    "a quotient rounded up": lambda x: x.new_zeros(math.ceil(x.shape[0] / 3)) + x.sum(),
    "a sum of floats rounded down": lambda x: x[: math.floor(x.shape[0] * 0.5 + 0.2)],
    "a float rounded half to even": lambda x: x[: round(x.shape[0] * 0.5)],
    "a square": lambda x: x.new_ones(x.shape[0] ** 2) * x.sum(),
    "pooling rounded up": lambda x: F.max_pool2d(x[None], 2, ceil_mode=True),
    "every third row": lambda x: x[::3],
    "pairs of rows": lambda x: x.unfold(0, 2, 2),
    "frequencies": lambda x: torch.fft.rfft(x).abs(),
}
SIZES = list(itertools.product((2, 3, 5, 6, 7, 10, 13, 33), (2, 4, 5, 7, 20)))


@pytest.mark.parametrize("what", OWN_SIZES)
@pytest.mark.parametrize("free", [True, False])
def test_a_result_of_a_size_of_its_own_is_eagers_at_every_size_that_is_admitted(what, free):
    function = OWN_SIZES[what]
    plan = fq.func2plan()(function)
    plan = plan.build_shapes([(-1, -1)]) if free else plan.build(torch.rand(6, 4))
    fitting = 0
    for sizes in SIZES:
        x = torch.rand(sizes)
        try:
            types = spec.output_types(plan.graph, [type_of(x)])
        except SpecMismatch:
            continue
        got, want = flatten(plan.compiled()(x)), flatten(function(x))
        assert [type_of(t) for t in got] == list(types)
        torch.testing.assert_close(got, want)
        fitting += 1
    assert fitting > (len(SIZES) // 2 if free else 0)


TOGETHER = {
    "a product": (lambda x, y: x @ y, torch.rand(3, 3), torch.rand(3, 3).double()),
    "a linear layer": (lambda x, y: F.linear(x, y, y[0]), torch.rand(3, 3), torch.rand(3, 3).double()),
    "a target of i32": (F.cross_entropy, torch.rand(3, 4), torch.zeros(3, dtype=torch.int32)),
    "a target of f64": (F.binary_cross_entropy, torch.rand(3, 4), torch.zeros(3, 4).double()),
    "a branch": (lambda x, y: torch.cond(x.sum() > 0, lambda x, y: (x @ y).double(), lambda x, y: y + 1, (x, y)),
                 torch.rand(3, 3), torch.rand(3, 3).double()),
}  # fmt: skip


@pytest.mark.parametrize("what", TOGETHER)
def test_dtypes_that_an_op_does_not_take_together_are_refused_at_build(what):
    function, *example = TOGETHER[what]
    with pytest.raises(CannotRecord, match="together") as caught:
        fq.func2plan()(lambda *args: function(*args)).build(*example)
    assert "test_rehearse.py" in str(caught.value) and "convert" in caught.value.hint


def test_a_training_step_whose_model_and_data_have_two_dtypes_is_refused_at_build():
    model, batch = torch.nn.Linear(3, 2).double(), (torch.rand(4, 3), torch.ones(4).long())
    with pytest.raises(CannotRecord, match=r"where the model takes f64|together"):
        fq.training_plan(model, F.cross_entropy, torch.optim.SGD(model.parameters()), *batch)


@scaled
def test_results_of_sizes_of_their_own_come_back_from_a_worker(tmp_path):
    given = {f"x{i}": torch.rand(sizes) for i, sizes in enumerate([(6, 4), (5, 7), (33, 2)])}
    with Rig(tmp_path, data=given) as rig:
        rig.start()
        some = share(OWN_SIZES.items(), 3)
        plans = {what: fq.func2plan(args_shape=[(-1, -1)])(f).send(rig.device) for what, f in some}
        for tag, x in given.items():
            outs = {what: plan(rig.device.find(tag)) for what, plan in plans.items()}
            for what, out in outs.items():
                got = [p.get(timeout_s=60) for p in flatten(out)]
                torch.testing.assert_close(got, flatten(OWN_SIZES[what](x)), msg=what)


REFUSED_SIZES = {
    "a size from a size made an int": (lambda x: x[: int(x.shape[0] * 0.5)], "math.floor"),
    "a size of many float terms": (
        lambda x: x.new_zeros(math.floor(x.shape[0] * 0.3 + x.shape[1] * 0.7 + 0.1)),
        "integers",
    ),
    "a size of a product of floats": (lambda x: x.new_zeros(math.ceil(x.shape[0] * 0.1 * 0.3)), "integers"),
    "a size of a tiny factor": (lambda x: x.new_zeros(math.ceil(x.shape[0] * 1e-5)), "integers"),
}


@pytest.mark.parametrize("what", REFUSED_SIZES)
def test_a_size_that_cannot_be_written_down_is_refused_with_line_and_cure(what):
    function, cure = REFUSED_SIZES[what]
    with pytest.raises(CannotRecord, match=r"test_rehearse\.py:\d+") as refused:
        fq.func2plan()(function).build_shapes([(-1, -1)])
    assert cure in refused.value.hint


@pytest.mark.parametrize("what", REFUSED_SIZES)
def test_where_it_is_not_asked_to_be_free_such_a_size_is_fixed(what):
    function, _ = REFUSED_SIZES[what]
    x = torch.rand(6, 4)
    plan = fq.func2plan()(function).build(x)
    torch.testing.assert_close(plan.compiled()(x), function(x))
    with pytest.raises(SpecMismatch):
        spec.output_types(plan.graph, [Type("f32", (9, 9))])


X = Type("f32", ("n",))


def graph(*actions):
    return Graph((X,), actions, Var(1), sizes={"n": 1})


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (Action("aten.bincount", (Var(0),), {}, (X,)), "takes memory by the largest value in the data"),
        (Action("aten.no_such", (Var(0),), {}, (X,)), "not among the ops that were checked"),
        (Action("aten.bmm", (Var(0), Var(0)), {}, (X,)), "does not run as it was recorded"),
        (Action("aten.to.dtype", (Var(0), Dtype("f64")), {}, (X,)), r"a result is f64\[5\], recorded as f32\[5\]"),
    ],
)
def test_what_a_device_would_refuse_or_fail_at_is_said_when_it_is_built(action, message):
    with pytest.raises(CannotRecord, match=message) as refused:
        rehearse.rehearse(graph(action), About("f", ("tour.py:7",)), [[Type("f32", (5,))]])
    assert refused.value.hint


def test_a_plan_that_no_file_can_hold_is_refused_when_it_is_built():
    step = Action("aten.add.Tensor", (Var(0), Var(0)), {}, (X,))
    with pytest.raises(CannotRecord, match="no file can hold it") as refused:
        rehearse.rehearse(graph(*[step] * 10_001), About(), [])
    assert "scan" in refused.value.hint
