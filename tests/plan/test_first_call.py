"""The first call of a worker that just started has a float number: eager's value, for every family of ops.

A worker that has built or run something before finds what torch imports late; this one does not. A
worker takes two seconds to start: `make samples` goes over all families, `make test` over two.
"""

import os
import re
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fedq as fq
from tests.plan import samples

FIRST = {
    "arithmetic": lambda x: x.clamp(0.0, 0.5),
    "powers, logarithms, angles": lambda x: x.pow(2.5),
    "comparison and logic": lambda x: x > 0.5,
    "complex": lambda x: torch.complex(x, x) * 0.5,
    "reduction": lambda x: x.norm(2.5),
    "running and sorting": lambda x: torch.histc(x, 4, -0.5, 0.5),
    "shapes": lambda x: torch.diag_embed(x) * 0.5,
    "joining": lambda x: torch.nn.utils.rnn.pad_sequence([x, x[:2]], padding_value=0.5),
    "indexing": lambda x: x.masked_fill(x.isfinite(), 0.5),
    "making": lambda x: torch.full_like(x, 0.5),
    "copies and dtypes": lambda x: x.double() * 0.5,
    "random": lambda x: F.dropout(x, 0.5, True),
    "products": lambda x: torch.addmm(x, x, x, alpha=0.5, beta=2.5),
    "linear algebra": lambda x: torch.linalg.pinv(x, rtol=0.1),
    "fourier": lambda x: torch.fft.fft(x) * 0.5,
    "activations": lambda x: F.leaky_relu(x, 0.1),
    "losses": lambda x: F.huber_loss(x, x + 1, delta=0.5),
    "layers": lambda x: F.layer_norm(x, (4,), eps=0.1),
    "pooling, padding, images": lambda x: F.pad(x, (1, 1), value=0.5),
}  # fmt: skip
FEW = ("running and sorting", "losses")
CHOSEN = tuple(FIRST) if "FEDQ_MORE" in os.environ else FEW


@pytest.mark.scaled
@pytest.mark.parametrize("family", CHOSEN)
def test_the_first_call_of_a_fresh_worker_takes_a_float_number_and_gives_eagers_value(family):
    x, pool = torch.linspace(-1.0, 1.0, 16).view(4, 4), samples.Pool()
    try:
        assert samples.outcome(family, [x], FIRST[family], pool) == samples.Outcome(samples.HOLDS)
    finally:
        pool.close()


def test_every_family_of_ops_has_a_first_call():
    allow = runpy.run_path(str(Path(__file__).parents[2] / "tools/make_ops.py"))["ALLOW"]
    assert set(re.findall(r"(?m)^([a-z, ]+):", allow)) == FIRST.keys()


def test_a_first_call_is_a_plan_with_a_number():
    plan = fq.func2plan()(FIRST["activations"]).build(torch.zeros(4, 4))
    assert [type(a) for a in plan.actions[0].args if not isinstance(a, fq.plan.graph.Var)] == [float]
