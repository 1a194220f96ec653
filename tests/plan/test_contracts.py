"""Arguments that an op would trust, and read or write beyond: refused before the call."""

import pytest
import torch

from fedq.plan import optable
from fedq.plan.contracts import Broken
from fedq.plan.kernels import kernel
from fedq.plan.plan import func2plan
from tests.plan import programs

A, INDEX = programs.floats(), programs.index()
LU, PIVOTS, _ = torch.linalg.lu_factor_ex(A @ A.T + 30 * torch.eye(4))
PICTURE = torch.ones(2, 2, 4, 4)
PROBS, WORDS = torch.zeros(6, 2, 5), torch.tensor([[1, 2, 3], [4, 3, 2]])
TRUE = torch.tensor([1, 3])

HOSTILE = {
    "a pivot beyond the rows": ("linalg_lu_solve", (LU, PIVOTS + 9, A), {}),
    "a pivot of zero": ("lu_solve", (A, LU, PIVOTS * 0), {}),
    "fewer pivots than rows": ("lu_unpack", (LU, PIVOTS[:2]), {}),
    "a norm of the wrong length": ("_weight_norm_interface", (A, torch.ones(3, 1)), {}),
    "a norm along another dimension": ("_weight_norm", (A, torch.ones(4, 1), 1), {}),
    "lengths beyond the data": ("segment_reduce", (A, "sum"), {"lengths": torch.tensor([1, 9])}),
    "lengths below zero": ("segment_reduce", (A, "sum"), {"lengths": torch.tensor([5, -1])}),
    "offsets that fall": ("segment_reduce", (A, "sum"), {"offsets": torch.tensor([0, 3, 1, 4])}),
    "bags beyond the indices": ("embedding_bag", (A, INDEX, torch.tensor([0, 99])), {}),
    "bags that do not start at zero": ("embedding_bag", (A, INDEX, torch.tensor([1, 2])), {}),
    "an index beyond the weights": ("embedding_bag", (A, INDEX + 9, torch.tensor([0, 2])), {}),
    "a label beyond the classes": ("ctc_loss.IntList", (PROBS, WORDS + 9, (6, 5), (3, 2)), {}),
    "more steps than there are": ("ctc_loss.IntList", (PROBS, WORDS, (7, 5), (3, 2)), {}),
    "longer targets than there are": ("ctc_loss.Tensor", (PROBS, WORDS, TRUE * 0 + 6, TRUE * 9), {}),
    "a blank beyond the classes": ("ctc_loss.IntList", (PROBS, WORDS, (6, 5), (3, 2), 99), {}),
    "samples above one": ("fractional_max_pool2d", (PICTURE, (2, 2), (3, 3), torch.full((2, 2, 2), 9.0)), {}),
    "samples of NaN": ("fractional_max_pool2d", (PICTURE, (2, 2), (3, 3), torch.full((2, 2, 2), torch.nan)), {}),
    "a gradient of another size": ("upsample_nearest2d_backward", (PICTURE, (9, 9), (2, 2, 4, 4)), {}),
    "a gradient of other planes": ("grid_sampler_2d_backward", (PICTURE[:1], PICTURE, torch.zeros(2, 4, 4, 2), 0, 0,
                                   False, (True, True)), {}),
    "a degree that runs for hours": ("special_laguerre_polynomial_l.n_scalar", (A, 1 << 40), {}),
    "degrees in a tensor": ("special_legendre_polynomial_p", (A, A * 0 + 1e9), {}),
    "indices of i32 read as i64": ("adaptive_max_pool3d_backward", (torch.ones(1, 2, 2, 2), torch.ones(1, 4, 4, 4),
                                   torch.zeros(1, 2, 2, 2, dtype=torch.int32)), {}),
    "indices of another shape": ("max_unpool2d", (PICTURE, torch.zeros(2, 2, 4, 3, dtype=torch.int64), (8, 8)), {}),
    "an empty batch": ("multi_margin_loss", (A[:0], INDEX[:0]), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_before_the_op_sees_it(name):
    op, args, named = HOSTILE[name]
    with pytest.raises(Broken):
        kernel(optable.find(f"aten.{op}"))(*args, **named)


def test_an_index_beyond_what_is_unpooled_is_torchs_own_error_and_no_write():
    with pytest.raises(RuntimeError):
        kernel(optable.find("aten.max_unpool2d"))(PICTURE, torch.full((2, 2, 4, 4), 99), (4, 4))


def test_an_index_of_none_is_all_of_a_dimension():
    for name in ("aten.index_put", "aten._unsafe_index_put"):
        put = kernel(optable.find(name))(A.clone(), [None, INDEX[:2]], A[:, :2] * 0)
        assert put[:, INDEX[:2]].eq(0).all()
    assert kernel(optable.find("aten._unsafe_index.Tensor"))(A, [None, INDEX]).equal(A[:, INDEX])


def test_writes_that_torch_has_by_offset_or_without_a_value_are_recorded_as_values():
    def writes(x):
        y = x.clone().fill_diagonal_(0.5)
        return y.polygamma_(1)

    plan = func2plan()(writes).build(A.abs() + 1)
    assert torch.equal(plan.compiled()(A.abs() + 1), writes(A.abs() + 1))
